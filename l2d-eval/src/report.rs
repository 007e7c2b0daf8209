//! What is kept of an evaluation: one JSON document with every setting that was used, and a table for people.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::metric::{PairedDifference, Proportion};
use crate::rows::Provenance;
use crate::runner::{Evaluation, RowCounts, RunResult, RunSettings};

/// Raised when a field changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// The result of evaluating one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// What was asked.
    pub task: TaskReport,
    /// The model, as the caller describes it.
    pub model: Value,
    /// One entry a run.
    pub runs: Vec<RunReport>,
}

/// The task as it was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// The data set, `owner/name/config`, for a public one.
    pub data_set: Option<String>,
    /// The files the rows came from.
    pub files: Vec<String>,
    /// The split evaluated.
    pub split: String,
    /// The split of the shots, where there are any.
    pub shot_split: Option<String>,
    /// Solved problems before the question.
    pub shots: usize,
    /// The most tokens of a completion.
    pub max_new_tokens: usize,
    /// Texts that end a completion.
    pub stop_strings: Vec<String>,
    /// Hash of all prompts.
    pub prompt_hash: String,
    /// What became of the rows.
    pub rows: RowCounts,
    /// What each metric counts, the first one being the accuracy to quote.
    pub metrics: Vec<MetricReport>,
}

/// What a metric counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// What it counts.
    pub description: String,
}

impl TaskReport {
    /// Describes a prepared evaluation; `files` is where its rows came from.
    pub fn new(evaluation: &Evaluation<'_>, files: Option<&Provenance>) -> Self {
        let task = evaluation.task();
        Self {
            name: task.name().to_owned(),
            version: task.version(),
            data_set: task.data_set().map(|data_set| data_set.to_string()),
            files: files.map(|files| files.files.clone()).unwrap_or_default(),
            split: task.split().to_owned(),
            shot_split: (task.shots() > 0).then(|| task.shot_split().to_owned()),
            shots: task.shots(),
            max_new_tokens: task.max_new_tokens(),
            stop_strings: task.stop_strings(),
            prompt_hash: evaluation.prompt_hash().to_owned(),
            rows: evaluation.counts(),
            metrics: task
                .metrics()
                .iter()
                .map(|metric| MetricReport { name: metric.name.to_owned(), description: metric.description.to_owned() })
                .collect(),
        }
    }
}

/// One metric's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// The metric.
    pub name: String,
    /// Its mean and uncertainty.
    #[serde(flatten)]
    pub value: Proportion,
}

/// One run: a model with one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// What tells it from runs with as many steps, e.g. the adapter's name. Runs of one series make one line of the plot.
    pub series: String,
    /// Evaluations a token, 1 being the plain LM.
    pub steps: usize,
    /// Every setting of the run.
    pub settings: RunSettings,
    /// Whether it was called off early: then its numbers are over the samples there are.
    pub interrupted: bool,
    /// Finished samples.
    pub samples: usize,
    /// How many of them come from an earlier run's journal.
    pub resumed: usize,
    /// Every metric, in the task's order.
    pub metrics: Vec<MetricValue>,
    /// Samples in which an answer was found, over all samples.
    pub format_rate: f64,
    /// Samples cut off at the most tokens, over all samples.
    pub cut_off_rate: f64,
    /// New tokens of all samples.
    pub tokens: usize,
    /// Prompt tokens of all samples.
    pub prompt_tokens: usize,
    /// Wall-clock seconds of generating, earlier runs' included.
    pub seconds: f64,
    /// New tokens a second.
    pub tokens_per_second: Option<f64>,
    /// Evaluations over all tokens, as a budget counts them.
    pub evaluations: usize,
    /// The same for one token.
    pub evaluations_per_token: Option<f64>,
}

impl RunReport {
    /// Sums up a run.
    pub fn new(
        evaluation: &Evaluation<'_>,
        series: impl Into<String>,
        steps: usize,
        settings: &RunSettings,
        result: &RunResult,
    ) -> Self {
        let task = evaluation.task();
        let samples = &result.samples;
        let count = samples.len();
        let rate = |hits: usize| if count == 0 { 0.0 } else { hits as f64 / count as f64 };
        let answered = |scores: &crate::task::Scores| {
            scores.get(task.format_metric()).is_some_and(|score| score.extracted.is_some())
        };
        let tokens: usize = samples.iter().map(|sample| sample.completion.tokens).sum();
        let evaluations: usize = samples.iter().map(|sample| sample.completion.evaluations).sum();
        let seconds: f64 = samples.iter().map(|sample| sample.seconds).sum();
        Self {
            series: series.into(),
            steps,
            settings: settings.clone(),
            interrupted: result.interrupted,
            samples: count,
            resumed: samples.iter().filter(|sample| sample.resumed).count(),
            metrics: task
                .metrics()
                .iter()
                .filter_map(|metric| {
                    let value = Proportion::of(result.judged(metric.name))?;
                    Some(MetricValue { name: metric.name.to_owned(), value })
                })
                .collect(),
            format_rate: rate(samples.iter().filter(|sample| answered(&sample.scores)).count()),
            cut_off_rate: rate(
                samples.iter().filter(|s| s.completion.finish == crate::generate::FinishReason::MaxTokens).count(),
            ),
            tokens,
            prompt_tokens: samples.iter().map(|sample| sample.completion.prompt_tokens).sum(),
            seconds,
            tokens_per_second: (seconds > 0.0).then(|| tokens as f64 / seconds),
            evaluations,
            evaluations_per_token: (tokens > 0).then(|| evaluations as f64 / tokens as f64),
        }
    }

    /// The value to quote: the task's first metric. `None` where there are no samples.
    pub fn accuracy(&self) -> Option<Proportion> {
        self.metrics.first().map(|metric| metric.value)
    }
}

impl Report {
    /// A report of `runs`.
    pub fn new(task: TaskReport, model: Value, runs: Vec<RunReport>) -> Self {
        Self { schema: SCHEMA_VERSION, task, model, runs }
    }

    /// The document, indented, with a newline at the end.
    ///
    /// # Errors
    /// [`crate::Error::Json`] where a number is not finite.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// The table with a heading and what the numbers stand on.
    pub fn to_markdown(&self) -> String {
        let task = &self.task;
        let RowCounts { rows, too_long, without_answer, questions } = task.rows;
        let mut text = format!("## {} (version {})\n\n", task.name, task.version);
        text.push_str(&markdown_table(&self.runs));
        let _ = write!(text, "\n{questions} of {rows} rows asked");
        for (count, why) in [(too_long, "too long"), (without_answer, "without an answer")] {
            if count > 0 {
                let _ = write!(text, ", {count} {why}");
            }
        }
        let _ = write!(
            text,
            "; {} shots, at most {} new tokens; prompts {}",
            task.shots, task.max_new_tokens, task.prompt_hash
        );
        text.push_str(".\n± is the standard error, clustered by question.");
        for metric in &task.metrics {
            let _ = write!(text, " {}: {}.", metric.name, metric.description);
        }
        text.push_str(" evaluations/token: the closing one and that of the plain LM at t = 0 included.");
        for run in self.runs.iter().filter(|run| run.cut_off_rate > 0.0) {
            let share = 100.0 * run.cut_off_rate;
            let _ =
                write!(text, "\n{share:.1} % of the answers at {} steps were cut off at the most tokens.", run.steps);
        }
        if self.runs.iter().any(|run| run.interrupted) {
            text.push_str(" * called off early.");
        }
        text.push('\n');
        text
    }
}

/// One row a run: steps, every metric with its standard error in percent, how many keep the answer's format, speed. The
/// series has a column only where there are several.
pub fn markdown_table(runs: &[RunReport]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let several = runs.iter().any(|run| run.series != first.series);
    let names: Vec<&str> = runs
        .iter()
        .max_by_key(|run| run.metrics.len())
        .map(|run| &run.metrics)
        .into_iter()
        .flatten()
        .map(|m| m.name.as_str())
        .collect();

    let mut header: Vec<String> = Vec::new();
    if several {
        header.push("series".to_owned());
    }
    header.push("steps".to_owned());
    header.extend(names.iter().map(|name| format!("{name} %")));
    header.extend(["format %", "samples", "evaluations/token", "tokens/s"].map(str::to_owned));

    let mut rows = vec![header];
    for run in runs {
        let mut cells = Vec::new();
        if several {
            cells.push(run.series.clone());
        }
        cells.push(format!("{}{}", run.steps, if run.interrupted { "*" } else { "" }));
        for name in &names {
            let value = run.metrics.iter().find(|metric| metric.name == *name).map(|metric| metric.value);
            cells.push(value.map_or_else(|| "–".to_owned(), percent));
        }
        cells.push(format!("{:.1}", 100.0 * run.format_rate));
        cells.push(run.samples.to_string());
        cells.push(run.evaluations_per_token.map_or_else(|| "–".to_owned(), |n| format!("{n:.2}")));
        cells.push(run.tokens_per_second.map_or_else(|| "–".to_owned(), |n| format!("{n:.1}")));
        rows.push(cells);
    }
    align(&rows, usize::from(several))
}

/// One line on how much better `first` is than `second`.
pub fn describe_difference(first: &str, second: &str, difference: &PairedDifference) -> String {
    let mut text = format!("{first} − {second}: {:+.1} points", 100.0 * difference.difference);
    if let Some(error) = difference.standard_error {
        let _ = write!(text, " ± {:.1}", 100.0 * error);
    }
    if let Some([low, high]) = difference.interval_95 {
        let _ = write!(text, " (95 %: {:+.1} to {:+.1})", 100.0 * low, 100.0 * high);
    }
    let PairedDifference { first_better, second_better, questions, .. } = difference;
    let _ = write!(text, ", better on {first_better} and worse on {second_better} of {questions} questions");
    text
}

fn percent(value: Proportion) -> String {
    match value.standard_error {
        Some(error) => format!("{:.1} ± {:.1}", 100.0 * value.mean, 100.0 * error),
        None => format!("{:.1}", 100.0 * value.mean),
    }
}

/// A markdown table whose columns also line up as plain text; all but the first `left` columns are right-aligned.
fn align(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows[0].len();
    let escape = |cell: &str| cell.replace('|', "\\|").replace('\n', " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    let width: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(width[column] - cell.chars().count());
            let _ = if column < left { write!(text, "| {cell}{pad} ") } else { write!(text, "| {pad}{cell} ") };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in width.iter().enumerate() {
                let _ = if column < left {
                    write!(text, "|:{} ", "-".repeat(*width))
                } else {
                    write!(text, "| {}:", "-".repeat(*width))
                };
            }
            text.push_str("|\n");
        }
    }
    text
}
