//! The loop: updates, and between them whatever is due.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use burn::tensor::backend::AutodiffBackend;

use super::identity::{self, differences};
use super::logs::Logs;
use super::{Evaluator, Observer, Outcome, Storage, Trained};
use crate::config::TrainConfig;
use crate::data::{Example, ExampleSource, Order};
use crate::error::{Result, TrainError};
use crate::optimiser::{AdamW, Decay, Ema, Groups};
use crate::ranks::{Ranks, agree};
use crate::run_dir::{RunDir, RunState};
use crate::task::Task;

/// The folder of averaged weights in a checkpoint.
const AVERAGED: &str = "ema";

pub(super) struct Loop<'a, AB: AutodiffBackend, T: Task<AB>> {
    pub(super) task: &'a T,
    pub(super) model: T::Model,
    pub(super) groups: Groups,
    pub(super) optimiser: AdamW<AB::InnerBackend>,
    pub(super) ema: Option<Ema<AB::InnerBackend>>,
    pub(super) state: RunState,
    /// The state of the newest checkpoint.
    pub(super) on_disk: Option<RunState>,
    pub(super) config: &'a TrainConfig,
    pub(super) examples: &'a dyn ExampleSource,
    pub(super) validation: &'a [Example],
    pub(super) storage: Option<&'a Storage>,
    pub(super) order: Order,
    pub(super) device: &'a Device<AB::InnerBackend>,
    pub(super) ranks: &'a dyn Ranks,
}

/// Those who watch a run, and who answers problems for it.
pub(super) struct Watchers<'a, M> {
    pub(super) logs: Option<Logs>,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) evaluator: &'a mut dyn Evaluator<M>,
}

impl<AB: AutodiffBackend, T: Task<AB>> Loop<'_, AB, T> {
    /// The folder, on the rank that writes to it.
    fn kept(&self) -> Option<&Storage> {
        self.storage.filter(|_| self.ranks.is_first())
    }

    /// Whether somebody called it off on any rank.
    pub(super) fn called_off(&self, cancel: &AtomicBool) -> Result<bool> {
        self.ranks.any(cancel.load(Ordering::Relaxed))
    }

    /// The first rank opens the folder; the others begin where it stands then.
    pub(super) fn open(&mut self) -> Result<Option<Logs>> {
        let logs = if self.ranks.is_first() { self.open_folder()? } else { None };
        let unread = |error: serde_json::Error| TrainError::Ranks { reason: format!("state: {error}") };
        let own = serde_json::to_vec(&self.state).map_err(unread)?;
        let said = self.ranks.first_says(&own)?;
        if !self.ranks.is_first() {
            let state: RunState = serde_json::from_slice(&said).map_err(unread)?;
            if let Some(Storage { dir, .. }) = self.storage
                && state.step > 0
            {
                self.restore_weights(dir, state.step)?;
                self.on_disk = Some(state.clone());
            }
            self.state = state;
        }
        Ok(logs)
    }

    /// Opens the logs and, when resuming, restores the newest checkpoint that is whole.
    fn open_folder(&mut self) -> Result<Option<Logs>> {
        let Some(Storage { dir, resume, .. }) = self.storage else { return Ok(None) };
        let refuse = |reason: &str| Err(TrainError::Resume { path: dir.root().into(), reason: reason.into() });
        match (dir.checkpoints()?.is_empty(), resume) {
            (false, false) => {
                return refuse(
                    "this folder holds checkpoints of an earlier run; go on with --resume, or choose another folder",
                );
            }
            (true, true) => {
                return refuse("there is no checkpoint in this folder to go on from; leave out --resume to start");
            }
            (false, true) => self.restore(dir, newest_whole(dir)?)?,
            (true, false) => {}
        }
        dir.clear_incomplete()?;
        Ok(Some(Logs::open(dir.root(), self.state.step)?))
    }

    /// Takes weights, moments and running mean from a checkpoint, and gives its state.
    fn restore_weights(&mut self, dir: &RunDir, step: u64) -> Result<RunState> {
        let folder = dir.checkpoint(step);
        let (state, optimiser) = dir.load::<AB::InnerBackend>(step, self.config.adamw, self.device)?;
        self.model = self.task.load(self.model.clone(), &folder)?;
        if let Some(name) = optimiser.misfit::<AB, _>(&self.model) {
            let reason = format!("the optimiser's moments of `{name}` do not fit the model");
            return Err(TrainError::Resume { path: folder, reason });
        }
        if self.ema.is_some() {
            let averaged = self.task.load(self.model.clone(), &folder.join(AVERAGED))?;
            self.ema = Some(self.running_mean(&averaged));
        }
        self.optimiser = optimiser.with_groups(self.groups.clone());
        Ok(state)
    }

    fn restore(&mut self, dir: &RunDir, step: u64) -> Result<()> {
        let folder = dir.checkpoint(step);
        let refuse = |reason: String| Err(TrainError::Resume { path: folder.clone(), reason });
        let mut state = dir.state(step)?;
        let differences = differences(&state, &self.state)?;
        if !differences.is_empty() {
            return refuse(format!(
                "this run differs from the one that was saved: {}. Resume with its settings (they are in config.toml) and \
                 data, or start anew in another folder",
                differences.join("; ")
            ));
        }
        self.restore_weights(dir, step)?;
        // A free setting may have changed: what is saved from here on has the new ones.
        state.settings = self.state.settings.clone();
        self.on_disk = Some(state.clone());
        if let Some(best) = state.best_step.filter(|&best| best != step) {
            let missing = !dir.checkpoint(best).exists();
            let damage = if missing { Some("it is missing".into()) } else { damage(dir, best) };
            if let Some(damage) = damage {
                tracing::warn!(
                    "the best checkpoint so far, {}, is lost ({damage}): the next validation counts as the best again",
                    dir.checkpoint(best).display()
                );
                (state.best_step, state.best_validation, state.best_generation) = (None, None, None);
                if !missing {
                    dir.set_damaged_aside(best)?;
                }
            }
        }
        self.state = state;
        Ok(())
    }

    /// A running mean that begins at the given weights.
    pub(super) fn running_mean(&self, model: &T::Model) -> Ema<AB::InnerBackend> {
        Ema::new::<AB, _>(self.config.ema_decay, model, &|name| self.groups.trains(name))
    }

    /// The weights that are validated and left behind: the running mean, where one is kept.
    pub(super) fn averaged(&self) -> T::Model {
        match &self.ema {
            Some(ema) => ema.applied::<AB, _>(self.model.clone()),
            None => self.model.clone(),
        }
    }

    pub(super) fn go(mut self, mut watch: Watchers<'_, T::Model>, cancel: &AtomicBool) -> Result<Trained<T::Model>> {
        let schedule = self.config.schedule(self.state.total_steps);
        let rising = schedule.warmup_steps == schedule.total_steps && self.config.decay != Decay::Constant;
        if rising && self.ranks.is_first() {
            tracing::warn!(
                "all {} updates are warm-up: the learning rate rises to the last; lower warmup_steps",
                schedule.total_steps
            );
        }
        let mut outcome = Outcome::Finished;
        let mut saved = self.state.step;
        if self.state.validation_pending && self.validate(&mut watch, cancel)? {
            // The last update of a run that ends early is followed by a generation.
            self.state.generation_pending |= self.out_of_patience() && self.generates();
            self.save(watch.observer)?;
        }
        if self.state.generation_pending && self.generate(&mut watch, cancel)? {
            self.save(watch.observer)?;
        }
        while self.state.step < self.state.total_steps {
            if self.called_off(cancel)? {
                outcome = Outcome::Interrupted;
                break;
            }
            if self.out_of_patience() {
                outcome = Outcome::StoppedEarly;
                break;
            }
            let mut report = self.update(schedule.rate(self.state.step))?;
            report.memory = watch.observer.memory();
            if saved + 1 == report.step {
                // The weights that were saved have now given a finite loss; before that, older ones had to stay.
                self.prune()?;
            }
            if let Some(logs) = &mut watch.logs
                && report.step % self.config.log_every == 0
            {
                logs.step(&report)?;
            }
            watch.observer.step(&report);
            let last = report.step == self.state.total_steps;
            // Said before it is done: a checkpoint that the validation writes knows what is still owed after it.
            self.state.generation_pending = (last || due(report.step, self.config.generate.every)) && self.generates();
            let judged = (last || due(report.step, self.config.validate_every)) && self.validate(&mut watch, cancel)?;
            let last = last || self.out_of_patience();
            if self.state.generation_pending || last {
                self.generate(&mut watch, cancel)?;
            }
            if last || due(report.step, self.config.checkpoint_every) {
                self.save(watch.observer)?;
                saved = report.step;
            }
            if judged {
                self.prune()?;
            }
        }
        if saved != self.state.step {
            self.save(watch.observer)?;
        }
        if self.state.validation_pending || self.state.generation_pending {
            outcome = Outcome::Interrupted;
        }
        Ok(self.left_behind(outcome))
    }

    /// Whether the run answers problems.
    fn generates(&self) -> bool {
        self.config.generate.task.is_some()
    }

    fn left_behind(self, outcome: Outcome) -> Trained<T::Model> {
        let folder = |step: u64| self.storage.map(|storage| storage.dir.checkpoint(step)).filter(|path| path.exists());
        let best_checkpoint = self.state.best_step.and_then(folder);
        let within = |path: &PathBuf| if self.ema.is_some() { path.join(AVERAGED) } else { path.clone() };
        Trained {
            outcome,
            steps: self.state.step,
            last_checkpoint: folder(self.state.step),
            best_weights: best_checkpoint.as_ref().map(within),
            best_checkpoint,
            best_validation: self.state.best_validation,
            best_generation: self.state.best_generation,
            model: self.averaged(),
        }
    }

    pub(super) fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if self.storage.is_none() || self.on_disk.as_ref() == Some(&self.state) {
            return Ok(());
        }
        self.still_together()?;
        self.on_disk = Some(self.state.clone());
        let Some(Storage { dir, notes, .. }) = self.kept() else { return Ok(()) };
        let mut notes = notes.clone();
        notes.insert("steps".into(), self.state.step.to_string());
        let folder = dir.save(&self.state, &self.optimiser, |folder| {
            self.task.save(&self.model, folder, &notes)?;
            if self.ema.is_some() {
                let folder = folder.join(AVERAGED);
                std::fs::create_dir(&folder).map_err(|e| TrainError::io(&folder, e))?;
                self.task.save(&self.averaged(), &folder, &notes)?;
            }
            Ok(())
        })?;
        observer.checkpoint(self.state.step, &folder);
        Ok(())
    }

    /// Makes sure that all ranks hold the same weights, before they are kept.
    fn still_together(&self) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        agree(self.ranks, &[("weights", identity::weights::<AB, _>(&self.model))])
    }

    /// Call only when the newest checkpoint's weights have given a finite loss.
    fn prune(&self) -> Result<()> {
        match self.kept() {
            Some(storage) => storage.dir.prune(self.config.keep_last, self.state.best_step),
            None => Ok(()),
        }
    }

    /// Stops at a value that is no number, or beyond its limit (0 is none). The weights after `trusted` updates are the last
    /// that gave a good loss; a later checkpoint, if there is one, holds the weights that failed.
    pub(super) fn good(
        &self,
        step: u64,
        what: &'static str,
        value: f64,
        limit: Option<f64>,
        trusted: u64,
    ) -> Result<()> {
        let limit = limit.filter(|&limit| limit > 0.0 && value > limit);
        let value = match limit {
            Some(limit) if value.is_finite() => format!("{value:.1}, above max_loss {limit}"),
            _ if value.is_finite() => return Ok(()),
            _ => value.to_string(),
        };
        let (mut good, mut failed) = (None, None);
        if let Some(Storage { dir, .. }) = self.kept() {
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
        Err(TrainError::Diverged { step, what, value, checkpoint })
    }
}

/// The newest checkpoint that is whole. Damaged ones that are newer are renamed, so that their names are free again.
fn newest_whole(dir: &RunDir) -> Result<u64> {
    let mut damaged = Vec::new();
    for step in dir.checkpoints()?.into_iter().rev() {
        match damage(dir, step) {
            Some(damage) => damaged.push((step, damage)),
            None => {
                for (bad, damage) in damaged {
                    let (from, aside) = (dir.checkpoint(bad), dir.set_damaged_aside(bad)?);
                    tracing::warn!(
                        "{} is damaged: {damage}; going on from the one before, {} (the damaged one is now {})",
                        from.display(),
                        dir.checkpoint(step).display(),
                        aside.display()
                    );
                }
                return Ok(step);
            }
        }
    }
    let damage: Vec<String> = damaged.iter().map(|(step, damage)| format!("step {step}: {damage}")).collect();
    Err(TrainError::NoGoodCheckpoint { path: dir.root().into(), damage: damage.join("; ") })
}

/// What is wrong with a checkpoint; that it cannot be read is damage, too.
fn damage(dir: &RunDir, step: u64) -> Option<String> {
    dir.damage(step).unwrap_or_else(|error| Some(format!("it cannot be read ({error})")))
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
