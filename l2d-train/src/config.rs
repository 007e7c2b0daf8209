//! The settings of a run: as a person writes them, and checked.

use l2d_core::corruption::TimestepSampling;
use l2d_core::cpu::dense::Products;
use l2d_core::diffusion::{RawDiffusionConfig, Variant};
use serde::{Deserialize, Serialize};

use crate::data::{BadRows, Columns, SourceConfig, check_sources};
use crate::engine::EngineSettings;
use crate::error::{Result, TrainError};
use crate::objective::{DrawSettings, Recompute};
use crate::optimiser::{AdamWConfig, Decay, GroupConfig, Groups, Schedule, Warmup};

/// What is trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// The diffusion path beside the frozen LM.
    #[default]
    L2d,
    /// All weights of the LM, by next-token cross-entropy.
    Full,
    /// Low-rank corrections of the LM's linear layers, by next-token cross-entropy.
    Lora,
}

/// What makes a checkpoint the best, whose weights the run leaves behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BestBy {
    /// The lowest validation loss.
    #[default]
    Validation,
    /// The highest accuracy of generated answers, at the largest of `generate.steps`.
    Generation,
}

/// Validation by generating: problems that the model answers during the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// A task of `l2d eval`; absent = no problems are answered.
    pub task: Option<String>,
    /// The folder with its data.
    pub data: Option<String>,
    /// Updates between two rounds; 0 = only at the end.
    pub every: u64,
    /// The first so many problems.
    pub problems: usize,
    /// Evaluations per token, each a score of its own. 1 and 15 when absent; objectives `full` and `lora` have 1 alone.
    pub steps: Option<Vec<usize>>,
    /// Tokens of an answer, at most; the task's own limit when absent.
    pub max_tokens: Option<usize>,
    /// Answers that are decoded together.
    pub batch_size: usize,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self { task: None, data: None, every: 0, problems: 100, steps: None, max_tokens: None, batch_size: 16 }
    }
}

/// Number format of the frozen base's matrices in memory. What is computed with them is f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrozenWeights {
    /// On a CPU as the file stores them, quantised blocks too; elsewhere f32.
    #[default]
    Stored,
    /// 32 bits a weight.
    F32,
    /// 16 bits a weight, bfloat16; rounds what is finer.
    Bf16,
    /// 16 bits a weight, half precision; rounds what is finer.
    F16,
}

/// A run's settings. Every key may be left out; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// What is trained.
    pub objective: ObjectiveKind,
    /// Seeds initialisation, order and draws.
    pub seed: u64,
    /// Updates; `epochs` when absent.
    pub steps: Option<u64>,
    /// Passes over the data, when `steps` is absent.
    pub epochs: f64,
    /// Sequences per update.
    pub batch_size: usize,
    /// Sequences in memory at a time; gradients accumulate. The whole batch when absent.
    pub micro_batch_size: Option<usize>,
    /// Examples longer than this, or than the model's context, are dropped and counted.
    pub max_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning rate at both ends of the schedule.
    pub min_learning_rate: f64,
    /// Updates until the peak.
    pub warmup_steps: u64,
    /// How the rate rises.
    pub warmup: Warmup,
    /// How it falls.
    pub decay: Decay,
    /// Largest norm of all gradients together; larger ones are scaled down. 0 = no clipping.
    pub clip_norm: f64,
    /// A mean loss above this, in nats per token, ends the run as one that is no number does; 0 = no limit.
    pub max_loss: f64,
    /// AdamW.
    pub adamw: AdamWConfig,
    /// Globs over parameter names: what is trained; everything that the objective can train when empty.
    pub trainable: Vec<String>,
    /// Globs over parameter names: what is not, of that.
    pub freeze: Vec<String>,
    /// Learning rate and weight decay by parameter name; the first that matches decides.
    pub groups: Vec<GroupConfig>,
    /// Decay of the running mean of the trained weights, which is then validated and left behind; 0 = no mean.
    pub ema_decay: f64,
    /// The diffusion path (objective `l2d`).
    pub diffusion: RawDiffusionConfig,
    /// Training times (objective `l2d`).
    pub timesteps: TimestepSampling,
    /// Probability that a position's class is replaced by "no class" (objective `l2d` with classes).
    pub class_dropout: f64,
    /// Times and noises at each labelled position, which share one pass of the main path (objective `l2d`).
    pub draws_per_position: usize,
    /// What is computed again on the way back instead of being kept.
    pub recompute: Recompute,
    /// The factors of large products (on a CPU).
    pub matmul_precision: Products,
    /// How the frozen base is kept (objectives `l2d` and `lora`).
    pub frozen_weights: FrozenWeights,
    /// Rank of the low-rank corrections (objective `lora`).
    pub lora_rank: usize,
    /// Their alpha (objective `lora`).
    pub lora_alpha: f64,
    /// Probability that an input of a low-rank correction is dropped, in training (objective `lora`, and `l2d` with a path of
    /// corrections).
    pub lora_dropout: f64,
    /// Rows of logits held at a time. (Objective `full` trains the head too and holds those of a whole micro-batch.)
    pub head_chunk: usize,
    /// What becomes of rows that cannot be used.
    pub bad_rows: BadRows,
    /// Rows of a micro-batch are padded to a multiple of so many positions: few widths, for backends that compile a kernel for
    /// each. 1 = no more than needed.
    pub pad_to: usize,
    /// Columns of sources that do not name their own.
    pub columns: Columns,
    /// What is read; the paths of the command line where absent.
    pub sources: Vec<SourceConfig>,
    /// Part of the examples that is held back for validation.
    pub validation_fraction: f64,
    /// At most this many examples are held back.
    pub validation_examples: usize,
    /// Updates between validations; 0 = only at the end.
    pub validate_every: u64,
    /// Validations without an improvement after which the run ends; 0 = never.
    pub early_stop_patience: u64,
    /// A validation loss must be lower by this, in nats, to count as an improvement.
    pub early_stop_min_delta: f64,
    /// Validation by generating.
    pub generate: GenerateConfig,
    /// What makes a checkpoint the best.
    pub best: BestBy,
    /// Updates between lines of metrics.
    pub log_every: u64,
    /// Updates between checkpoints; 0 = only at the end.
    pub checkpoint_every: u64,
    /// Newest checkpoints to keep, besides the best. Older ones go when the newest has proven good by a finite loss.
    pub keep_last: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            objective: ObjectiveKind::L2d,
            seed: 0,
            steps: None,
            epochs: 1.0,
            batch_size: 32,
            micro_batch_size: None,
            max_tokens: 2048,
            learning_rate: 1e-4,
            min_learning_rate: 0.0,
            warmup_steps: 100,
            warmup: Warmup::Linear,
            decay: Decay::Linear,
            clip_norm: 1.0,
            max_loss: 50.0,
            adamw: AdamWConfig::default(),
            trainable: Vec::new(),
            freeze: Vec::new(),
            groups: Vec::new(),
            ema_decay: 0.0,
            diffusion: RawDiffusionConfig::default(),
            timesteps: TimestepSampling::default(),
            class_dropout: 0.2,
            draws_per_position: 1,
            recompute: Recompute::None,
            matmul_precision: Products::F32,
            frozen_weights: FrozenWeights::Stored,
            lora_rank: 32,
            lora_alpha: 64.0,
            lora_dropout: 0.0,
            head_chunk: 1024,
            bad_rows: BadRows::Error,
            pad_to: 1,
            columns: Columns::default(),
            sources: Vec::new(),
            validation_fraction: 0.02,
            validation_examples: 256,
            validate_every: 200,
            early_stop_patience: 0,
            early_stop_min_delta: 0.0,
            generate: GenerateConfig::default(),
            best: BestBy::Validation,
            log_every: 1,
            checkpoint_every: 200,
            keep_last: 2,
        }
    }
}

impl TrainConfig {
    /// Checks every range.
    pub fn check(&self) -> Result<()> {
        let fail = |key: &'static str, reason: String| Err(TrainError::Config { key, reason });
        let fraction = |x: f64| (0.0..1.0).contains(&x);
        if i64::try_from(self.seed).is_err() {
            return fail("seed", format!("{} is 2^63 or more, which config.toml cannot hold", self.seed));
        }
        if self.batch_size == 0 {
            return fail("batch_size", "0 sequences per update teach nothing".into());
        }
        if self.micro_batch_size == Some(0) {
            return fail("micro_batch_size", "must be at least 1".into());
        }
        if self.max_tokens < 2 {
            return fail("max_tokens", format!("{} holds no prompt and response", self.max_tokens));
        }
        for (key, value) in
            [("learning_rate", self.learning_rate), ("lora_alpha", self.lora_alpha), ("epochs", self.epochs)]
        {
            if !(value.is_finite() && value > 0.0) {
                return fail(key, format!("{value} is not a positive number"));
            }
        }
        if !(0.0..=self.learning_rate).contains(&self.min_learning_rate) {
            return fail("min_learning_rate", format!("{} is outside 0..=learning_rate", self.min_learning_rate));
        }
        if self.steps == Some(0) {
            return fail("steps", "must be at least 1".into());
        }
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.adamw;
        if !(fraction(beta1) && fraction(beta2)) {
            return fail("adamw.beta", format!("{beta1} and {beta2} must lie in [0, 1)"));
        }
        if !(eps > 0.0 && eps.is_finite() && weight_decay >= 0.0 && weight_decay.is_finite()) {
            return fail("adamw", format!("eps {eps} must be positive and weight_decay {weight_decay} not negative"));
        }
        if !(self.clip_norm >= 0.0 && self.clip_norm.is_finite()) {
            return fail("clip_norm", format!("{} is negative or not a number", self.clip_norm));
        }
        for (key, value) in [("max_loss", self.max_loss), ("early_stop_min_delta", self.early_stop_min_delta)] {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(key, format!("{value} is negative or not a number"));
            }
        }
        for (key, value) in [("ema_decay", self.ema_decay), ("lora_dropout", self.lora_dropout)] {
            if !fraction(value) {
                return fail(key, format!("{value} is outside [0, 1)"));
            }
        }
        let low_rank = match self.objective {
            ObjectiveKind::L2d => matches!(self.diffusion.variant, Variant::Lora { .. }),
            ObjectiveKind::Lora => true,
            ObjectiveKind::Full => false,
        };
        if self.lora_dropout > 0.0 && !low_rank {
            return fail("lora_dropout", "this run has no low-rank corrections that could drop anything".into());
        }
        if self.objective == ObjectiveKind::Full && self.frozen_weights != FrozenWeights::Stored {
            return fail("frozen_weights", "objective `full` trains the base: nothing of it is frozen".into());
        }
        self.parameter_groups()?;
        self.check_generation()?;
        if !fraction(self.timesteps.minimum_noise) {
            return fail("timesteps.minimum_noise", format!("{} is outside [0, 1)", self.timesteps.minimum_noise));
        }
        if !(0.0..=1.0).contains(&self.class_dropout) {
            return fail("class_dropout", format!("{} is outside [0, 1]", self.class_dropout));
        }
        if !fraction(self.validation_fraction) {
            return fail("validation_fraction", format!("{} is outside [0, 1)", self.validation_fraction));
        }
        self.check_data()?;
        if !(1..=1024).contains(&self.draws_per_position) {
            return fail("draws_per_position", format!("{} is outside 1..=1024", self.draws_per_position));
        }
        for (key, value) in [("lora_rank", self.lora_rank), ("pad_to", self.pad_to)] {
            if value > 1 << 16 {
                return fail(key, format!("{value} is above {}", 1 << 16));
            }
        }
        if self.early_stop_patience > 0 && (self.validation_fraction == 0.0 || self.validation_examples == 0) {
            let reason =
                "nothing is held back for validation (validation_fraction, validation_examples): it would do nothing";
            return fail("early_stop_patience", reason.into());
        }
        if self.lora_rank == 0 || self.head_chunk == 0 || self.log_every == 0 || self.keep_last == 0 {
            return fail("lora_rank, head_chunk, log_every, keep_last", "each must be at least 1".into());
        }
        Ok(())
    }

    fn check_generation(&self) -> Result<()> {
        let fail = |key: &'static str, reason: &str| Err(TrainError::Config { key, reason: reason.into() });
        let GenerateConfig { task, data, problems, steps, max_tokens, batch_size, .. } = &self.generate;
        if task.is_none() {
            return match self.best {
                BestBy::Validation => Ok(()),
                BestBy::Generation => fail("best", "`generation` needs problems to answer: name a `generate.task`"),
            };
        }
        if data.is_none() {
            return fail("generate.data", "which folder holds the task's problems?");
        }
        if *problems == 0 || *batch_size == 0 || *max_tokens == Some(0) {
            return fail("generate.problems, generate.batch_size, generate.max_tokens", "each must be at least 1");
        }
        if steps.as_ref().is_some_and(|steps| steps.is_empty() || steps.contains(&0)) {
            return fail("generate.steps", "must name numbers of evaluations, each at least 1");
        }
        if self.objective != ObjectiveKind::L2d && self.generate_steps() != [1] {
            return fail("generate.steps", "objectives `full` and `lora` answer with 1 evaluation per token alone");
        }
        Ok(())
    }

    /// Evaluations per token of the answers that are generated during the run.
    pub fn generate_steps(&self) -> Vec<usize> {
        let usual = if self.objective == ObjectiveKind::L2d { vec![1, 15] } else { vec![1] };
        self.generate.steps.clone().unwrap_or(usual)
    }

    /// The rules by parameter name.
    ///
    /// # Errors
    /// A pattern that is no glob, or a number out of range.
    pub fn parameter_groups(&self) -> Result<Groups> {
        Groups::new(&self.trainable, &self.freeze, &self.groups)
    }

    /// How the L2D objective draws.
    pub fn draws(&self) -> DrawSettings {
        let Self { timesteps, class_dropout, draws_per_position: per_position, lora_dropout, .. } = *self;
        DrawSettings { timesteps, class_dropout, per_position, lora_dropout }
    }

    /// How the objective is computed.
    pub fn engine(&self) -> EngineSettings {
        let Self { head_chunk, recompute, matmul_precision: products, .. } = *self;
        EngineSettings { head_chunk, recompute, products }
    }

    fn check_data(&self) -> Result<()> {
        let fail = |key: &'static str, reason: String| Err(TrainError::Config { key, reason });
        if self.pad_to == 0 {
            return fail("pad_to", "must be at least 1, which pads no more than needed".into());
        }
        let named = self.sources.iter().any(|source| source.class.is_some());
        match (&self.columns.class, self.diffusion.classes.is_empty()) {
            (None, false) if self.objective == ObjectiveKind::L2d && self.sources.is_empty() => {
                let reason = "which column holds a row's class? Without one every row would be trained without a class";
                fail("columns.class", reason.into())
            }
            (Some(column), true) if !named => {
                fail("diffusion.classes", format!("columns.class is `{column}`, but no class is named here"))
            }
            _ => check_sources(&self.sources, &self.classes_of_rows(), &self.columns),
        }
    }

    /// The guidance classes rows are read with: the finetuned LM itself has none.
    pub fn classes_of_rows(&self) -> Vec<String> {
        match self.objective {
            ObjectiveKind::L2d => self.diffusion.classes.clone(),
            ObjectiveKind::Full | ObjectiveKind::Lora => Vec::new(),
        }
    }

    /// Updates of a run over so many examples.
    pub fn total_steps(&self, examples: usize) -> u64 {
        self.steps.unwrap_or_else(|| ((examples as f64 * self.epochs) / self.batch_size as f64).ceil().max(1.0) as u64)
    }

    /// The learning-rate schedule of a run of that many updates.
    pub fn schedule(&self, total_steps: u64) -> Schedule {
        Schedule {
            peak: self.learning_rate,
            floor: self.min_learning_rate,
            warmup_steps: self.warmup_steps.min(total_steps),
            total_steps,
            warmup: self.warmup,
            decay: self.decay,
        }
    }
}
