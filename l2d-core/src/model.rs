//! The LM and its diffusion path, joined: main pass, then any number of diffusion evaluations on top of it.

use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use crate::cpu::WeightFormat;
use crate::diffusion::{DiffusionPath, Modulation, merge};
use crate::lm::{AttentionPlan, KvCache, Lm};

/// A base LM with a diffusion path.
#[derive(Debug, Clone)]
pub struct L2d<B: Backend> {
    /// The frozen base.
    pub lm: Lm<B>,
    /// The trained path.
    pub path: DiffusionPath<B>,
}

impl<B: Backend> L2d<B> {
    /// The same model for decoding on a CPU: see [`Lm::packed`]. The path stays in f32.
    pub fn packed(self, format: WeightFormat) -> Self {
        Self { lm: self.lm.packed(format), path: self.path.packed() }
    }

    /// The same model with the base's matrices multiplied in the given format: see [`Lm::computed_in`]. The path's own weights stay in
    /// f32.
    pub fn computed_in(self, dtype: FloatDType) -> Self {
        Self { lm: self.lm.computed_in(dtype), ..self }
    }

    /// Logits `[rows, V]` of the joined model for diffusion tokens `x_t: [rows, d]` at the rows of `plan`
    /// (`rows = batch * plan.rows()`, sequence-major).
    ///
    /// `hidden: [rows, H]` is the main path before the final norm at the same positions; `cache` holds the main path's
    /// keys and values, at least up to those positions. Where `t = 0` the result is the base LM's, bit for bit.
    pub fn logits(
        &self,
        cache: &KvCache<B>,
        plan: &AttentionPlan<B>,
        modulation: &Modulation<B>,
        hidden: Tensor<B, 2>,
        x_t: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let z = self.path.forward(&self.lm, cache, plan, modulation, x_t);
        self.lm.logits(merge(hidden, z, modulation))
    }
}
