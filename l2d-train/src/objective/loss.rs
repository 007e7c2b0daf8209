//! Sums of token losses, whole and by bins of diffusion time.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use l2d_core::lm::{Lm, host_values};
use serde::{Deserialize, Serialize};

/// Number of equal bins of diffusion time that losses are reported in.
pub const TIMESTEP_BINS: usize = 10;

/// Sums of token losses in each bin `[i / TIMESTEP_BINS, (i + 1) / TIMESTEP_BINS)` of diffusion time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LossByTimestep {
    /// Sum of cross-entropies, in nats.
    pub sum: [f64; TIMESTEP_BINS],
    /// Number of tokens.
    pub tokens: [u64; TIMESTEP_BINS],
}

impl LossByTimestep {
    /// Counts one token's loss.
    pub fn add(&mut self, t: f32, loss: f32) {
        let bin = ((t * TIMESTEP_BINS as f32) as usize).min(TIMESTEP_BINS - 1);
        self.sum[bin] += loss as f64;
        self.tokens[bin] += 1;
    }

    /// Adds another report's sums.
    pub fn merge(&mut self, other: &Self) {
        for bin in 0..TIMESTEP_BINS {
            self.sum[bin] += other.sum[bin];
            self.tokens[bin] += other.tokens[bin];
        }
    }

    /// Mean loss of a bin; `None` while it is empty.
    pub fn mean(&self, bin: usize) -> Option<f64> {
        (self.tokens[bin] > 0).then(|| self.sum[bin] / self.tokens[bin] as f64)
    }
}

/// The loss of one (micro-)batch, as sums so that batches of different size add up exactly.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepLoss {
    /// Sum of cross-entropies over labelled positions, in nats.
    pub sum: f64,
    /// Labelled positions.
    pub tokens: usize,
    /// The same by diffusion time; `None` where there is no diffusion.
    pub by_timestep: Option<LossByTimestep>,
}

impl StepLoss {
    /// Adds another batch's sums.
    pub fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        self.tokens += other.tokens;
        match (&mut self.by_timestep, &other.by_timestep) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, Some(theirs)) => *mine = Some(*theirs),
            _ => {}
        }
    }

    /// Mean loss in nats per token.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }

    /// As numbers, exactly: infinities and what is no number too, which JSON does not know.
    pub(crate) fn to_numbers(&self) -> Vec<f64> {
        let mut numbers = vec![self.sum, self.tokens as f64];
        if let Some(bins) = &self.by_timestep {
            numbers.extend(bins.sum);
            numbers.extend(bins.tokens.map(|tokens| tokens as f64));
        }
        numbers
    }

    /// The inverse of [`StepLoss::to_numbers`]; `None` where they are not as many.
    pub(crate) fn from_numbers(numbers: &[f64]) -> Option<Self> {
        let (&[sum, tokens], bins) = numbers.split_first_chunk()?;
        let by_timestep = match bins {
            [] => None,
            _ => {
                let (sum, tokens) = bins.split_first_chunk()?;
                let tokens: &[f64; TIMESTEP_BINS] = tokens.try_into().ok()?;
                Some(LossByTimestep { sum: *sum, tokens: tokens.map(|tokens| tokens as u64) })
            }
        };
        Some(Self { sum, tokens: tokens as usize, by_timestep })
    }
}

/// Cross-entropy of every row: `logits: [rows, V]`, `targets: [rows]`, result `[rows, 1]` in nats.
pub(super) fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    log_softmax(logits, 1).gather(1, targets.unsqueeze_dim(1)) * -1.0
}

/// Losses `[rows]` of hidden states `[rows, H]` under the LM's frozen head, and the gradient `[rows, H]` of their sum.
///
/// Works on `chunk` rows at a time, so that the logits `[chunk, V]` and not `[rows, V]` bound the memory.
pub(super) fn chunked_head_loss<AB: AutodiffBackend>(
    lm: &Lm<AB>,
    hidden: Tensor<AB::InnerBackend, 2>,
    targets: &[u32],
    chunk: usize,
) -> (Vec<f32>, Tensor<AB::InnerBackend, 2>) {
    let device = hidden.device();
    let mut losses = Vec::with_capacity(targets.len());
    let mut gradients = Vec::new();
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let rows = Tensor::<AB, 2>::from_inner(hidden.clone().narrow(0, i * chunk, targets.len())).require_grad();
        let loss = cross_entropy(lm.logits(rows.clone()), ids(targets, &device));
        losses.extend(host_values(loss.clone().inner()));
        let grads = loss.sum().backward();
        gradients.push(rows.grad(&grads).expect("the loss depends on its rows"));
    }
    (losses, Tensor::cat(gradients, 0))
}

/// The same losses without gradients.
pub(super) fn chunked_head_loss_only<B: Backend>(
    lm: &Lm<B>,
    hidden: Tensor<B, 2>,
    targets: &[u32],
    chunk: usize,
) -> Vec<f32> {
    let device = hidden.device();
    let mut losses = Vec::with_capacity(targets.len());
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let rows = hidden.clone().narrow(0, i * chunk, targets.len());
        losses.extend(host_values(cross_entropy(lm.logits(rows), ids(targets, &device))));
    }
    losses
}

/// Indices as a tensor, `[rows]`.
pub(super) fn ids<B: Backend>(ids: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    Tensor::from_data(ids.as_slice(), device)
}
