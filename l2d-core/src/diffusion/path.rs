//! The diffusion path as a whole.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use super::block::DiffusionBlock;
use super::config::DiffusionConfig;
use super::modulation::{BlockModulation, Modulation, ModulationHead};
use super::timestep::TimestepEmbedding;
use super::translation::Translation;
use super::vocabulary::DiffusionVocabulary;
use crate::init;
use crate::lm::{AttentionPlan, Context, KvCache, Lm};

/// Everything that L2D trains.
#[derive(Module, Debug)]
pub struct DiffusionPath<B: Backend> {
    /// Tokens as diffusion targets, `W_v`.
    pub vocabulary: DiffusionVocabulary<B>,
    /// `x_t` into the LM's hidden space.
    pub translation: Translation<B>,
    /// `tau(t)`.
    pub timestep: TimestepEmbedding<B>,
    /// `E: [classes + 1, c]`, the last row for "no class"; absent without guidance.
    pub classes: Option<Param<Tensor<B, 2>>>,
    /// One per block of the base.
    pub blocks: Vec<DiffusionBlock<B>>,
    /// `g`, the head of the path's final weight.
    pub final_weight: ModulationHead<B>,
    /// The hyper-parameters.
    #[module(skip)]
    pub config: DiffusionConfig,
}

impl<B: Backend> DiffusionPath<B> {
    /// A fresh path beside `lm`. Its gates and final weight are zero: it leaves the LM's logits unchanged.
    pub fn init(lm: &Lm<B>, config: &DiffusionConfig, rng: &mut ChaCha8Rng) -> Self {
        let (device, hidden) = (lm.device(), lm.config.hidden_size);
        Self {
            vocabulary: DiffusionVocabulary::init(hidden, config, rng, &device),
            translation: Translation::init(hidden, config, rng, &device),
            timestep: TimestepEmbedding::init(config, rng, &device),
            classes: config.no_class().map(|no_class| {
                Param::from_tensor(init::normal([no_class + 1, config.conditioning], 0.02, rng, &device))
            }),
            blocks: lm.blocks.iter().map(|base| DiffusionBlock::init(base, config, rng)).collect(),
            final_weight: ModulationHead::init(config.conditioning, hidden, rng, &device),
            config: config.clone(),
        }
    }

    /// The same path packed for the CPU's decoding kernels ([`crate::cpu`]), in f32. The projection of the vocabulary, which
    /// is used once, stays dense.
    pub fn packed(self) -> Self {
        let blocks = self.blocks.into_iter().map(DiffusionBlock::packed).collect();
        Self {
            translation: self.translation.packed(),
            timestep: self.timestep.packed(),
            final_weight: self.final_weight.packed(),
            blocks,
            ..self
        }
    }

    /// `tau(t, class)`: `[rows, c]`. `classes[i]` indexes the class table; without `classes` every row is "no class".
    ///
    /// # Panics
    /// When `classes` is given and does not match `timesteps` in length.
    pub fn conditioning(&self, timesteps: &[f32], classes: Option<&[usize]>) -> Tensor<B, 2> {
        let tau = self.timestep.forward(timesteps);
        match &self.classes {
            None => tau,
            Some(table) => tau + self.class_rows(table.val(), timesteps.len(), classes),
        }
    }

    /// Everything that `(t, class)` decides, for rows with the given times and classes (see
    /// [`DiffusionPath::conditioning`]).
    pub fn modulation(&self, timesteps: &[f32], classes: Option<&[usize]>) -> Modulation<B> {
        let tau = self.conditioning(timesteps, classes);
        let blocks = self.blocks.iter().map(|block| BlockModulation::new(&block.modulation, tau.clone())).collect();
        Modulation { blocks, ..self.modulation_of_ends(timesteps, classes, tau) }
    }

    /// [`DiffusionPath::modulation`] without the blocks': the scale of the input and the final weight, from
    /// `tau: [rows, c]`, the conditioning of these times and classes.
    pub fn modulation_of_ends(&self, timesteps: &[f32], classes: Option<&[usize]>, tau: Tensor<B, 2>) -> Modulation<B> {
        let device = tau.device();
        let at_zero = self.timestep.forward(&[0.0]); // [1, c]
        let offset = match &self.classes {
            None => self.final_weight.forward(at_zero),
            Some(table) => {
                let per_class = self.final_weight.forward(table.val() + at_zero); // [classes + 1, H]
                self.class_rows(per_class, timesteps.len(), classes)
            }
        };
        let column =
            |values: Vec<f32>| Tensor::<B, 2>::from_data(TensorData::new(values, [timesteps.len(), 1]), &device);
        // Matrix products of different height may round differently; the product with 0 makes w(0) exact.
        let started = column(timesteps.iter().map(|&t| if t == 0.0 { 0.0 } else { 1.0 }).collect());
        let dtype = tau.dtype();
        let final_weight = (self.final_weight.forward(tau) - offset) * started.cast(dtype);
        let sigma = self.config.sigma as f32;
        let input_scale =
            column(timesteps.iter().map(|&t| 1.0 / ((1.0 - t) * (1.0 - t) * sigma * sigma + t * t).sqrt()).collect());
        Modulation { input_scale: input_scale.cast(FloatDType::F32), blocks: Vec::new(), final_weight }
    }

    /// `x_t: [rows, d]` (any float type) to the path's first hidden state `[rows, H]`; rescaled in f32.
    pub fn encode(&self, x_t: Tensor<B, 2>, modulation: &Modulation<B>) -> Tensor<B, 2> {
        let dtype = self.translation.inner.weight.val().dtype();
        let scaled = x_t.cast(FloatDType::F32) * modulation.input_scale.clone();
        self.translation.forward(scaled.cast(dtype))
    }

    /// Runs the path: `x_t: [rows, d]` with `rows = batch * plan.rows()`, sequence-major, to the final hidden state
    /// `z_L: [rows, H]`. The main path's keys and values come from `cache`.
    pub fn forward(
        &self,
        lm: &Lm<B>,
        cache: &KvCache<B>,
        plan: &AttentionPlan<B>,
        modulation: &Modulation<B>,
        x_t: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        self.forward_with(lm, |layer| cache.layer(layer), plan, modulation, x_t, |_, _| {})
    }

    /// [`DiffusionPath::forward`] with keys and values in `context(layer)`, calling `visit(layer, z)` after each block.
    pub fn forward_with<'a>(
        &self,
        lm: &Lm<B>,
        context: impl Fn(usize) -> Context<'a, B>,
        plan: &AttentionPlan<B>,
        modulation: &Modulation<B>,
        x_t: Tensor<B, 2>,
        mut visit: impl FnMut(usize, &Tensor<B, 2>),
    ) -> Tensor<B, 2> {
        let mut z = self.encode(x_t, modulation);
        for (layer, ((block, base), modulation)) in
            self.blocks.iter().zip(&lm.blocks).zip(&modulation.blocks).enumerate()
        {
            z = block.forward(z, base, modulation, plan, context(layer));
            visit(layer, &z);
        }
        z
    }

    /// Rows of a `[classes + 1, width]` table, `[rows, width]`.
    fn class_rows(&self, table: Tensor<B, 2>, rows: usize, classes: Option<&[usize]>) -> Tensor<B, 2> {
        let no_class = self.config.classes.len();
        let indices: Vec<i32> = match classes {
            Some(classes) => {
                assert_eq!(classes.len(), rows, "one class per row");
                classes.iter().map(|&class| class as i32).collect()
            }
            None => vec![no_class as i32; rows],
        };
        let indices = Tensor::<B, 1, Int>::from_data(indices.as_slice(), &table.device());
        table.select(0, indices)
    }
}

/// Joins the two paths before the final norm: `h + w(t, class) * z`. `hidden, z: [rows, H]`.
pub fn merge<B: Backend>(hidden: Tensor<B, 2>, z: Tensor<B, 2>, modulation: &Modulation<B>) -> Tensor<B, 2> {
    hidden + z * modulation.final_weight.clone()
}
