//! Ordinary next-token cross-entropy: pretraining from scratch, full finetuning, and LoRA finetuning of the LM itself.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use l2d_core::lm::{Linear, Lm, Lora, host_values};
use rand_chacha::ChaCha8Rng;

use super::Recompute;
use super::draws::{DropoutDraws, Labelled};
use super::loss::{StepLoss, chunked_head_loss, chunked_head_loss_only, cross_entropy, ids};
use crate::optimiser::NamedGradients;

/// Trains the LM's own weights on the labelled positions.
#[derive(Debug, Clone, Copy)]
pub struct LmObjective {
    /// Rows of logits held at a time where the head is frozen or no gradient is needed.
    pub head_chunk: usize,
    /// What is not kept for the way back.
    pub recompute: Recompute,
}

impl Default for LmObjective {
    /// At most 1024 rows of logits, everything kept.
    fn default() -> Self {
        Self { head_chunk: 1024, recompute: Recompute::None }
    }
}

impl LmObjective {
    /// The loss of a batch and the gradient of its SUM over labelled positions. `dropout` has a seed for each sequence.
    ///
    /// # Panics
    /// When the batch has no label.
    pub fn loss_and_gradients<AB: AutodiffBackend>(
        &self,
        lm: &Lm<AB>,
        batch: &Labelled<'_>,
        dropout: Option<&DropoutDraws>,
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        let dropping = dropout.map(|dropout| dropping(lm.clone(), batch, dropout));
        let lm = dropping.as_ref().unwrap_or(lm);
        if self.recompute == Recompute::Blocks {
            return self.by_blocks(lm, batch);
        }
        let (hidden, targets) = labelled_hidden(lm, batch);
        let collect = |gradients: AB::Gradients| NamedGradients::collect::<AB, _>(lm, &gradients);
        if !lm.final_norm.weight.is_require_grad() {
            // All from the final norm on is frozen (LoRA): its part of the chain rule runs in chunks.
            let (losses, gradient) = chunked_head_loss(lm, hidden.clone().inner(), &targets, self.head_chunk);
            return (summed(&losses), collect((hidden * Tensor::from_inner(gradient)).sum().backward()));
        }
        let losses = cross_entropy(lm.logits(hidden), ids(&targets, &lm.device()));
        let values = host_values(losses.clone().inner());
        (summed(&values), collect(losses.sum().backward()))
    }

    /// The loss alone, without differentiation; for validation.
    pub fn loss<B: Backend>(&self, lm: &Lm<B>, batch: &Labelled<'_>) -> StepLoss {
        let (hidden, targets) = labelled_hidden(lm, batch);
        summed(&chunked_head_loss_only(lm, hidden, &targets, self.head_chunk))
    }
}

/// Hidden states at the labelled positions, `[labels, H]`, and their targets.
fn labelled_hidden<B: Backend>(lm: &Lm<B>, batch: &Labelled<'_>) -> (Tensor<B, 2>, Vec<u32>) {
    let length = batch.tokens.first().map_or(0, Vec::len);
    let mut cache = lm.new_cache(vec![0; batch.tokens.len()], length);
    let hidden = lm.forward(batch.tokens, &mut cache);
    let (places, targets) = labelled_places(batch);
    (hidden.select(0, ids(&places, &lm.device())), targets)
}

/// Row of each label among the batch's `[batch * positions]`, and its target.
pub(super) fn labelled_places(batch: &Labelled<'_>) -> (Vec<u32>, Vec<u32>) {
    let length = batch.tokens.first().map_or(0, Vec::len);
    let pairs = || batch.labels.iter().enumerate().flat_map(|(b, labels)| labels.iter().map(move |label| (b, label)));
    let places = pairs().map(|(b, (position, _))| (b * length + position) as u32).collect();
    (places, pairs().map(|(_, &(_, target))| target).collect())
}

/// The LM with its low-rank corrections dropping some of their inputs.
fn dropping<B: Backend>(mut lm: Lm<B>, batch: &Labelled<'_>, dropout: &DropoutDraws) -> Lm<B> {
    let seeds = batch.tokens.iter().enumerate().flat_map(|(b, tokens)| dropout.of_tokens(b, tokens.len()));
    let dropout = dropout.of_rows(seeds.collect());
    for (i, block) in lm.blocks.iter_mut().enumerate() {
        let mlp = &mut block.mlp;
        let attention = [&mut block.query, &mut block.key, &mut block.value, &mut block.output];
        for (place, linear) in attention.into_iter().chain([&mut mlp.gate, &mut mlp.up, &mut mlp.down]).enumerate() {
            if let Some(lora) = &mut linear.lora {
                lora.dropout = Some(dropout.of_layer(i, place));
            }
        }
    }
    lm
}

pub(super) fn summed(losses: &[f32]) -> StepLoss {
    StepLoss { sum: losses.iter().map(|&loss| loss as f64).sum(), tokens: losses.len(), by_timestep: None }
}

/// Freezes an LM and gives each linear layer of its blocks a fresh low-rank correction: the weight-finetuning baseline
/// (paper: all linear layers, alpha 64).
pub fn add_lora<B: Backend>(lm: Lm<B>, rank: usize, alpha: f64, rng: &mut ChaCha8Rng) -> Lm<B> {
    let device = lm.device();
    let mut lm = lm.no_grad();
    let mut adapt = |linear: &mut Linear<B>| {
        let [inputs, outputs] = linear.shape();
        linear.lora = Some(Lora::init(inputs, outputs, rank, alpha, rng, &device));
    };
    for block in &mut lm.blocks {
        adapt(&mut block.query);
        adapt(&mut block.key);
        adapt(&mut block.value);
        adapt(&mut block.output);
        adapt(&mut block.mlp.gate);
        adapt(&mut block.mlp.up);
        adapt(&mut block.mlp.down);
    }
    lm
}
