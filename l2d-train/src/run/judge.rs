//! How good the weights are: by their loss on held-back examples, and by the answers they generate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::backend::AutodiffBackend;
use rand_chacha::ChaCha8Rng;

use super::driver::{Loop, Watchers};
use super::update::places_of;
use super::{GenerationReport, GenerationScore, Purpose, ValidationReport, generator};
use crate::config::BestBy;
use crate::data::{Batch, Example, micro_batches};
use crate::error::{Result, TrainError};
use crate::objective::StepLoss;
use crate::task::Task;

impl<AB: AutodiffBackend, T: Task<AB>> Loop<'_, AB, T> {
    /// The loss over the validation examples, under the same draws every time, so that reports can be compared. `false`
    /// when there are none, or when it was called off; then a resumed run begins with it.
    pub(super) fn validate(&mut self, watch: &mut Watchers<'_, T::Model>, cancel: &AtomicBool) -> Result<bool> {
        if self.validation.is_empty() {
            return Ok(false);
        }
        self.state.validation_pending = true;
        let Some(loss) = self.validation_loss(cancel)? else { return Ok(false) };
        self.state.validation_pending = false;
        let mean = loss.mean();
        let (step, limit) = (self.state.step, self.config.max_loss);
        self.good(step, "validation loss", mean, Some(limit), step.saturating_sub(1))?;
        if self.state.improved_to.is_none_or(|reference| mean < reference - self.config.early_stop_min_delta) {
            (self.state.improved_to, self.state.stale_validations) = (Some(mean), 0);
        } else {
            self.state.stale_validations += 1;
        }
        let best = self.state.best_validation.is_none_or(|lowest| mean < lowest);
        if best {
            self.state.best_validation = Some(mean);
            self.best_by(BestBy::Validation, watch)?;
        }
        let report = ValidationReport { step, loss, best };
        if let Some(logs) = &mut watch.logs {
            logs.validation(&report)?;
        }
        watch.observer.validation(&report);
        Ok(true)
    }

    fn validation_loss(&self, cancel: &AtomicBool) -> Result<Option<StepLoss>> {
        let model = self.averaged();
        let picked: Vec<&Example> = self.validation.iter().collect();
        let no_class = self.task.no_class(&model);
        let size = self.config.micro_batch_size.unwrap_or(self.config.batch_size);
        let mut loss = StepLoss::default();
        let micro = micro_batches(&picked, size);
        let mut whole = true;
        for micro in places_of(self.ranks, micro.len()).map(|place| &micro[place]) {
            if cancel.load(Ordering::Relaxed) {
                whole = false;
                break;
            }
            let batch = Batch::new(&micro.iter().map(|&i| picked[i]).collect::<Vec<_>>(), no_class);
            let batch = batch.padded_to(self.config.pad_to);
            let mut rngs: Vec<ChaCha8Rng> =
                micro.iter().map(|&i| generator(self.config.seed, Purpose::Validation, i as u64)).collect();
            loss.merge(&self.task.loss(&model, &batch, &mut rngs));
        }
        if self.ranks.any(!whole)? {
            return Ok(None);
        }
        self.told_loss(&mut loss, 0)?;
        Ok(Some(loss))
    }

    /// Has the evaluator answer its problems. `false` when it was called off; then a resumed run begins with it.
    pub(super) fn generate(&mut self, watch: &mut Watchers<'_, T::Model>, cancel: &AtomicBool) -> Result<bool> {
        if self.config.generate.task.is_none() {
            return Ok(false);
        }
        self.state.generation_pending = true;
        if self.called_off(cancel)? {
            return Ok(false);
        }
        let (step, start) = (self.state.step, Instant::now());
        let Some(scores) = self.scores(watch)? else { return Ok(false) };
        self.state.generation_pending = false;
        let most = scores.iter().max_by_key(|score| score.steps).map(|score| score.accuracy);
        let best = most.is_some_and(|accuracy| self.state.best_generation.is_none_or(|highest| accuracy > highest));
        if best {
            self.state.best_generation = most;
            self.best_by(BestBy::Generation, watch)?;
        }
        let task = watch.evaluator.task().to_string();
        let report = GenerationReport { step, task, scores, best, seconds: start.elapsed().as_secs_f64() };
        if let Some(logs) = &mut watch.logs {
            logs.generation(&report)?;
        }
        watch.observer.generation(&report);
        Ok(true)
    }

    /// The first rank's evaluator answers, the others wait.
    fn scores(&self, watch: &mut Watchers<'_, T::Model>) -> Result<Option<Vec<GenerationScore>>> {
        let step = self.state.step;
        let mut found = None;
        if self.ranks.is_first() {
            let answered = watch.evaluator.generate(&self.averaged());
            found = answered.map_err(|source| TrainError::Generation { step, source })?;
        }
        let unread = |error: serde_json::Error| TrainError::Ranks { reason: format!("scores: {error}") };
        let own = serde_json::to_vec(&found).map_err(unread)?;
        serde_json::from_slice(&self.ranks.first_says(&own)?).map_err(unread)
    }

    /// These weights are the best so far by the given measure.
    fn best_by(&mut self, measure: BestBy, watch: &mut Watchers<'_, T::Model>) -> Result<()> {
        if measure == self.config.best {
            self.state.best_step = Some(self.state.step);
            // The best must be on the disk to be worth the name, whatever the interval of checkpoints.
            self.save(watch.observer)?;
        }
        Ok(())
    }

    /// Whether so many validations brought no improvement that the run should end.
    pub(super) fn out_of_patience(&self) -> bool {
        self.config.early_stop_patience > 0 && self.state.stale_validations >= self.config.early_stop_patience
    }
}
