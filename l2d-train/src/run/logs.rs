//! A run's reports as lines of `metrics.jsonl` and as TensorBoard scalars.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{GenerationReport, GenerationScore, StepReport, ValidationReport};
use crate::error::Result;
use crate::log::{EventFile, MetricsLog};
use crate::objective::{StepLoss, TIMESTEP_BINS};

/// The open logs of a run.
pub(super) struct Logs {
    metrics: MetricsLog,
    events: EventFile,
}

#[derive(Serialize)]
struct StepRow {
    kind: &'static str,
    step: u64,
    loss: f64,
    tokens: usize,
    by_timestep: Option<Vec<Option<f64>>>,
    gradient_norm: f64,
    learning_rate: f64,
    epoch: f64,
    tokens_per_second: f64,
    labels_per_second: f64,
    seconds_data: f64,
    seconds_gradients: f64,
    seconds_optimiser: f64,
    seconds_waiting: f64,
    memory: Option<u64>,
    peak_memory: Option<u64>,
}

#[derive(Serialize)]
struct ValidationRow {
    kind: &'static str,
    step: u64,
    loss: f64,
    tokens: usize,
    by_timestep: Option<Vec<Option<f64>>>,
    best: bool,
}

#[derive(Serialize)]
struct GenerationRow<'a> {
    kind: &'static str,
    step: u64,
    task: &'a str,
    scores: &'a [GenerationScore],
    best: bool,
    seconds: f64,
}

/// Mean loss in each tenth of diffusion time.
fn bins(loss: &StepLoss) -> Option<Vec<Option<f64>>> {
    loss.by_timestep.map(|bins| (0..TIMESTEP_BINS).map(|bin| bins.mean(bin)).collect())
}

impl Logs {
    /// Opens the logs in a run's folder; those of a run that goes on after `step` updates lose what came later.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let metrics = if step > 0 { MetricsLog::resume(&path, step)? } else { MetricsLog::create(&path)? };
        Ok(Self { metrics, events: EventFile::create(folder, wall_seconds())? })
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let now = wall_seconds();
        scalars.iter().try_for_each(|(tag, value)| self.events.scalar(now, step, tag, *value as f32))
    }

    fn bin_scalars(&mut self, step: u64, prefix: &str, bins: Option<&[Option<f64>]>) -> Result<()> {
        for (bin, mean) in bins.into_iter().flatten().enumerate() {
            if let Some(mean) = mean {
                let tag = format!("{prefix}/loss_at_t/{:.1}", bin as f64 / TIMESTEP_BINS as f64);
                self.scalars(step, &[(&tag, *mean)])?;
            }
        }
        Ok(())
    }

    pub(super) fn step(&mut self, report: &StepReport) -> Result<()> {
        let (loss, seconds, by_timestep) = (report.loss.mean(), report.seconds, bins(&report.loss));
        self.scalars(
            report.step,
            &[
                ("train/loss", loss),
                ("train/gradient_norm", report.gradient_norm),
                ("train/learning_rate", report.learning_rate),
                ("train/tokens_per_second", report.tokens_per_second),
                ("train/labels_per_second", report.labels_per_second),
                ("train/seconds/data", seconds.data),
                ("train/seconds/gradients", seconds.gradients),
                ("train/seconds/optimiser", seconds.optimiser),
                ("train/seconds/waiting", seconds.waiting),
            ],
        )?;
        if let Some(memory) = report.memory {
            let (now, peak) = (memory.current as f64, memory.peak as f64);
            self.scalars(report.step, &[("train/memory", now), ("train/peak_memory", peak)])?;
        }
        self.bin_scalars(report.step, "train", by_timestep.as_deref())?;
        self.metrics.write(&StepRow {
            kind: "train",
            step: report.step,
            loss,
            tokens: report.loss.tokens,
            by_timestep,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            epoch: report.epoch,
            tokens_per_second: report.tokens_per_second,
            labels_per_second: report.labels_per_second,
            seconds_data: seconds.data,
            seconds_gradients: seconds.gradients,
            seconds_optimiser: seconds.optimiser,
            seconds_waiting: seconds.waiting,
            memory: report.memory.map(|memory| memory.current),
            peak_memory: report.memory.map(|memory| memory.peak),
        })
    }

    pub(super) fn validation(&mut self, report: &ValidationReport) -> Result<()> {
        let (loss, by_timestep) = (report.loss.mean(), bins(&report.loss));
        self.scalars(report.step, &[("validation/loss", loss)])?;
        self.bin_scalars(report.step, "validation", by_timestep.as_deref())?;
        let (step, tokens, best) = (report.step, report.loss.tokens, report.best);
        self.metrics.write(&ValidationRow { kind: "validation", step, loss, tokens, by_timestep, best })
    }

    pub(super) fn generation(&mut self, report: &GenerationReport) -> Result<()> {
        let GenerationReport { step, task, scores, best, seconds } = report;
        for score in scores {
            self.scalars(*step, &[(&format!("generation/{task}/{}", score.steps), score.accuracy)])?;
        }
        self.metrics.write(&GenerationRow {
            kind: "generation",
            step: *step,
            task,
            scores,
            best: *best,
            seconds: *seconds,
        })
    }
}

fn wall_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
