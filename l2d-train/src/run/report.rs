//! What a run tells those who watch it, and what it asks of whoever answers problems for it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::objective::StepLoss;

/// Bytes of memory that the process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub current: u64,
    /// At most, so far.
    pub peak: u64,
}

/// Where the seconds of an update went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepSeconds {
    /// Picking examples and making batches of them.
    pub data: f64,
    /// Forward and backward.
    pub gradients: f64,
    /// Norm, clipping, update and running mean.
    pub optimiser: f64,
    /// Waiting for other ranks, and adding up their losses and gradients.
    pub waiting: f64,
}

impl StepSeconds {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.data + self.gradients + self.optimiser + self.waiting
    }
}

/// One update.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// Updates made, this one included.
    pub step: u64,
    /// Updates planned.
    pub total_steps: u64,
    /// Loss of the batch, before the update.
    pub loss: StepLoss,
    /// Norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this update.
    pub learning_rate: f64,
    /// Tokens of the examples processed per second, prompts included, padding not.
    pub tokens_per_second: f64,
    /// Labelled ones of them.
    pub labels_per_second: f64,
    /// Where the time went.
    pub seconds: StepSeconds,
    /// Memory of the process, where the observer knows.
    pub memory: Option<Memory>,
    /// Examples seen divided by examples there are.
    pub epoch: f64,
}

/// One pass over the validation examples.
#[derive(Debug, Clone)]
pub struct ValidationReport {
    /// Updates made before it.
    pub step: u64,
    /// The loss.
    pub loss: StepLoss,
    /// It is the lowest so far.
    pub best: bool,
}

/// Answers at one number of evaluations per token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationScore {
    /// Evaluations per token.
    pub steps: usize,
    /// Part of the problems that was answered right.
    pub accuracy: f64,
    /// Of the accuracy; of a single problem there is none.
    pub standard_error: Option<f64>,
    /// Problems.
    pub problems: usize,
}

/// One validation by generating.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationReport {
    /// Updates made before it.
    pub step: u64,
    /// The task the problems are of.
    pub task: String,
    /// In the order of the settings.
    pub scores: Vec<GenerationScore>,
    /// The accuracy at most evaluations is the highest so far.
    pub best: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Watches a run; the binary shows it as a progress bar.
pub trait Observer {
    /// After each update.
    fn step(&mut self, _report: &StepReport) {}
    /// After each validation.
    fn validation(&mut self, _report: &ValidationReport) {}
    /// After each validation by generating.
    fn generation(&mut self, _report: &GenerationReport) {}
    /// After each checkpoint.
    fn checkpoint(&mut self, _step: u64, _folder: &Path) {}
    /// The memory of the process, where it can be known: libraries do not ask the system.
    fn memory(&mut self) -> Option<Memory> {
        None
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Answers problems with the model as it is.
pub trait Evaluator<M> {
    /// The name of the task.
    fn task(&self) -> &str;

    /// Scores of the model, by number of evaluations. They must follow from the model alone, so that a resumed run finds the
    /// same. `None` when it was called off.
    ///
    /// # Errors
    /// Whatever stops the decoder; the run stops with it.
    fn generate(&mut self, model: &M)
    -> Result<Option<Vec<GenerationScore>>, Box<dyn std::error::Error + Send + Sync>>;
}

/// Answers nothing, and is never asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvaluator;

impl<M> Evaluator<M> for NoEvaluator {
    fn task(&self) -> &str {
        "none"
    }

    fn generate(
        &mut self,
        _model: &M,
    ) -> Result<Option<Vec<GenerationScore>>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(None)
    }
}
