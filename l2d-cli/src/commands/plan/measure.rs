//! A few real updates: how long they take, and how much memory.

use std::sync::atomic::AtomicBool;

use burn::backend::Autodiff;
use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_train::data::{Example, ExampleSource};
use l2d_train::{Observer, StepReport, Task, TrainConfig, train};
use serde::Serialize;

use crate::backend::BackendKind;
use crate::commands::train::learner::Learner;
use crate::error::CliError;
use crate::memory;

/// Updates of each measurement: the first allocates moments and buffers, the second is one like all others.
const UPDATES: u64 = 2;

/// Updates at one size.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Sample {
    /// Sequences, the longest there are.
    pub(super) sequences: usize,
    /// Of the last update.
    pub(super) seconds: f64,
    /// The most the process held meanwhile, where that can be known.
    pub(super) peak_bytes: Option<f64>,
}

/// What was measured, and what follows from it.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    /// At one or two sizes.
    pub(super) samples: Vec<Sample>,
    /// Over typical examples, prompts included.
    pub(super) tokens_per_second: f64,
    pub(super) seconds_per_update: f64,
    pub(super) seconds_in_all: f64,
    /// Sequences of the longest examples, at most the batch; absent where the memory is not known.
    pub(super) largest_micro_batch: Option<usize>,
    /// Or measured.
    pub(super) largest_is_extrapolated: bool,
}

impl Measured {
    /// The peak at a micro-batch of so many sequences: measured, or on the line through the two sizes.
    pub(super) fn peak_at(&self, sequences: usize) -> Option<f64> {
        if let Some(sample) = self.samples.iter().find(|sample| sample.sequences == sequences) {
            return sample.peak_bytes;
        }
        let (fixed, each) = self.line()?;
        Some(fixed + each * sequences as f64)
    }

    /// What a single sequence takes.
    pub(super) fn least(&self) -> Option<f64> {
        self.samples.first().and_then(|sample| sample.peak_bytes)
    }

    /// Bytes without a sequence, and of each.
    fn line(&self) -> Option<(f64, f64)> {
        let [a, b] = self.samples.as_slice() else { return None };
        let (low, high) = (a.peak_bytes?, b.peak_bytes?);
        let each = ((high - low) / (b.sequences - a.sequences) as f64).max(0.0);
        Some((low - each * a.sequences as f64, each))
    }
}

/// Makes updates of one and of two of the longest examples, and of a few typical ones.
pub(super) fn measure<B: Backend>(
    learner: Learner<B>,
    longest: &[Example],
    examples: &dyn ExampleSource,
    config: &TrainConfig,
    device: &Device<B>,
    backend: BackendKind,
    available: Option<f64>,
) -> Result<Measured, CliError> {
    match learner {
        Learner::L2d(task, path) => {
            Dry { task: &*task, model: *path, config, device, backend }.all(longest, examples, available)
        }
        Learner::Lm(task, lm) => {
            Dry { task: &*task, model: *lm, config, device, backend }.all(longest, examples, available)
        }
    }
}

struct Dry<'a, B: Backend, T: Task<Autodiff<B>>> {
    task: &'a T,
    model: T::Model,
    config: &'a TrainConfig,
    device: &'a Device<B>,
    backend: BackendKind,
}

/// Keeps the last update's report.
#[derive(Default)]
struct Last(Option<StepReport>);

impl Observer for Last {
    fn step(&mut self, report: &StepReport) {
        self.0 = Some(report.clone());
    }
}

impl<B: Backend, T: Task<Autodiff<B>>> Dry<'_, B, T> {
    fn all(
        &self,
        longest: &[Example],
        examples: &dyn ExampleSource,
        available: Option<f64>,
    ) -> Result<Measured, CliError> {
        let batch = self.config.batch_size;
        let mut samples = Vec::new();
        for sequences in [1, 2].into_iter().filter(|&sequences| sequences <= longest.len()) {
            // What is known not to fit is not tried.
            let too_much = |sample: &Sample| sample.peak_bytes.zip(available).is_some_and(|(peak, room)| peak > room);
            if samples.last().is_some_and(too_much) {
                break;
            }
            let known = self.backend.is_cpu() && memory::forget_peak();
            let report = self.updates(&longest[..sequences])?;
            let peak_bytes = memory::process().filter(|_| known).map(|memory| memory.peak as f64);
            samples.push(Sample { sequences, seconds: report.seconds.total(), peak_bytes });
        }
        let micro = self.config.micro_batch_size.unwrap_or(batch).min(batch).min(longest.len());
        // A run with small micro-batches is measured with them, one with large ones with eight sequences.
        let mut order = examples.order(self.config.seed);
        let picked: Vec<Example> = order
            .take(0, micro.min(8))
            .into_iter()
            .map(|index| examples.get(index).map(|example| example.into_owned()))
            .collect::<Result<_, _>>()?;
        let report = self.updates(&picked)?;
        let mean = mean_tokens(examples)?;
        let seconds_per_update = batch as f64 * mean / report.tokens_per_second;
        let mut measured = Measured {
            samples,
            tokens_per_second: report.tokens_per_second,
            seconds_per_update,
            seconds_in_all: seconds_per_update * self.config.total_steps(examples.len()) as f64,
            largest_micro_batch: None,
            largest_is_extrapolated: false,
        };
        if measured.least().zip(available).is_some_and(|(least, available)| least > available) {
            measured.largest_micro_batch = Some(0);
        } else if let (Some((fixed, each)), Some(available)) = (measured.line(), available) {
            let fit = if fixed + each > available {
                0
            } else if each > 0.0 {
                (((available - fixed) / each) as usize).min(batch)
            } else {
                batch
            };
            measured.largest_micro_batch = Some(fit);
            measured.largest_is_extrapolated = !measured.samples.iter().any(|sample| sample.sequences == fit);
        }
        Ok(measured)
    }

    /// Updates of all of `examples` at once.
    fn updates(&self, examples: &[Example]) -> Result<StepReport, CliError> {
        let config = TrainConfig {
            steps: Some(UPDATES),
            warmup_steps: 0,
            batch_size: examples.len(),
            micro_batch_size: None,
            validate_every: 0,
            ..self.config.clone()
        };
        let mut last = Last::default();
        train(
            self.task,
            self.model.clone(),
            &examples,
            &[],
            &config,
            None,
            self.device,
            &AtomicBool::new(false),
            &mut last,
        )?;
        last.0.ok_or_else(|| CliError::Usage("no update was made: there is nothing to measure".into()))
    }
}

/// Tokens of an example on average.
fn mean_tokens(examples: &dyn ExampleSource) -> Result<f64, CliError> {
    let mut sum = 0usize;
    for index in 0..examples.len() {
        sum += examples.get(index)?.tokens.len();
    }
    Ok(sum as f64 / examples.len().max(1) as f64)
}
