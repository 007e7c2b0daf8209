//! The training loop.

mod identity;
mod logs;
mod steps;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use burn::tensor::backend::AutodiffBackend;

pub use self::identity::Identity;
use self::steps::{Loop, Purpose, seed_for};
use crate::config::TrainConfig;
use crate::data::{Example, ExampleSource};
use crate::error::{Result, TrainError};
use crate::objective::StepLoss;
use crate::optimiser::{AdamW, Ema, Groups};
use crate::run_dir::{RunDir, RunState};
use crate::task::Task;

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
    /// Labelled tokens of them.
    pub labels_per_second: f64,
    /// Examples seen divided by examples there are.
    pub epoch: f64,
    /// Memory the process holds, in bytes, where the observer knows.
    pub memory: Option<u64>,
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

/// Watches a run; the binary shows it as a progress bar.
pub trait Observer {
    /// After each update.
    fn step(&mut self, _report: &StepReport) {}
    /// After each validation.
    fn validation(&mut self, _report: &ValidationReport) {}
    /// After each checkpoint.
    fn checkpoint(&mut self, _step: u64, _folder: &Path) {}
    /// Memory the process holds, in bytes; asked after each update.
    fn memory(&mut self) -> Option<u64> {
        None
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All updates were made.
    Finished,
    /// The validation loss had not fallen for as long as `early_stop_patience` allows.
    StoppedEarly,
    /// It was asked to stop, and saved where it stood.
    Interrupted,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Trained<M> {
    /// The model after the last update.
    pub model: M,
    /// How it ended.
    pub outcome: Outcome,
    /// Updates made in all.
    pub steps: u64,
    /// Its last checkpoint, if there is a run folder.
    pub last_checkpoint: Option<PathBuf>,
    /// The checkpoint with the lowest validation loss.
    pub best_checkpoint: Option<PathBuf>,
    /// Lowest validation loss, nats per labelled token.
    pub best_validation: Option<f64>,
}

/// Where a run lives, and whether it goes on from its newest checkpoint.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The folder.
    pub dir: RunDir,
    /// Go on from the newest checkpoint, when there is one.
    pub resume: bool,
    /// Kept in each checkpoint's metadata.
    pub notes: BTreeMap<String, String>,
}

/// Trains `model` on `examples`.
///
/// With [`Storage`] it keeps metrics, checkpoints and can be resumed: on a deterministic backend the resumed run's losses are
/// bit for bit those of an uninterrupted one. `cancel` asks it to save and stop after the current update.
///
/// # Errors
/// Settings out of range, a folder that cannot be written, a checkpoint of another run, or a loss or gradient that is no
/// number (the last good checkpoint is kept: the newest whose weights gave a finite loss).
pub fn train<AB, T>(
    task: &T,
    model: T::Model,
    examples: &dyn ExampleSource,
    validation: &[Example],
    config: &TrainConfig,
    storage: Option<&Storage>,
    device: &Device<AB::InnerBackend>,
    cancel: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<Trained<T::Model>>
where
    AB: AutodiffBackend,
    T: Task<AB>,
{
    config.check()?;
    if examples.is_empty() {
        return Err(TrainError::NoData("the training set is empty".into()));
    }
    let total_steps = config.total_steps(examples.len());
    let groups = Groups::new(config)?;
    groups.check::<AB, _>(&model)?;
    let average = config.ema_decay.map(|decay| Ema::new::<AB, _>(decay, &model));
    let mut run = Loop {
        task,
        model,
        optimiser: AdamW::new(config.adamw),
        state: RunState {
            step: 0,
            total_steps,
            examples_seen: 0,
            best_validation: None,
            best_step: None,
            validation_pending: false,
            validations_since_best: 0,
        },
        identity: Identity::of(config, total_steps, examples),
        groups,
        average,
        on_disk: None,
        config,
        examples,
        validation,
        storage,
        order: examples.order(seed_for(config.seed, Purpose::Order)),
    };
    let logs = run.open(device)?;
    run.go(logs, cancel, observer)
}
