//! A run: from settings, a model and examples to trained weights, on the disk and in memory.

mod driver;
mod identity;
mod judge;
mod logs;
mod report;
mod update;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use burn::tensor::backend::AutodiffBackend;
use l2d_core::parameters::trained_parameter_names;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::driver::{Loop, Watchers};
pub use self::report::{
    Evaluator, GenerationReport, GenerationScore, Memory, NoEvaluator, Observer, Silent, StepReport, StepSeconds,
    ValidationReport,
};
use crate::config::TrainConfig;
use crate::data::{Example, ExampleSource};
use crate::error::{Result, TrainError};
use crate::optimiser::AdamW;
use crate::ranks::{Alone, Ranks, agree};
use crate::run_dir::{RunDir, RunState};
use crate::task::Task;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All updates were made.
    Finished,
    /// It was asked to stop, and saved where it stood.
    Interrupted,
    /// Its validation loss did not improve any more (`early_stop_patience`).
    StoppedEarly,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Trained<M> {
    /// The model after the last update; with `ema_decay` the running mean.
    pub model: M,
    /// How it ended.
    pub outcome: Outcome,
    /// Updates made in all.
    pub steps: u64,
    /// Its last checkpoint, if there is a run folder.
    pub last_checkpoint: Option<PathBuf>,
    /// The best checkpoint: with the lowest validation loss, or the highest accuracy (`best`).
    pub best_checkpoint: Option<PathBuf>,
    /// The folder of its weights, for [`Task::load`]: the running mean's, where one is kept.
    pub best_weights: Option<PathBuf>,
    /// Lowest validation loss, nats per labelled token.
    pub best_validation: Option<f64>,
    /// Highest accuracy of generated answers, at the largest of `generate.steps`.
    pub best_generation: Option<f64>,
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

/// Purposes of random draws, so that no two share a stream.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Order = 1,
    Train = 2,
    Validation = 3,
}

fn seed_for(seed: u64, purpose: Purpose) -> u64 {
    // Any injective mixing will do; ChaCha turns neighbouring seeds into unrelated streams.
    seed.wrapping_mul(4).wrapping_add(purpose as u64)
}

fn generator(seed: u64, purpose: Purpose, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed_for(seed, purpose));
    rng.set_stream(stream);
    rng
}

/// Trains `model` on `examples`.
///
/// With [`Storage`] it keeps metrics, checkpoints and can be resumed: on a deterministic backend the resumed run's losses are
/// bit for bit those of an uninterrupted one. `cancel` asks it to save and stop after the current update.
///
/// # Errors
/// Settings out of range, a folder that cannot be written, a checkpoint of another run, or a loss or gradient that is no
/// number or above `max_loss` (the last good checkpoint is kept: the newest whose weights gave a good loss).
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
    if config.generate.task.is_some() {
        let reason = "problems are to be answered during the run, but nobody was named to answer them".into();
        return Err(TrainError::Config { key: "generate.task", reason });
    }
    train_and_generate(task, model, examples, validation, config, storage, device, cancel, observer, &mut NoEvaluator)
}

/// [`train`], with `evaluator` answering problems as the settings' `generate` asks for.
///
/// # Errors
/// As there, and whatever stops the evaluator.
pub fn train_and_generate<AB, T>(
    task: &T,
    model: T::Model,
    examples: &dyn ExampleSource,
    validation: &[Example],
    config: &TrainConfig,
    storage: Option<&Storage>,
    device: &Device<AB::InnerBackend>,
    cancel: &AtomicBool,
    observer: &mut dyn Observer,
    evaluator: &mut dyn Evaluator<T::Model>,
) -> Result<Trained<T::Model>>
where
    AB: AutodiffBackend,
    T: Task<AB>,
{
    train_together(task, model, examples, validation, config, storage, device, cancel, observer, evaluator, &Alone)
}

/// [`train_and_generate`] on several ranks, each of which calls this with the same arguments but for its device, its observer (of
/// which the first rank's is told all) and its evaluator (the first rank's answers). The first rank writes the run's folder, which
/// the others read when they go on from a checkpoint: theirs is [`RunDir::shared`].
///
/// The batch is that of all ranks together: with any number of ranks a run has the same losses, but for rounding.
///
/// # Errors
/// As there; [`TrainError::Unequal`] where the ranks differ in settings, data or weights, [`TrainError::Ranks`] where one is gone.
/// On any error but these, [`TrainError::Config`] and [`TrainError::Diverged`], which all have, [`Ranks::abandon`] is to be called.
pub fn train_together<AB, T>(
    task: &T,
    model: T::Model,
    examples: &dyn ExampleSource,
    validation: &[Example],
    config: &TrainConfig,
    storage: Option<&Storage>,
    device: &Device<AB::InnerBackend>,
    cancel: &AtomicBool,
    observer: &mut dyn Observer,
    evaluator: &mut dyn Evaluator<T::Model>,
    ranks: &dyn Ranks,
) -> Result<Trained<T::Model>>
where
    AB: AutodiffBackend,
    T: Task<AB>,
{
    let settings = identity::settings(config)?;
    let names = trained_parameter_names::<AB, _>(&model);
    if ranks.size() > 1 {
        // Before anything is refused: what is refused on one rank is refused on all then.
        agree(
            ranks,
            &[
                ("version", env!("CARGO_PKG_VERSION").into()),
                ("settings", settings.to_string()),
                ("trained parameters", names.join(", ")),
            ],
        )?;
    }
    config.check()?;
    if config.batch_size < ranks.size() {
        let reason = format!("{} ranks share a batch: it must have as many sequences at least", ranks.size());
        return Err(TrainError::Config { key: "batch_size", reason });
    }
    if examples.is_empty() {
        return Err(TrainError::NoData("the training set is empty".into()));
    }
    let groups = config.parameter_groups()?;
    groups.check(&names)?;
    let total_steps = config.total_steps(examples.len());
    let mut run = Loop {
        task,
        model,
        optimiser: AdamW::new(config.adamw).with_groups(groups.clone()),
        groups,
        ema: None,
        state: RunState {
            step: 0,
            total_steps,
            examples_seen: 0,
            best_validation: None,
            best_generation: None,
            best_step: None,
            validation_pending: false,
            generation_pending: false,
            stale_validations: 0,
            improved_to: None,
            settings,
            data: identity::hexadecimal(&examples.fingerprint()),
        },
        on_disk: None,
        config,
        examples,
        validation,
        storage,
        order: examples.order(seed_for(config.seed, Purpose::Order)),
        device,
        ranks,
    };
    if ranks.size() > 1 {
        let held_back = identity::hexadecimal(&validation.fingerprint());
        agree(
            ranks,
            &[
                ("training data", run.state.data.clone()),
                ("validation data", held_back),
                ("frozen weights", task.frozen_digest(&run.model).unwrap_or_default()),
                ("initial weights", identity::weights::<AB, _>(&run.model)),
            ],
        )?;
    }
    if config.ema_decay > 0.0 {
        run.ema = Some(run.running_mean(&run.model));
    }
    let logs = run.open()?;
    run.go(Watchers { logs, observer, evaluator }, cancel)
}
