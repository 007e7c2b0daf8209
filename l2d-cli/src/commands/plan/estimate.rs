//! Numbers of parameters, and memory by part, from the settings alone.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use l2d_core::config::LmConfig;
use l2d_train::data::Example;
use l2d_train::objective::Recompute;
use l2d_train::optimiser::trainable_sizes;
use l2d_train::{FrozenWeights, ObjectiveKind, TrainConfig};
use serde::Serialize;

use super::DataPlan;
use crate::commands::train::learner::Learner;
use crate::error::CliError;

/// Bytes of an f32.
const F32: f64 = 4.0;

/// How many parameters learn.
#[derive(Debug, Serialize)]
pub(super) struct Parameters {
    /// Updated.
    pub(super) trained: usize,
    /// Of the model under training, frozen by its patterns; gradients are computed and dropped.
    pub(super) held: usize,
    /// All that stays as it is.
    pub(super) frozen: usize,
}

impl Parameters {
    /// Counts them, by the settings' patterns.
    pub(super) fn of<B: Backend>(learner: &Learner<B>, lm: &LmConfig, config: &TrainConfig) -> Result<Self, CliError> {
        let groups = config.parameter_groups()?;
        let sizes = match learner {
            Learner::L2d(_, path) => trainable_sizes::<Autodiff<B>, _>(&**path),
            Learner::Lm(_, lm) => trainable_sizes::<Autodiff<B>, _>(&**lm),
        };
        groups.check(&sizes.keys().cloned().collect::<Vec<_>>())?;
        let all: usize = sizes.values().sum();
        let trained: usize = sizes.iter().filter(|(name, _)| groups.trains(name)).map(|(_, size)| size).sum();
        let base = if config.objective == ObjectiveKind::Full { 0 } else { lm.num_parameters() };
        Ok(Self { trained, held: all - trained, frozen: base + all - trained })
    }
}

/// Bytes by part. The activations are an estimate from the shapes of what the way back reads; the rest is counted.
#[derive(Debug, Serialize)]
pub(super) struct Parts {
    base: f64,
    embedding_and_head: f64,
    trained_weights: f64,
    gradients: f64,
    moments: f64,
    running_mean: f64,
    activations: f64,
    logits: f64,
    tokens: f64,
}

impl Parts {
    /// At a micro-batch of the examples in `worst`. `packed_bytes` is 0 where the base is dense.
    pub(super) fn new(
        lm: &LmConfig,
        config: &TrainConfig,
        parameters: &Parameters,
        packed_bytes: usize,
        worst: &[&Example],
        data: &DataPlan,
    ) -> Self {
        let (h, v) = (lm.hidden_size as f64, lm.vocab_size as f64);
        let (trained, held) = (parameters.trained as f64, parameters.held as f64);
        let heads = if lm.tie_word_embeddings { 1.0 } else { 2.0 };
        let (base, embedding_and_head) = match (config.objective, packed_bytes) {
            // The weights themselves are what is trained.
            (ObjectiveKind::Full, _) => (0.0, 0.0),
            (_, 0) => {
                let bytes = match config.frozen_weights {
                    FrozenWeights::Stored | FrozenWeights::F32 => F32,
                    FrozenWeights::Bf16 | FrozenWeights::F16 => 2.0,
                };
                ((lm.num_parameters() as f64 - heads * v * h) * bytes, heads * v * h * F32)
            }
            (_, packed) => {
                // Of the packed matrices one is the head; the table that embeds is dense.
                let weights = lm.num_parameters() as f64 - (heads - 1.0) * v * h;
                let head = packed as f64 * (v * h / weights);
                (packed as f64 - head, head + v * h * F32)
            }
        };
        let tokens: f64 = worst.iter().map(|example| example.tokens.len() as f64 - 1.0).sum();
        let labels: f64 = worst.iter().map(|example| (example.tokens.len() - example.prompt) as f64).sum();
        let draws = if config.objective == ObjectiveKind::L2d { config.draws_per_position as f64 } else { 1.0 };
        Self {
            base,
            embedding_and_head,
            trained_weights: (trained + held) * F32,
            // The update makes the new weights beside the old ones.
            gradients: (trained + held) * F32,
            moments: 2.0 * trained * F32,
            running_mean: if config.ema_decay > 0.0 { trained * F32 } else { 0.0 },
            activations: activations(lm, config, tokens, labels * draws),
            // Logits and their gradient.
            logits: 2.0 * (labels * draws).min(config.head_chunk as f64) * v * F32,
            // Tokens are on the disk, their index is not.
            tokens: 40.0 * data.examples as f64,
        }
    }

    pub(super) fn rows(&self) -> [(&'static str, f64); 9] {
        [
            ("frozen blocks", self.base),
            ("embedding and head", self.embedding_and_head),
            ("trained weights", self.trained_weights),
            ("gradients", self.gradients),
            ("AdamW's moments", self.moments),
            ("running mean of the weights", self.running_mean),
            ("activations (estimate)", self.activations),
            ("logits of a chunk", self.logits),
            ("index of the data", self.tokens),
        ]
    }

    pub(super) fn total(&self) -> f64 {
        self.rows().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a step keeps for its way back. A row of a block keeps its input, two normalised inputs, queries and attention's
/// result, and three rows of the MLP; a row of the main path beside a diffusion path keeps keys and values alone.
fn activations(lm: &LmConfig, config: &TrainConfig, tokens: f64, labels: f64) -> f64 {
    let (h, q, kv, f) =
        (lm.hidden_size as f64, lm.query_size() as f64, lm.kv_size() as f64, lm.intermediate_size as f64);
    let layers = lm.num_layers as f64;
    let block = 4.0 * h + 2.0 * q + 3.0 * f;
    let numbers = match config.objective {
        ObjectiveKind::L2d => {
            // Six modulations of a row, for each block.
            let row = block + 6.0 * h;
            let kept = match config.recompute {
                Recompute::None => layers * row,
                Recompute::Blocks => layers * h + row,
            };
            tokens * (layers * 2.0 * kv + block) + labels * kept
        }
        ObjectiveKind::Full | ObjectiveKind::Lora => {
            let row = block + 2.0 * kv;
            let kept = match config.recompute {
                Recompute::None => layers * row,
                Recompute::Blocks => layers * h + row,
            };
            tokens * kept
        }
    };
    numbers * F32
}
