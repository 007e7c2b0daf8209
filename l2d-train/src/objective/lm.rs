//! Ordinary next-token cross-entropy: pretraining from scratch, full finetuning, and LoRA finetuning of the LM itself.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use l2d_core::lm::{Linear, Lm, Lora, host_values};
use rand_chacha::ChaCha8Rng;

use super::draws::Labelled;
use super::loss::{StepLoss, chunked_head_loss, chunked_head_loss_only, cross_entropy, ids};

/// Trains the LM's own weights on the labelled positions.
#[derive(Debug, Clone, Copy)]
pub struct LmObjective {
    /// Rows of logits held at a time where the head is frozen or no gradient is needed.
    pub head_chunk: usize,
}

impl LmObjective {
    /// The loss of a batch and the gradient of its SUM over labelled positions.
    ///
    /// # Panics
    /// When the batch has no label.
    pub fn loss_and_gradients<AB: AutodiffBackend>(
        &self,
        lm: &Lm<AB>,
        batch: &Labelled<'_>,
    ) -> (StepLoss, AB::Gradients) {
        let (hidden, targets) = labelled_hidden(lm, batch);
        if !lm.final_norm.weight.is_require_grad() {
            // All from the final norm on is frozen (LoRA): its part of the chain rule runs in chunks.
            let (losses, gradient) = chunked_head_loss(lm, hidden.clone().inner(), &targets, self.head_chunk);
            return (summed(&losses), (hidden * Tensor::from_inner(gradient)).sum().backward());
        }
        let losses = cross_entropy(lm.logits(hidden), ids(&targets, &lm.device()));
        let values = host_values(losses.clone().inner());
        (summed(&values), losses.sum().backward())
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
    let pairs = || batch.labels.iter().enumerate().flat_map(|(b, labels)| labels.iter().map(move |label| (b, label)));
    let places: Vec<u32> = pairs().map(|(b, (position, _))| (b * length + position) as u32).collect();
    let targets = pairs().map(|(_, &(_, target))| target).collect();
    (hidden.select(0, ids(&places, &lm.device())), targets)
}

fn summed(losses: &[f32]) -> StepLoss {
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
