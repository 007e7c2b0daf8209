//! The training loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use burn::tensor::Device;
use burn::tensor::backend::AutodiffBackend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::TrainConfig;
use crate::data::{Batch, Example, ExampleSource, Order, micro_batches};
use crate::error::{Result, TrainError};
use crate::log::{EventFile, MetricsLog};
use crate::objective::{Recompute, StepLoss, TIMESTEP_BINS};
use crate::optimiser::{AdamW, Decay, NamedGradients, clip_coefficient};
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

/// Watches a run; the binary shows it as a progress bar.
pub trait Observer {
    /// After each update.
    fn step(&mut self, _report: &StepReport) {}
    /// After each validation.
    fn validation(&mut self, _report: &ValidationReport) {}
    /// After each checkpoint.
    fn checkpoint(&mut self, _step: u64, _folder: &Path) {}
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
    let fingerprint = fingerprint(config, total_steps, examples);
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
            fingerprint,
        },
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

struct Loop<'a, AB: AutodiffBackend, T: Task<AB>> {
    task: &'a T,
    model: T::Model,
    optimiser: AdamW<AB::InnerBackend>,
    state: RunState,
    /// The state of the newest checkpoint.
    on_disk: Option<RunState>,
    config: &'a TrainConfig,
    examples: &'a dyn ExampleSource,
    validation: &'a [Example],
    storage: Option<&'a Storage>,
    order: Order,
}

struct Logs {
    metrics: MetricsLog,
    events: EventFile,
}

impl<AB: AutodiffBackend, T: Task<AB>> Loop<'_, AB, T> {
    /// Opens the logs and, when resuming, restores the newest checkpoint.
    fn open(&mut self, device: &Device<AB::InnerBackend>) -> Result<Option<Logs>> {
        let Some(Storage { dir, resume, .. }) = self.storage else { return Ok(None) };
        let steps = dir.checkpoints()?;
        let metrics = dir.root().join("metrics.jsonl");
        match steps.last() {
            Some(_) if !resume => {
                return Err(TrainError::Resume {
                    path: dir.root().to_path_buf(),
                    reason:
                        "this folder holds checkpoints of an earlier run; go on with --resume, or choose another folder"
                            .into(),
                });
            }
            Some(&step) => {
                let (state, optimiser) = dir.load::<AB::InnerBackend>(step, self.config.adamw, device)?;
                if state.fingerprint != self.state.fingerprint {
                    return Err(TrainError::Resume {
                        path: dir.checkpoint(step),
                        reason:
                            "its settings or data are not those of this run; resume with the same ones, or start anew"
                                .into(),
                    });
                }
                self.model = self.task.load(self.model.clone(), &dir.checkpoint(step))?;
                if let Some(name) = optimiser.misfit::<AB, _>(&self.model) {
                    return Err(TrainError::Resume {
                        path: dir.checkpoint(step),
                        reason: format!("the optimiser's moments of `{name}` do not fit the model"),
                    });
                }
                (self.state, self.optimiser, self.on_disk) = (state, optimiser, Some(state));
            }
            None if *resume => {
                return Err(TrainError::Resume {
                    path: dir.root().to_path_buf(),
                    reason: "there is no checkpoint in this folder to go on from; leave out --resume to start".into(),
                });
            }
            None => {}
        }
        dir.clear_incomplete()?;
        let metrics = if self.state.step > 0 {
            MetricsLog::resume(&metrics, self.state.step)?
        } else {
            MetricsLog::create(&metrics)?
        };
        Ok(Some(Logs { metrics, events: EventFile::create(dir.root(), wall_seconds())? }))
    }

    fn go(
        mut self,
        mut logs: Option<Logs>,
        cancel: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Trained<T::Model>> {
        let schedule = self.config.schedule(self.state.total_steps);
        if schedule.warmup_steps == schedule.total_steps && self.config.decay != Decay::Constant {
            tracing::warn!(
                "all {} updates are warm-up: the learning rate rises to the last; lower warmup_steps",
                schedule.total_steps
            );
        }
        let mut outcome = Outcome::Finished;
        let mut saved = self.state.step;
        if self.state.validation_pending && self.validate(&mut logs, cancel, observer)? {
            self.save(observer)?;
        }
        while self.state.step < self.state.total_steps {
            if cancel.load(Ordering::Relaxed) {
                outcome = Outcome::Interrupted;
                break;
            }
            let report = self.update(schedule.rate(self.state.step))?;
            if saved + 1 == report.step {
                // The weights that were saved have now given a finite loss; before that, older ones had to stay.
                self.prune()?;
            }
            if let Some(logs) = &mut logs
                && report.step % self.config.log_every == 0
            {
                logs.step(&report)?;
            }
            observer.step(&report);
            let last = report.step == self.state.total_steps;
            let validated =
                (last || due(report.step, self.config.validate_every)) && self.validate(&mut logs, cancel, observer)?;
            if last || due(report.step, self.config.checkpoint_every) {
                self.save(observer)?;
                saved = report.step;
            }
            if validated {
                self.prune()?;
            }
        }
        if saved != self.state.step {
            self.save(observer)?;
        }
        if self.state.validation_pending {
            outcome = Outcome::Interrupted;
        }
        let folder = |step: u64| self.storage.map(|storage| storage.dir.checkpoint(step)).filter(|path| path.exists());
        Ok(Trained {
            outcome,
            steps: self.state.step,
            last_checkpoint: folder(self.state.step),
            best_checkpoint: self.state.best_step.and_then(folder),
            best_validation: self.state.best_validation,
            model: self.model,
        })
    }

    /// One update: gradients of all micro-batches, summed, divided by the number of labelled tokens of all of them.
    fn update(&mut self, learning_rate: f64) -> Result<StepReport> {
        let start = Instant::now();
        let step = self.state.step + 1;
        let picked = self.order.take(self.state.examples_seen, self.config.batch_size);
        let picked = picked.into_iter().map(|i| self.examples.get(i)).collect::<Result<Vec<_>>>()?;
        let picked: Vec<&Example> = picked.iter().map(AsRef::as_ref).collect();
        let no_class = self.task.no_class(&self.model);
        let mut loss = StepLoss::default();
        let mut gradients = NamedGradients::default();
        let tokens: usize = picked.iter().map(|example| example.tokens.len()).sum();
        for micro in micro_batches(&picked, self.config.micro_batch_size.unwrap_or(picked.len())) {
            let batch = Batch::new(&micro.iter().map(|&i| picked[i]).collect::<Vec<_>>(), no_class);
            let batch = batch.padded_to(self.config.pad_to);
            let mut rngs: Vec<ChaCha8Rng> = micro
                .iter()
                .map(|&i| generator(self.config.seed, Purpose::Train, step * self.config.batch_size as u64 + i as u64))
                .collect();
            let (micro_loss, micro_gradients) = self.task.gradients(&self.model, &batch, &mut rngs);
            loss.merge(&micro_loss);
            gradients.add(micro_gradients);
        }
        self.finite(step, "loss", loss.mean(), self.state.step.saturating_sub(1))?;
        gradients.scale(1.0 / loss.tokens as f64);
        let gradient_norm = gradients.norm();
        self.finite(step, "gradient norm", gradient_norm, self.state.step)?;
        if self.config.clip_norm > 0.0 {
            let coefficient = clip_coefficient(gradient_norm, self.config.clip_norm);
            if coefficient < 1.0 {
                gradients.scale(coefficient);
            }
        }
        self.model = self.optimiser.step::<AB, _>(self.model.clone(), &gradients, learning_rate);
        self.state.step = step;
        self.state.examples_seen += self.config.batch_size as u64;
        Ok(StepReport {
            step,
            total_steps: self.state.total_steps,
            loss,
            gradient_norm,
            learning_rate,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64(),
            epoch: self.state.examples_seen as f64 / self.examples.len() as f64,
        })
    }

    /// The loss over the validation examples, under the same draws every time, so that reports can be compared. `false`
    /// when there are none, or when it was called off; then a resumed run begins with it.
    fn validate(&mut self, logs: &mut Option<Logs>, cancel: &AtomicBool, observer: &mut dyn Observer) -> Result<bool> {
        if self.validation.is_empty() {
            return Ok(false);
        }
        self.state.validation_pending = true;
        let picked: Vec<&Example> = self.validation.iter().collect();
        let no_class = self.task.no_class(&self.model);
        let size = self.config.micro_batch_size.unwrap_or(self.config.batch_size);
        let mut loss = StepLoss::default();
        for micro in micro_batches(&picked, size) {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let batch = Batch::new(&micro.iter().map(|&i| picked[i]).collect::<Vec<_>>(), no_class);
            let batch = batch.padded_to(self.config.pad_to);
            let mut rngs: Vec<ChaCha8Rng> =
                micro.iter().map(|&i| generator(self.config.seed, Purpose::Validation, i as u64)).collect();
            loss.merge(&self.task.loss(&self.model, &batch, &mut rngs));
        }
        self.state.validation_pending = false;
        let mean = loss.mean();
        self.finite(self.state.step, "validation loss", mean, self.state.step.saturating_sub(1))?;
        let best = self.state.best_validation.is_none_or(|lowest| mean < lowest);
        if best {
            self.state.best_validation = Some(mean);
            self.state.best_step = Some(self.state.step);
            // The best must be on the disk to be worth the name, whatever the interval of checkpoints.
            if self.storage.is_some() {
                self.save(observer)?;
            }
        }
        let report = ValidationReport { step: self.state.step, loss, best };
        if let Some(logs) = logs {
            logs.validation(&report)?;
        }
        observer.validation(&report);
        Ok(true)
    }

    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Some(Storage { dir, notes, .. }) = self.storage else { return Ok(()) };
        if self.on_disk == Some(self.state) {
            return Ok(());
        }
        let mut notes = notes.clone();
        notes.insert("steps".into(), self.state.step.to_string());
        let folder = dir.save(&self.state, &self.optimiser, |folder| self.task.save(&self.model, folder, &notes))?;
        self.on_disk = Some(self.state);
        observer.checkpoint(self.state.step, &folder);
        Ok(())
    }

    /// Call only when the newest checkpoint's weights have given a finite loss.
    fn prune(&self) -> Result<()> {
        match self.storage {
            Some(storage) => storage.dir.prune(self.config.keep_last, self.state.best_step),
            None => Ok(()),
        }
    }

    /// Stops at a value that is no number. The weights after `trusted` updates are the last that gave a finite loss; a
    /// later checkpoint, if there is one, holds the weights that failed.
    fn finite(&self, step: u64, what: &'static str, value: f64, trusted: u64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let (mut good, mut failed) = (None, None);
        if let Some(Storage { dir, .. }) = self.storage {
            for step in dir.checkpoints()? {
                // A finite validation loss speaks for weights, too.
                if step <= trusted || self.state.best_step == Some(step) {
                    good = Some(dir.checkpoint(step));
                } else {
                    failed = Some(dir.reject(step)?);
                }
            }
        }
        let mut checkpoint = good.map_or("none".into(), |good| good.display().to_string());
        if let Some(failed) = failed {
            checkpoint.push_str(&format!(" ({} holds the weights that failed)", failed.display()));
        }
        Err(TrainError::NotFinite { step, what, value, checkpoint })
    }
}

impl Logs {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        #[derive(Serialize)]
        struct Row {
            kind: &'static str,
            step: u64,
            loss: f64,
            tokens: usize,
            gradient_norm: f64,
            learning_rate: f64,
            tokens_per_second: f64,
            epoch: f64,
        }
        self.metrics.write(&Row {
            kind: "train",
            step: report.step,
            loss: report.loss.mean(),
            tokens: report.loss.tokens,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            tokens_per_second: report.tokens_per_second,
            epoch: report.epoch,
        })?;
        let now = wall_seconds();
        self.events.scalar(now, report.step, "train/loss", report.loss.mean() as f32)?;
        self.events.scalar(now, report.step, "train/gradient_norm", report.gradient_norm as f32)?;
        self.events.scalar(now, report.step, "train/learning_rate", report.learning_rate as f32)?;
        self.events.scalar(now, report.step, "train/tokens_per_second", report.tokens_per_second as f32)
    }

    fn validation(&mut self, report: &ValidationReport) -> Result<()> {
        #[derive(Serialize)]
        struct Row {
            kind: &'static str,
            step: u64,
            loss: f64,
            tokens: usize,
            /// Mean loss in each tenth of diffusion time.
            by_timestep: Option<Vec<Option<f64>>>,
            best: bool,
        }
        let bins = report.loss.by_timestep.map(|bins| (0..TIMESTEP_BINS).map(|bin| bins.mean(bin)).collect::<Vec<_>>());
        let now = wall_seconds();
        self.events.scalar(now, report.step, "validation/loss", report.loss.mean() as f32)?;
        for (bin, mean) in bins.iter().flatten().enumerate() {
            if let Some(mean) = mean {
                let tag = format!("validation/loss_at_t/{:.1}", bin as f64 / TIMESTEP_BINS as f64);
                self.events.scalar(now, report.step, &tag, *mean as f32)?;
            }
        }
        self.metrics.write(&Row {
            kind: "validation",
            step: report.step,
            loss: report.loss.mean(),
            tokens: report.loss.tokens,
            by_timestep: bins,
            best: report.best,
        })
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn wall_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// Everything the losses of a run depend on but the model: settings (not intervals of logging, nor what fits into memory) and
/// data.
fn fingerprint(config: &TrainConfig, total_steps: u64, examples: &dyn ExampleSource) -> u64 {
    let defaults = TrainConfig::default();
    let relevant = TrainConfig {
        steps: Some(total_steps),
        epochs: defaults.epochs,
        // How much is in memory at a time changes the rounding alone: a run that ran out of memory may go on with less.
        micro_batch_size: None,
        head_chunk: 1,
        recompute: Recompute::None,
        pad_to: 1,
        // The examples themselves, wherever they were read, are part of the fingerprint below.
        sources: Vec::new(),
        bad_rows: defaults.bad_rows,
        validate_every: 0,
        log_every: 1,
        checkpoint_every: 0,
        keep_last: 1,
        ..config.clone()
    };
    let mut hash = Sha256::new();
    hash.update(format!("{relevant:?}"));
    hash.update(examples.fingerprint());
    let digest = hash.finalize();
    u64::from_le_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
}
