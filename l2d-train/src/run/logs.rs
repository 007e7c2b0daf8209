//! What a run writes down while it goes: `metrics.jsonl` and TensorBoard's events.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{StepReport, ValidationReport};
use crate::error::Result;
use crate::log::{EventFile, MetricsLog};
use crate::objective::{StepLoss, TIMESTEP_BINS};
use crate::run_dir::RunDir;

/// Both files.
pub(super) struct Logs {
    metrics: MetricsLog,
    events: EventFile,
}

impl Logs {
    /// Opens both in a run's folder; lines after update `step` are of a future that will be another.
    pub(super) fn open(dir: &RunDir, step: u64) -> Result<Self> {
        let file = dir.root().join("metrics.jsonl");
        let metrics = if step > 0 { MetricsLog::resume(&file, step)? } else { MetricsLog::create(&file)? };
        Ok(Self { metrics, events: EventFile::create(dir.root(), wall_seconds())? })
    }

    /// Writes down an update.
    pub(super) fn step(&mut self, report: &StepReport) -> Result<()> {
        #[derive(Serialize)]
        struct Row {
            kind: &'static str,
            step: u64,
            loss: f64,
            tokens: usize,
            /// Mean loss in each tenth of diffusion time.
            by_timestep: Option<Vec<Option<f64>>>,
            gradient_norm: f64,
            learning_rate: f64,
            tokens_per_second: f64,
            labels_per_second: f64,
            epoch: f64,
            /// Bytes.
            memory: Option<u64>,
        }
        self.metrics.write(&Row {
            kind: "train",
            step: report.step,
            loss: report.loss.mean(),
            tokens: report.loss.tokens,
            by_timestep: bins(&report.loss),
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            tokens_per_second: report.tokens_per_second,
            labels_per_second: report.labels_per_second,
            epoch: report.epoch,
            memory: report.memory,
        })?;
        let scalars = [
            ("loss", report.loss.mean()),
            ("gradient_norm", report.gradient_norm),
            ("learning_rate", report.learning_rate),
            ("tokens_per_second", report.tokens_per_second),
            ("labels_per_second", report.labels_per_second),
        ];
        let now = wall_seconds();
        for (name, value) in scalars {
            self.events.scalar(now, report.step, &format!("train/{name}"), value as f32)?;
        }
        if let Some(bytes) = report.memory {
            self.events.scalar(now, report.step, "train/memory_mb", (bytes as f64 / 1e6) as f32)?;
        }
        self.by_timestep(now, report.step, "train", &report.loss)
    }

    /// Writes down a validation.
    pub(super) fn validation(&mut self, report: &ValidationReport) -> Result<()> {
        #[derive(Serialize)]
        struct Row {
            kind: &'static str,
            step: u64,
            loss: f64,
            tokens: usize,
            by_timestep: Option<Vec<Option<f64>>>,
            best: bool,
        }
        let now = wall_seconds();
        self.events.scalar(now, report.step, "validation/loss", report.loss.mean() as f32)?;
        self.by_timestep(now, report.step, "validation", &report.loss)?;
        self.metrics.write(&Row {
            kind: "validation",
            step: report.step,
            loss: report.loss.mean(),
            tokens: report.loss.tokens,
            by_timestep: bins(&report.loss),
            best: report.best,
        })
    }

    fn by_timestep(&mut self, now: f64, step: u64, group: &str, loss: &StepLoss) -> Result<()> {
        for (bin, mean) in bins(loss).into_iter().flatten().enumerate() {
            if let Some(mean) = mean {
                let tag = format!("{group}/loss_at_t/{:.1}", bin as f64 / TIMESTEP_BINS as f64);
                self.events.scalar(now, step, &tag, mean as f32)?;
            }
        }
        Ok(())
    }
}

/// Mean losses by diffusion time, where there is any.
fn bins(loss: &StepLoss) -> Option<Vec<Option<f64>>> {
    loss.by_timestep.map(|bins| (0..TIMESTEP_BINS).map(|bin| bins.mean(bin)).collect())
}

fn wall_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
