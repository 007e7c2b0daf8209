//! The L2D objective on a CPU: the same loss and gradients as [`super::L2dObjective`], by hand instead of by automatic
//! differentiation.
//!
//! It goes through the blocks once, the main path's and the diffusion path's side by side, so that each block's frozen
//! weights are unpacked once on the way there and once on the way back, whatever format they are kept in. Sequences are
//! ragged: padding is not computed. What the way back needs is written down on a tape, or, to save memory, computed again
//! from the block's input ([`Recompute`]).

mod block;
mod buffers;
mod ends;
mod frozen;
mod head;
mod layers;
mod layout;
mod lm;

use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::Backend;
use l2d_core::cpu::dense::{Products, gate_branch, gate_branch_backward};
use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::{Dropout, Lm};
use serde::{Deserialize, Serialize};

use self::block::{HostBlock, Names, Step, Tape};
use self::buffers::Buffers;
use self::ends::{Conditioning, Encoder, Inputs};
use self::frozen::{Base, Direction, Weights, embed};
use self::head::Head;
use self::layers::{Gradients, Parameters};
use self::layout::Layout;
pub use self::lm::HostLm;
use super::draws::{Draws, Labelled};
use super::l2d::summed;
use super::loss::StepLoss;
use crate::optimiser::NamedGradients;

/// What is computed a second time on the way back instead of being kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing: fastest.
    #[default]
    None,
    /// Each block of what is trained, from its input: a third more products in it, a tenth of the memory.
    Blocks,
}

/// Trains a [`DiffusionPath`] beside a frozen [`Lm`] whose weights are packed ([`Lm::packed`], [`Lm::load_packed`]) in any
/// format. Everything is f32 but for the factors of the large products, which may be rounded ([`Products`]); not those of
/// the gradients of weights, of low-rank corrections, and of attention.
#[derive(Debug)]
pub struct HostL2d<B: Backend> {
    lm: Lm<B>,
    base: Base,
    products: Products,
    /// Rows of logits held at a time, at most.
    pub head_chunk: usize,
    /// What is not kept for the way back.
    pub recompute: Recompute,
    memory: Mutex<(Buffers, Weights)>,
}

impl<B: Backend> HostL2d<B> {
    /// An objective beside `lm`, which keeps nothing back from its tape and holds at most 1024 rows of logits.
    ///
    /// # Panics
    /// If the LM is not packed, or has low-rank corrections of its own.
    pub fn new(lm: Lm<B>, products: Products) -> Self {
        assert!(lm.is_packed(), "the objective on the host reads packed weights");
        assert!(lm.blocks.iter().all(|block| block.query.lora.is_none()), "merge the base's own corrections first");
        let base = Base::of(&lm, products);
        Self { lm, base, products, head_chunk: 1024, recompute: Recompute::None, memory: Mutex::default() }
    }

    /// The frozen LM.
    pub fn lm(&self) -> &Lm<B> {
        &self.lm
    }

    /// The loss of a batch under given draws, and the gradient of its SUM over labelled positions and draws.
    ///
    /// # Panics
    /// When the batch has no label or the draws do not fit it.
    pub fn loss_and_gradients(
        &self,
        path: &DiffusionPath<B>,
        batch: &Labelled<'_>,
        draws: &Draws,
    ) -> (StepLoss, NamedGradients<B>) {
        let (loss, gradients) = self.run(path, batch, draws, true);
        (loss, gradients.into_named(&self.lm.device()))
    }

    /// The loss alone; for validation.
    ///
    /// # Panics
    /// As [`HostL2d::loss_and_gradients`].
    pub fn loss(&self, path: &DiffusionPath<B>, batch: &Labelled<'_>, draws: &Draws) -> StepLoss {
        self.run(path, batch, draws, false).0
    }

    fn run(&self, path: &DiffusionPath<B>, batch: &Labelled<'_>, draws: &Draws, learn: bool) -> (StepLoss, Gradients) {
        let layout = Layout::new(batch, draws.per_position(batch));
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (buffers, weights) = &mut *memory;
        let parameters = Parameters::of::<B, _>(path, self.products);
        let dropout = draws.dropout.as_ref().filter(|_| learn).map(|dropout| dropout.of_rows(dropout.seeds.clone()));
        let mut pass = Pass {
            objective: self,
            parameters: &parameters,
            path,
            layout: &layout,
            inputs: Inputs {
                targets: &layout.targets,
                timesteps: &draws.timesteps,
                noise: &draws.noise,
                classes: draws.classes.as_deref(),
            },
            dropout: dropout.as_ref(),
            buffers,
            weights,
            gradients: Gradients::default(),
        };
        let losses = pass.run(learn);
        let gradients = pass.gradients;
        buffers.end_step();
        (summed(&losses, draws), gradients)
    }
}

/// One way there and back.
struct Pass<'a, B: Backend> {
    objective: &'a HostL2d<B>,
    parameters: &'a Parameters,
    path: &'a DiffusionPath<B>,
    layout: &'a Layout,
    inputs: Inputs<'a>,
    dropout: Option<&'a Dropout>,
    buffers: &'a mut Buffers,
    weights: &'a mut Weights,
    gradients: Gradients,
}

/// A block's tape, or its input where the rest is computed again.
enum Kept {
    Tape(Box<Tape>),
    Input(Vec<f32>),
}

impl<B: Backend> Pass<'_, B> {
    /// The losses, row by row; where `learn`, the gradients of their sum are added up.
    fn run(&mut self, learn: bool) -> Vec<f32> {
        let Self { objective, parameters, path, layout, inputs, .. } = *self;
        let (lm, base) = (&objective.lm, &objective.base);
        let (config, diffusion, hidden) = (&lm.config, &path.config, lm.config.hidden_size);
        let (main_angles, row_angles) =
            (Layout::angles(&lm.rope, &layout.main), Layout::angles(&lm.rope, &layout.rows));
        let conditioning = Conditioning::forward(parameters, diffusion, hidden, inputs, self.buffers);
        let (encoder, mut z) = Encoder::forward(embed(lm, inputs.targets), parameters, diffusion, inputs, self.buffers);
        let step = Step {
            config,
            variant: diffusion.variant,
            conditioning: diffusion.conditioning,
            heads: base.heads,
            angles: &row_angles,
            sequences: &layout.rows,
            tau: &conditioning.tau,
            dropout: self.dropout,
        };
        let names: Vec<Names> = (0..lm.blocks.len()).map(Names::of).collect();

        let mut x = embed(lm, &layout.tokens);
        let mut kept = Vec::with_capacity(names.len());
        for (layer, names) in names.iter().enumerate() {
            let frozen = base.block(lm, layer, self.weights, Direction::Forward);
            let (keys, values) =
                frozen.main_forward(&mut x, config, base.heads, &main_angles, &layout.main, self.buffers);
            let block = HostBlock { step, base: frozen, parameters, names };
            let (out, tape) = block.forward(z, &keys, &values, self.buffers);
            z = out;
            match (learn, objective.recompute) {
                (true, Recompute::None) => kept.push((Kept::Tape(Box::new(tape)), keys, values)),
                (true, Recompute::Blocks) => kept.push((Kept::Input(tape.into_input(self.buffers)), keys, values)),
                (false, _) => {
                    tape.give_to(self.buffers);
                    [keys, values].into_iter().for_each(|buffer| self.buffers.give(buffer));
                }
            }
        }
        let main = layout.select(&x, hidden, self.buffers);
        self.buffers.give(x);
        let mut merged = self.buffers.take(z.len());
        gate_branch(&mut merged, &main, &z, &conditioning.final_weight, hidden, 0);
        self.buffers.give(main);
        let (losses, dmerged) = self.head_loss(&merged, learn);
        self.buffers.give(merged);
        if !learn {
            return losses;
        }

        // `z` becomes its gradient, and that of the final weight goes where it belongs.
        let mut dweight = self.buffers.take(z.len());
        gate_branch_backward(&mut z, &mut dweight, &dmerged, &conditioning.final_weight, hidden, 0);
        self.buffers.give(dmerged);
        let mut dtau = self.buffers.zeros(conditioning.tau.len());
        for (layer, (kept, keys, values)) in kept.into_iter().enumerate().rev() {
            let tape = match kept {
                Kept::Tape(tape) => *tape,
                Kept::Input(input) => {
                    let frozen = base.block(lm, layer, self.weights, Direction::ForwardDiffusion);
                    let block = HostBlock { step, base: frozen, parameters, names: &names[layer] };
                    let (out, tape) = block.forward(input, &keys, &values, self.buffers);
                    self.buffers.give(out);
                    tape
                }
            };
            let frozen = base.block(lm, layer, self.weights, Direction::BackwardDiffusion);
            let block = HostBlock { step, base: frozen, parameters, names: &names[layer] };
            block.backward(&mut z, &mut dtau, tape, (&keys, &values), &mut self.gradients, self.buffers);
            [keys, values].into_iter().for_each(|buffer| self.buffers.give(buffer));
        }
        encoder.backward(parameters, &mut self.gradients, diffusion, inputs, &z, self.buffers);
        self.buffers.give(z);
        conditioning.backward(parameters, &mut self.gradients, diffusion, inputs, dweight, dtau, self.buffers);
        losses
    }

    fn head_loss(&mut self, merged: &[f32], learn: bool) -> (Vec<f32>, Vec<f32>) {
        let HostL2d { lm, base, head_chunk, .. } = self.objective;
        let head = Head {
            norm: &base.final_norm,
            eps: lm.config.rms_norm_eps,
            weight: &base.head,
            vocabulary: lm.config.vocab_size,
            chunk: *head_chunk,
        };
        let learning = learn.then_some((&mut self.gradients, None));
        head.loss(merged, self.inputs.targets, learning, self.buffers)
    }
}
