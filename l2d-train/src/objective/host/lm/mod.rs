//! Ordinary next-token cross-entropy on a CPU, by hand: the same loss and gradients as [`LmObjective`](super::super::LmObjective),
//! for all of the LM's weights or for low-rank corrections of packed ones.

mod block;

use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::{AutodiffBackend, Backend};
use l2d_core::cpu::dense::{Heads, Products, Right, View};
use l2d_core::diffusion::Variant;
use l2d_core::lm::{Dropout, Lm, host_values};

use self::block::{LmBlock, Step, Tape};
use super::super::draws::{DropoutDraws, Labelled};
use super::super::loss::StepLoss;
use super::Recompute;
use super::buffers::Buffers;
use super::frozen::{Base, Direction, Weights, embed};
use super::head::{Head, TrainedHead};
use super::layers::{Adapted, Frozen, Gradients, Parameters};
use super::layout::Layout;
use crate::optimiser::NamedGradients;

/// Trains the LM's own weights, or low-rank corrections of its blocks beside packed weights.
#[derive(Debug)]
pub struct HostLm {
    /// What stays as it is, where corrections are trained.
    base: Option<Base>,
    products: Products,
    /// Rows of logits held at a time, at most.
    pub head_chunk: usize,
    /// What is not kept for the way back.
    pub recompute: Recompute,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    buffers: Buffers,
    weights: Weights,
    /// The head `[H, V]`, and on its side, where it is trained.
    head: [Right; 2],
    /// Stands where a trained layer needs no frozen weight.
    none: Right,
}

impl HostLm {
    /// An objective for all weights of a dense LM, or for the corrections of a packed one; it holds at most 1024 rows of
    /// logits.
    pub fn new<B: Backend>(lm: &Lm<B>, products: Products) -> Self {
        let base = lm.is_packed().then(|| Base::of(lm, products));
        Self { base, products, head_chunk: 1024, recompute: Recompute::None, memory: Mutex::default() }
    }

    /// The loss of a batch and the gradient of its SUM over labelled positions. Trained are the model's parameters that
    /// require gradients: all, or those of the corrections. `dropout` has a seed for each sequence.
    ///
    /// # Panics
    /// When the batch has no label, or the model is not of the kind the objective was made for.
    pub fn loss_and_gradients<AB: AutodiffBackend>(
        &self,
        lm: &Lm<AB>,
        batch: &Labelled<'_>,
        dropout: Option<&DropoutDraws>,
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        let (loss, gradients) = self.run(lm, batch, dropout, true);
        (loss, gradients.into_named(&lm.device()))
    }

    /// The loss alone; for validation.
    ///
    /// # Panics
    /// As [`HostLm::loss_and_gradients`].
    pub fn loss<AB: AutodiffBackend>(&self, lm: &Lm<AB>, batch: &Labelled<'_>) -> StepLoss {
        self.run(lm, batch, None, false).0
    }

    fn run<B: Backend>(
        &self,
        lm: &Lm<B>,
        batch: &Labelled<'_>,
        dropout: Option<&DropoutDraws>,
        learn: bool,
    ) -> (StepLoss, Gradients) {
        assert_eq!(self.base.is_some(), lm.is_packed(), "made for this kind of model");
        let layout = Layout::new(batch, 1);
        assert!(!layout.targets.is_empty(), "a batch with labels");
        let dropout = dropout.map(|dropout| dropout.of_rows(layout.token_seeds(batch, dropout)));
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory { buffers, weights, head, none } = &mut *memory;
        let parameters = Parameters::trained::<B, _>(lm, self.products);
        let names: Vec<Names> = (0..lm.blocks.len()).map(Names::of).collect();
        let mut pass = Pass {
            objective: self,
            lm,
            parameters: &parameters,
            names: &names,
            layout: &layout,
            dropout: dropout.as_ref(),
            buffers,
            weights,
            head,
            none,
            gradients: Gradients::default(),
        };
        let losses = pass.run(learn);
        let gradients = pass.gradients;
        buffers.end_step();
        let sum = losses.iter().map(|&loss| f64::from(loss)).sum();
        (StepLoss { sum, tokens: losses.len(), by_timestep: None }, gradients)
    }
}

/// Names of a block's parameters.
#[derive(Debug)]
struct Names {
    norms: [String; 2],
    /// Query, key, value, output, gate, up, down.
    layers: [String; 7],
    /// Their corrections.
    corrections: [String; 7],
}

impl Names {
    fn of(layer: usize) -> Self {
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let layers = ["query", "key", "value", "output", "mlp.gate", "mlp.up", "mlp.down"].map(name);
        let corrections = std::array::from_fn(|i| format!("{}.lora", layers[i]));
        Self { norms: ["attention_norm", "mlp_norm"].map(name), layers, corrections }
    }
}

/// One way there and back.
struct Pass<'a, B: Backend> {
    objective: &'a HostLm,
    lm: &'a Lm<B>,
    parameters: &'a Parameters,
    names: &'a [Names],
    layout: &'a Layout,
    dropout: Option<&'a Dropout>,
    buffers: &'a mut Buffers,
    weights: &'a mut Weights,
    head: &'a mut [Right; 2],
    none: &'a Right,
    gradients: Gradients,
}

/// A block's tape, or its input where the rest is computed again.
enum Kept {
    Tape(Box<Tape>),
    Input(Vec<f32>),
}

impl<B: Backend> Pass<'_, B> {
    /// The losses, label by label; where `learn`, the gradients of their sum are added up.
    fn run(&mut self, learn: bool) -> Vec<f32> {
        let Self { objective, lm, parameters, names, layout, none, .. } = *self;
        let base = objective.base.as_ref();
        let (config, hidden) = (&lm.config, lm.config.hidden_size);
        let angles = Layout::angles(&lm.rope, &layout.main);
        let heads = Heads { queries: config.num_heads, keys: config.num_kv_heads, size: config.head_dim };
        let step = Step { config, heads, angles: &angles, sequences: &layout.main, parameters, dropout: self.dropout };

        let mut x = embed(lm, &layout.tokens);
        let mut kept = Vec::with_capacity(names.len());
        for (layer, names) in names.iter().enumerate() {
            let block = block(step, lm, base, layer, names, self.weights, Direction::Forward, none);
            let (out, tape) = block.forward(x, self.buffers);
            x = out;
            match (learn, objective.recompute) {
                (true, Recompute::None) => kept.push(Kept::Tape(Box::new(tape))),
                (true, Recompute::Blocks) => kept.push(Kept::Input(tape.into_input(self.buffers))),
                (false, _) => tape.give_to(self.buffers),
            }
        }
        let rows = layout.select(&x, hidden, self.buffers);
        let (losses, drows) = self.head_loss(&rows, learn);
        self.buffers.give(rows);
        if !learn {
            self.buffers.give(x);
            return losses;
        }
        let mut dx = x;
        dx.fill(0.0);
        for (row, &place) in drows.chunks_exact(hidden).zip(&layout.places) {
            dx[place * hidden..][..hidden].copy_from_slice(row);
        }
        self.buffers.give(drows);
        for (layer, kept) in kept.into_iter().enumerate().rev() {
            let names = &names[layer];
            let tape = match kept {
                Kept::Tape(tape) => *tape,
                Kept::Input(input) => {
                    let block = block(step, lm, base, layer, names, self.weights, Direction::Forward, none);
                    let (out, tape) = block.forward(input, self.buffers);
                    self.buffers.give(out);
                    tape
                }
            };
            let block = block(step, lm, base, layer, names, self.weights, Direction::Backward, none);
            block.backward(&mut dx, tape, &mut self.gradients, self.buffers);
        }
        if base.is_none() {
            let table = self.gradients.of("embedding", "", config.vocab_size * hidden);
            for (row, &token) in dx.chunks_exact(hidden).zip(&layout.tokens) {
                table[token as usize * hidden..][..hidden].iter_mut().zip(row).for_each(|(sum, d)| *sum += d);
            }
        }
        self.buffers.give(dx);
        losses
    }

    /// Losses of the hidden states `[labels, H]` at labelled positions, and the gradient of their sum.
    fn head_loss(&mut self, hidden: &[f32], learn: bool) -> (Vec<f32>, Vec<f32>) {
        let Self { objective, lm, parameters, .. } = *self;
        let config = &lm.config;
        let weight;
        let (norm_weight, head): (&[f32], &[Right; 2]) = match &objective.base {
            Some(base) => (&base.final_norm, &base.head),
            None => {
                // A tied head is the table of embeddings on its side.
                let matrix = match lm.head {
                    Some(_) => View::new(parameters.get("head", "weight"), config.vocab_size),
                    None => View::new(parameters.get("embedding", ""), config.hidden_size).t(),
                };
                self.head[0].pack(matrix, objective.products);
                if learn {
                    self.head[1].pack(matrix.t(), objective.products);
                }
                weight = host_values(lm.final_norm.weight.val());
                (&weight, self.head)
            }
        };
        let head = Head {
            norm: norm_weight,
            eps: config.rms_norm_eps,
            weight: head,
            vocabulary: config.vocab_size,
            chunk: objective.head_chunk,
        };
        let trained = objective.base.is_none().then_some(match lm.head {
            Some(_) => TrainedHead::Own,
            None => TrainedHead::Tied,
        });
        let learning = learn.then_some((&mut self.gradients, trained));
        head.loss(hidden, &self.layout.targets, learning, self.buffers)
    }
}

/// The layer's block, its matrices packed for one direction where they are frozen.
fn block<'a, B: Backend>(
    step: Step<'a>,
    lm: &Lm<B>,
    base: Option<&'a Base>,
    layer: usize,
    names: &'a Names,
    weights: &'a mut Weights,
    direction: Direction,
    none: &'a Right,
) -> LmBlock<'a> {
    let source = &lm.blocks[layer];
    let linears =
        [&source.query, &source.key, &source.value, &source.output, &source.mlp.gate, &source.mlp.up, &source.mlp.down];
    match base {
        Some(base) => {
            let frozen = base.block(lm, layer, weights, direction);
            let all = [frozen.query, frozen.key, frozen.value, frozen.output, frozen.gate, frozen.up, frozen.down];
            let layers = std::array::from_fn(|i| {
                let lora = linears[i].lora.as_ref().expect("a packed model is trained by its corrections");
                let [_, rank] = lora.a.shape().dims();
                let variant = Variant::Lora { rank, alpha: lora.scale * rank as f64 };
                let dropout = step.dropout.map(|dropout| (dropout, layer, i));
                Adapted { base: all[i], variant, prefix: &names.corrections[i], dropout }
            });
            let norms = [(frozen.attention_norm, &names.norms[0][..]), (frozen.mlp_norm, &names.norms[1])];
            LmBlock { step, norms, layers, full: false }
        }
        None => {
            let layers = std::array::from_fn(|i| {
                let [inputs, outputs] = linears[i].shape();
                let bias = step.parameters.find(&names.layers[i], "bias");
                let base = Frozen { weight: none, bias, inputs, outputs };
                Adapted { base, variant: Variant::Full, prefix: &names.layers[i], dropout: None }
            });
            let norms = std::array::from_fn(|i| (step.parameters.get(&names.norms[i], "weight"), &names.norms[i][..]));
            LmBlock { step, norms, layers, full: true }
        }
    }
}
