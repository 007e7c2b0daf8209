//! One update of the weights.

use std::time::Instant;

use burn::tensor::backend::AutodiffBackend;
use rand_chacha::ChaCha8Rng;

use super::driver::Loop;
use super::{Purpose, StepReport, StepSeconds, generator};
use crate::data::{Batch, Example, micro_batches};
use crate::error::{Result, TrainError};
use crate::objective::StepLoss;
use crate::optimiser::{NamedGradients, clip_coefficient, forget_old_leaves};
use crate::ranks::Ranks;
use crate::task::Task;

impl<AB: AutodiffBackend, T: Task<AB>> Loop<'_, AB, T> {
    /// One update: gradients of all micro-batches, summed, divided by the number of labelled tokens of all of them.
    pub(super) fn update(&mut self, learning_rate: f64) -> Result<StepReport> {
        let (step, mut seconds) = (self.state.step + 1, StepSeconds::default());
        let mut lap = Lap(Instant::now());
        let batch = self.order.take(self.state.examples_seen, self.config.batch_size);
        let mine = places_of(self.ranks, batch.len());
        let picked = mine.clone().map(|place| self.examples.get(batch[place])).collect::<Result<Vec<_>>>()?;
        let picked: Vec<&Example> = picked.iter().map(AsRef::as_ref).collect();
        // An example's draws depend on its place in the whole batch, whichever rank it falls to.
        let places: Vec<u64> = mine.map(|place| place as u64).collect();
        let no_class = self.task.no_class(&self.model);
        let mut loss = StepLoss::default();
        let mut gradients = NamedGradients::default();
        let tokens: usize = picked.iter().map(|example| example.tokens.len()).sum();
        for micro in micro_batches(&picked, self.config.micro_batch_size.unwrap_or(picked.len())) {
            let batch = Batch::new(&micro.iter().map(|&i| picked[i]).collect::<Vec<_>>(), no_class);
            let batch = batch.padded_to(self.config.pad_to);
            let mut rngs: Vec<ChaCha8Rng> = micro
                .iter()
                .map(|&i| generator(self.config.seed, Purpose::Train, step * self.config.batch_size as u64 + places[i]))
                .collect();
            seconds.data += lap.seconds();
            let (micro_loss, micro_gradients) = self.task.gradients(&self.model, &batch, &mut rngs);
            loss.merge(&micro_loss);
            gradients.add(micro_gradients);
            seconds.gradients += lap.seconds();
        }
        let tokens = self.told_loss(&mut loss, tokens)?;
        seconds.waiting += lap.seconds();
        self.good(step, "loss", loss.mean(), Some(self.config.max_loss), self.state.step.saturating_sub(1))?;
        gradients.retain(&|name| self.groups.trains(name));
        gradients.sum_over(self.ranks)?;
        if self.ranks.size() > 1 {
            seconds.waiting += lap.seconds();
        }
        gradients.scale(1.0 / loss.tokens as f64);
        // A GPU may add up in another order each time. All must clip by one number, or their weights part in the last bits.
        let gradient_norm = self.first_rank_says(gradients.norm())?;
        // On a GPU the backward pass has come to an end when its norm is known.
        seconds.gradients += lap.seconds();
        self.good(step, "gradient norm", gradient_norm, None, self.state.step)?;
        if self.config.clip_norm > 0.0 {
            let coefficient = clip_coefficient(gradient_norm, self.config.clip_norm);
            if coefficient < 1.0 {
                gradients.scale(coefficient);
            }
        }
        self.model = self.optimiser.step::<AB, _>(self.model.clone(), &gradients, learning_rate);
        if let Some(ema) = &mut self.ema {
            ema.update::<AB, _>(&self.model, step);
        }
        forget_old_leaves::<AB>(self.device);
        seconds.optimiser = lap.seconds();
        self.state.step = step;
        self.state.examples_seen += self.config.batch_size as u64;
        Ok(StepReport {
            step,
            total_steps: self.state.total_steps,
            tokens_per_second: tokens as f64 / seconds.total(),
            labels_per_second: loss.tokens as f64 / seconds.total(),
            loss,
            gradient_norm,
            learning_rate,
            seconds,
            memory: None,
            epoch: self.state.examples_seen as f64 / self.examples.len() as f64,
        })
    }

    /// The first rank's number.
    fn first_rank_says(&self, own: f64) -> Result<f64> {
        let said = self.ranks.first_says(&own.to_le_bytes())?;
        let unread = || TrainError::Ranks { reason: "a message of another length than expected".into() };
        Ok(f64::from_le_bytes(said.try_into().map_err(|_| unread())?))
    }

    /// Adds up the loss of all ranks, and gives the sum of `tokens`.
    pub(super) fn told_loss(&self, loss: &mut StepLoss, tokens: usize) -> Result<usize> {
        if self.ranks.size() == 1 {
            return Ok(tokens);
        }
        let own = [vec![tokens as f64], loss.to_numbers()].concat();
        let own: Vec<u8> = own.iter().flat_map(|number| number.to_le_bytes()).collect();
        let (mut all, mut sum) = (StepLoss::default(), 0);
        for said in self.ranks.exchange(&own)? {
            let numbers: Vec<f64> = said.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
            let unread = || TrainError::Ranks { reason: "a message of another length than expected".into() };
            let (tokens, theirs) = numbers.split_first().ok_or_else(unread)?;
            all.merge(&StepLoss::from_numbers(theirs).ok_or_else(unread)?);
            sum += *tokens as usize;
        }
        *loss = all;
        Ok(sum)
    }
}

/// The places in a batch of `count` that are this rank's: every n-th, so that the parts are as alike as a shuffle makes them.
pub(super) fn places_of(ranks: &dyn Ranks, count: usize) -> std::iter::StepBy<std::ops::Range<usize>> {
    (ranks.rank().min(count)..count).step_by(ranks.size())
}

/// Measures one part after another.
struct Lap(Instant);

impl Lap {
    fn seconds(&mut self) -> f64 {
        let begun = std::mem::replace(&mut self.0, Instant::now());
        begun.elapsed().as_secs_f64()
    }
}
