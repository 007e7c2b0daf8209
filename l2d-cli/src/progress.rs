//! Progress on the terminal. A bar when stderr is a terminal, a line now and then when it is a file.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use l2d_eval::metric::Proportion;
use l2d_eval::{Progress, Sample};
use l2d_train::data::{DataProgress, DatasetStats};
use l2d_train::objective::{StepLoss, TIMESTEP_BINS};
use l2d_train::{GenerationReport, Memory, Observer, StepReport, ValidationReport};

use crate::memory;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(20);

/// Shows a training run.
pub(crate) struct TrainProgress {
    bar: ProgressBar,
    last_line: Instant,
    smoothed: Option<f64>,
    begun: Instant,
    /// Updates since then.
    steps: u32,
}

impl TrainProgress {
    /// A bar over `total` updates.
    pub(crate) fn new(total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        bar.set_style(style("{bar:30} {pos}/{len} {elapsed} ETA {eta} · {msg}"));
        Self { bar, last_line: Instant::now(), smoothed: None, begun: Instant::now(), steps: 0 }
    }

    fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }
}

impl Observer for TrainProgress {
    fn step(&mut self, report: &StepReport) {
        let loss = report.loss.mean();
        self.steps += 1;
        // The mean of the last twenty or so: single batches are noisy.
        let smoothed = self.smoothed.map_or(loss, |old| 0.95 * old + 0.05 * loss);
        self.smoothed = Some(smoothed);
        let message = format!(
            "loss {smoothed:.4} · {:.0} tokens/s ({:.0} labelled) · lr {:.1e} · epoch {:.2}{}",
            report.tokens_per_second,
            report.labels_per_second,
            report.learning_rate,
            report.epoch,
            report.memory.map_or(String::new(), |memory| format!(" · {}", memory::written(memory.current as f64))),
        );
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            let left = report.total_steps.saturating_sub(report.step) as u32;
            let per_step = self.begun.elapsed() / self.steps.max(1);
            eprintln!(
                "step {}/{} · {message} · ETA {}",
                report.step,
                report.total_steps,
                HumanDuration(per_step.saturating_mul(left))
            );
            self.last_line = Instant::now();
        }
        self.bar.set_length(report.total_steps);
        self.bar.set_position(report.step);
        self.bar.set_message(message);
        if report.step == report.total_steps {
            self.bar.finish();
        }
    }

    fn validation(&mut self, report: &ValidationReport) {
        let mark = if report.best { " (best)" } else { "" };
        self.say(&format!(
            "step {} · validation loss {:.4}{mark}{}",
            report.step,
            report.loss.mean(),
            bins(&report.loss)
        ));
    }

    fn generation(&mut self, report: &GenerationReport) {
        let mark = if report.best { " (best)" } else { "" };
        let scores: Vec<String> = report
            .scores
            .iter()
            .map(|score| {
                let error = score.standard_error.map_or(String::new(), |error| format!(" ± {:.1}", 100.0 * error));
                format!("{:.1}{error} % at {}", 100.0 * score.accuracy, score.steps)
            })
            .collect();
        let problems = report.scores.first().map_or(0, |score| score.problems);
        self.say(&format!(
            "step {} · {} of {problems} problems: {}{mark} · {:.0} s",
            report.step,
            report.task,
            scores.join(", "),
            report.seconds
        ));
    }

    fn memory(&mut self) -> Option<Memory> {
        memory::process()
    }

    fn checkpoint(&mut self, _step: u64, folder: &Path) {
        tracing::info!("saved {}", folder.display());
    }
}

/// Shows rows being tokenised.
pub(crate) struct ReadProgress {
    bar: ProgressBar,
    start: Instant,
    last_line: Instant,
    /// Rows and tokens of the sources before the one at hand.
    before: (u64, u64),
    source: (String, u64, u64),
}

impl ReadProgress {
    /// Nothing is shown before the first rows.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("{spinner} {elapsed} · {msg}"));
        let now = Instant::now();
        Self { bar, start: now, last_line: now, before: (0, 0), source: (String::new(), 0, 0) }
    }

    /// Takes the line away; returns the seconds since the beginning.
    pub(crate) fn finish(&self) -> f64 {
        self.bar.finish_and_clear();
        self.start.elapsed().as_secs_f64()
    }
}

impl DataProgress for ReadProgress {
    fn rows(&mut self, source: &str, so_far: &DatasetStats) {
        if self.source.0 != source {
            self.before = (self.before.0 + self.source.1, self.before.1 + self.source.2);
        }
        self.source = (source.to_string(), so_far.rows, so_far.tokens);
        let (rows, tokens) = (self.before.0 + so_far.rows, self.before.1 + so_far.tokens);
        let rate = tokens as f64 / self.start.elapsed().as_secs_f64().max(1e-3);
        let message =
            format!("{rows} rows, {:.1} million tokens, {:.2} million/s · {source}", tokens as f64 / 1e6, rate / 1e6);
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            eprintln!("tokenising: {message}");
            self.last_line = Instant::now();
        }
        self.bar.set_message(message);
        self.bar.tick();
    }
}

/// Losses by tenths of diffusion time, e.g. ` · by t: .62 .60 ... .02`; empty where there is no diffusion.
pub(crate) fn bins(loss: &StepLoss) -> String {
    let Some(by_timestep) = &loss.by_timestep else { return String::new() };
    let means: Vec<String> =
        (0..TIMESTEP_BINS).map(|bin| by_timestep.mean(bin).map_or("-".into(), |mean| format!("{mean:.3}"))).collect();
    format!(" · by t: {}", means.join(" "))
}

/// Shows an evaluation.
pub(crate) struct EvalProgress {
    bar: ProgressBar,
    what: String,
    last_line: Instant,
    begun: Instant,
    /// New samples, their tokens and evaluations since then.
    samples: u32,
    tokens: usize,
    evaluations: usize,
}

impl EvalProgress {
    /// A bar over the samples of a run; `what` says of which.
    pub(crate) fn new(what: String) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        bar.set_style(style("{bar:30} {pos}/{len} {prefix} {elapsed} ETA {eta} · {msg}"));
        bar.set_prefix(what.clone());
        let now = Instant::now();
        Self { bar, what, last_line: now, begun: now, samples: 0, tokens: 0, evaluations: 0 }
    }

    /// Leaves the bar as it stands.
    pub(crate) fn finish(&self) {
        self.bar.finish();
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for EvalProgress {
    fn begin(&mut self, total: usize, resumed: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(resumed as u64);
    }

    fn batch(&mut self, finished: &[Sample], so_far: Option<Proportion>) {
        self.bar.inc(finished.len() as u64);
        self.samples += finished.len() as u32;
        self.tokens += finished.iter().map(|sample| sample.completion.tokens).sum::<usize>();
        self.evaluations += finished.iter().map(|sample| sample.completion.evaluations).sum::<usize>();
        let score = so_far.map_or_else(String::new, |score| format!("{:.1} % right · ", 100.0 * score.mean));
        let rate = self.tokens as f64 / self.begun.elapsed().as_secs_f64().max(1e-3);
        let each = self.evaluations as f64 / self.tokens.max(1) as f64;
        let message = format!("{score}{rate:.1} tokens/s · {each:.1} evaluations/token");
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let left = self.begun.elapsed() / self.samples.max(1) * total.saturating_sub(done) as u32;
            eprintln!("{}: {done}/{total} · {message} · ETA {}", self.what, HumanDuration(left));
            self.last_line = Instant::now();
        }
        self.bar.set_message(message);
    }
}

pub(crate) fn style(template: &str) -> ProgressStyle {
    // The templates are literals of this file; a broken one falls back to indicatif's own rather than ending a run.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
