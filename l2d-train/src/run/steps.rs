//! Update after update: gradients, optimiser, validation, checkpoints.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use burn::tensor::backend::AutodiffBackend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::identity::Identity;
use super::logs::Logs;
use super::{Observer, Outcome, StepReport, Storage, Trained, ValidationReport};
use crate::config::TrainConfig;
use crate::data::{Batch, Example, ExampleSource, Order, micro_batches};
use crate::error::{Result, TrainError};
use crate::objective::StepLoss;
use crate::optimiser::{AdamW, Decay, Ema, Groups, NamedGradients, clip_coefficient};
use crate::run_dir::{AVERAGE, RunDir, RunState, Saved};
use crate::task::Task;

/// Purposes of random draws, so that no two share a stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Order = 1,
    Train = 2,
    Validation = 3,
}

pub(super) fn seed_for(seed: u64, purpose: Purpose) -> u64 {
    // Any injective mixing will do; ChaCha turns neighbouring seeds into unrelated streams.
    seed.wrapping_mul(4).wrapping_add(purpose as u64)
}

fn generator(seed: u64, purpose: Purpose, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed_for(seed, purpose));
    rng.set_stream(stream);
    rng
}

pub(super) struct Loop<'a, AB: AutodiffBackend, T: Task<AB>> {
    pub(super) task: &'a T,
    pub(super) model: T::Model,
    pub(super) optimiser: AdamW<AB::InnerBackend>,
    pub(super) state: RunState,
    /// The state of the newest checkpoint.
    pub(super) on_disk: Option<RunState>,
    pub(super) config: &'a TrainConfig,
    pub(super) examples: &'a dyn ExampleSource,
    pub(super) validation: &'a [Example],
    pub(super) storage: Option<&'a Storage>,
    pub(super) order: Order,
    pub(super) identity: Identity,
    pub(super) groups: Groups,
    /// The average of the weights, where one is kept: what is validated and left behind.
    pub(super) average: Option<Ema<AB::InnerBackend>>,
}

impl<AB: AutodiffBackend, T: Task<AB>> Loop<'_, AB, T> {
    /// Opens the logs and, when resuming, restores the newest checkpoint that is whole.
    pub(super) fn open(&mut self, device: &Device<AB::InnerBackend>) -> Result<Option<Logs>> {
        let Some(Storage { dir, resume, .. }) = self.storage else { return Ok(None) };
        let refuse = |path: &Path, reason: &str| {
            Err(TrainError::Resume { path: path.to_path_buf(), reason: reason.to_string() })
        };
        let any = !dir.checkpoints()?.is_empty();
        if any && !resume {
            return refuse(
                dir.root(),
                "this folder holds checkpoints of an earlier run; go on with --resume, or choose another folder",
            );
        }
        if *resume && !any {
            return refuse(
                dir.root(),
                "there is no checkpoint in this folder to go on from; leave out --resume to start",
            );
        }
        if *resume {
            self.restore(dir, device)?;
        }
        dir.clear_incomplete()?;
        Logs::open(dir, self.state.step).map(Some)
    }

    /// Takes over the newest checkpoint that is whole.
    fn restore(&mut self, dir: &RunDir, device: &Device<AB::InnerBackend>) -> Result<()> {
        let step = dir.newest_whole()?;
        let folder = dir.checkpoint(step);
        let (Saved { state, identity }, optimiser) = dir.load::<AB::InnerBackend>(step, self.config.adamw, device)?;
        let differences = identity.differences(&self.identity);
        if !differences.is_empty() {
            return Err(TrainError::Resume {
                path: folder,
                reason: format!(
                    "this run is another one: {}. Resume with the same settings and data, or start anew in another folder",
                    differences.join("; ")
                ),
            });
        }
        if let Some(average) = &mut self.average {
            let model = self.task.load(self.model.clone(), &folder.join(AVERAGE))?;
            *average = Ema::new::<AB, _>(average.decay(), &model);
        }
        self.model = self.task.load(self.model.clone(), &folder)?;
        if let Some(name) = optimiser.misfit::<AB, _>(&self.model) {
            return Err(TrainError::Resume {
                path: folder,
                reason: format!("the optimiser's moments of `{name}` do not fit the model"),
            });
        }
        (self.state, self.optimiser, self.on_disk) = (state, optimiser, Some(state));
        Ok(())
    }

    pub(super) fn go(
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
            let mut report = self.update(schedule.rate(self.state.step))?;
            report.memory = observer.memory();
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
                if self.patience_is_over() {
                    outcome = Outcome::StoppedEarly;
                    break;
                }
            }
        }
        if saved != self.state.step {
            self.save(observer)?;
        }
        if self.state.validation_pending {
            outcome = Outcome::Interrupted;
        }
        let folder = |step: u64| self.storage.map(|storage| storage.dir.checkpoint(step)).filter(|path| path.exists());
        let best = |step: u64| folder(step).map(|path| if self.average.is_some() { path.join(AVERAGE) } else { path });
        Ok(Trained {
            outcome,
            steps: self.state.step,
            last_checkpoint: folder(self.state.step),
            best_checkpoint: self.state.best_step.and_then(best),
            best_validation: self.state.best_validation,
            model: self.averaged(),
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
        let labels: usize = picked.iter().map(|example| example.num_labels()).sum();
        for micro in micro_batches(&picked, self.config.micro_batch_size.unwrap_or(picked.len())) {
            let batch = Batch::new(&micro.iter().map(|&i| picked[i]).collect::<Vec<_>>(), no_class);
            let mut rngs: Vec<ChaCha8Rng> = micro
                .iter()
                .map(|&i| generator(self.config.seed, Purpose::Train, step * self.config.batch_size as u64 + i as u64))
                .collect();
            let (micro_loss, micro_gradients) = self.task.gradients(&self.model, &batch, &mut rngs);
            loss.merge(&micro_loss);
            gradients.add(micro_gradients);
        }
        self.finite(step, "loss", loss.mean(), self.state.step.saturating_sub(1))?;
        gradients.retain(|name| !self.groups.of(name).frozen);
        gradients.scale(1.0 / loss.tokens as f64);
        let gradient_norm = gradients.norm();
        self.finite(step, "gradient norm", gradient_norm, self.state.step)?;
        if self.config.clip_norm > 0.0 {
            let coefficient = clip_coefficient(gradient_norm, self.config.clip_norm);
            if coefficient < 1.0 {
                gradients.scale(coefficient);
            }
        }
        self.model = self.optimiser.step::<AB, _>(self.model.clone(), &gradients, learning_rate, &self.groups);
        if let Some(average) = &mut self.average {
            average.update::<AB, _>(&self.model);
        }
        self.state.step = step;
        self.state.examples_seen += self.config.batch_size as u64;
        Ok(StepReport {
            step,
            total_steps: self.state.total_steps,
            loss,
            gradient_norm,
            learning_rate,
            tokens_per_second: tokens as f64 / start.elapsed().as_secs_f64(),
            labels_per_second: labels as f64 / start.elapsed().as_secs_f64(),
            memory: None,
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
        let model = self.averaged();
        let no_class = self.task.no_class(&self.model);
        let size = self.config.micro_batch_size.unwrap_or(self.config.batch_size);
        let mut loss = StepLoss::default();
        for micro in micro_batches(&picked, size) {
            if cancel.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let batch = Batch::new(&micro.iter().map(|&i| picked[i]).collect::<Vec<_>>(), no_class);
            let mut rngs: Vec<ChaCha8Rng> =
                micro.iter().map(|&i| generator(self.config.seed, Purpose::Validation, i as u64)).collect();
            loss.merge(&self.task.loss(&model, &batch, &mut rngs));
        }
        self.state.validation_pending = false;
        let mean = loss.mean();
        self.finite(self.state.step, "validation loss", mean, self.state.step.saturating_sub(1))?;
        let best = self.state.best_validation.is_none_or(|lowest| mean < lowest);
        let lower = self.state.best_validation.is_none_or(|lowest| mean < lowest - self.config.early_stop_min_delta);
        self.state.validations_since_best = if lower { 0 } else { self.state.validations_since_best + 1 };
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

    /// What is validated and left behind: the average of the weights where one is kept, else the weights.
    fn averaged(&self) -> T::Model {
        match &self.average {
            Some(average) => average.apply::<AB, _>(self.model.clone()),
            None => self.model.clone(),
        }
    }

    fn patience_is_over(&self) -> bool {
        self.config.early_stop_patience.is_some_and(|patience| self.state.validations_since_best >= patience)
    }

    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Some(Storage { dir, notes, .. }) = self.storage else { return Ok(()) };
        if self.on_disk == Some(self.state) {
            return Ok(());
        }
        let mut notes = notes.clone();
        notes.insert("steps".into(), self.state.step.to_string());
        let averaged = self.average.is_some().then(|| self.averaged());
        let saved = Saved { state: self.state, identity: self.identity.clone() };
        let folder = dir.save(&saved, &self.optimiser, |folder| {
            self.task.save(&self.model, folder, &notes)?;
            let Some(averaged) = &averaged else { return Ok(()) };
            let folder = folder.join(AVERAGE);
            std::fs::create_dir(&folder).map_err(|e| TrainError::io(&folder, e))?;
            self.task.save(averaged, &folder, &notes)
        })?;
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

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
