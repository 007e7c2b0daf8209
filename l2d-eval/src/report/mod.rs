//! What is kept of an evaluation: one JSON document with every setting that was used, and tables for people.

mod json;
mod table;

pub use table::{describe_difference, markdown_table};

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::generate::FinishReason;
use crate::metric::{Judged, PairedDifference, PassAtK, Proportion};
use crate::rows::SourceFile;
use crate::runner::{RowCounts, RunResult, RunSettings, Sample};
use crate::task::{Profile, Task};

/// Raised when a field changes its meaning.
pub const SCHEMA_VERSION: u32 = 2;

/// The result of evaluating one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// What was asked.
    pub task: TaskReport,
    /// The model, as the caller describes it.
    pub model: Value,
    /// Where programs of the model ran, as the caller describes it; null where none did.
    #[serde(default)]
    pub environment: Value,
    /// One entry a run.
    pub runs: Vec<RunReport>,
    /// Each run against the first, on the questions both answered, by the metric to quote.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
}

/// A run against another on the same questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The one that is better where the difference is above 0.
    pub first: String,
    /// The other.
    pub second: String,
    /// By how much.
    #[serde(flatten)]
    pub difference: PairedDifference,
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
    /// The files the rows and the shots came from, with their SHA-256.
    pub files: Vec<SourceFile>,
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
    /// Hash of all prompts; `None` where they were not built, in a rescoring.
    pub prompt_hash: Option<String>,
    /// What became of the rows.
    pub rows: RowCounts,
    /// Whose rules the quoted metric follows.
    pub profile: Profile,
    /// The metric to quote under that profile.
    pub headline: String,
    /// Whether only the first run was asked with these shots and this many tokens: the others' are in their series and settings.
    #[serde(default)]
    pub asked_otherwise: bool,
    /// What each metric counts.
    pub metrics: Vec<MetricReport>,
}

/// What a metric counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// Whose rules it follows.
    pub profile: Profile,
    /// What it counts.
    pub description: String,
    /// The key under which a result of lm-evaluation-harness has it, beside ours in `results`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harness_key: Option<String>,
}

impl TaskReport {
    /// Describes a task as it was asked. `files` are those its rows and shots came from.
    pub fn new(
        task: &dyn Task,
        profile: Profile,
        rows: RowCounts,
        prompt_hash: Option<&str>,
        files: &[SourceFile],
    ) -> Self {
        Self {
            name: task.name().to_owned(),
            version: task.version(),
            data_set: task.data_set().map(|data_set| data_set.to_string()),
            files: files.to_vec(),
            split: task.split().to_owned(),
            shot_split: (task.shots() > 0 && task.shot_rows() != Some(0)).then(|| task.shot_split().to_owned()),
            shots: task.shots(),
            max_new_tokens: task.max_new_tokens(),
            stop_strings: task.stop_strings(),
            prompt_hash: prompt_hash.map(str::to_owned),
            rows,
            profile,
            headline: task.headline(profile).to_owned(),
            asked_otherwise: false,
            metrics: task
                .metrics()
                .iter()
                .map(|metric| MetricReport {
                    name: metric.name.clone().into_owned(),
                    profile: metric.profile,
                    description: metric.description.clone().into_owned(),
                    harness_key: metric.harness_key.map(str::to_owned),
                })
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
    /// Samples in which it found an answer, over all samples.
    #[serde(default)]
    pub found_rate: f64,
}

/// What tells a run from the others of a grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunLabel {
    /// What tells it from runs with as many steps, e.g. the adapter's name. Runs of one series make one line of the plot.
    pub series: String,
    /// Evaluations a token, 1 being the plain LM.
    pub steps: usize,
    /// Strength of the guidance, where there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
}

/// One run: a model with one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Its place in the grid.
    #[serde(flatten)]
    pub label: RunLabel,
    /// Every setting of the run.
    pub settings: RunSettings,
    /// Whether it was called off early: then its numbers are over the samples there are.
    pub interrupted: bool,
    /// Finished samples.
    pub samples: usize,
    /// How many of them come from an earlier run's journal.
    pub resumed: usize,
    /// Every metric, the one to quote first.
    pub metrics: Vec<MetricValue>,
    /// pass@k by the metric to quote, for every power of two and the usual 1, 5 and 10 up to the samples of a question;
    /// empty for one sample a question.
    #[serde(default)]
    pub pass_at_k: Vec<PassAtK>,
    /// What the answers were along the diffusion's time, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub along: Vec<AlongTime>,
    /// Samples that keep the task's own format, over all samples: those in which [`Task::format_metric`] found an answer, whichever
    /// metric is quoted.
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

/// The answers at one time of the diffusion, each token taken there after the tokens that were really emitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AlongTime {
    /// The time, in [0, 1).
    pub t: f64,
    /// Right answers, by the metric to quote.
    pub score: Proportion,
    /// Tokens that are those emitted in the end, over all tokens.
    pub agreement: f64,
}

/// The answers at each time that all samples have.
fn along(samples: &[Sample], headline: &str) -> Vec<AlongTime> {
    let times = samples.iter().map(|sample| sample.along.len()).min().unwrap_or(0);
    let at = |place: usize| {
        let judged = samples.iter().filter_map(|sample| {
            let score = sample.along[place].get(headline)?;
            Some(Judged { question: sample.row, correct: score.correct })
        });
        let agreeing: usize = samples.iter().map(|sample| sample.completion.along[place].agreeing).sum();
        let tokens: usize = samples.iter().map(|sample| sample.completion.tokens).sum();
        Some(AlongTime {
            t: samples.first()?.completion.along[place].t,
            score: Proportion::of(judged)?,
            agreement: agreeing as f64 / tokens.max(1) as f64,
        })
    };
    (0..times).filter_map(at).collect()
}

impl RunReport {
    /// Sums up a run.
    pub fn new(task: &dyn Task, profile: Profile, label: RunLabel, settings: &RunSettings, result: &RunResult) -> Self {
        let samples = &result.samples;
        let count = samples.len();
        let rate = |hits: usize| if count == 0 { 0.0 } else { hits as f64 / count as f64 };
        let found = |name: &str| {
            let found = |sample: &&Sample| sample.scores.get(name).is_some_and(|score| score.extracted.is_some());
            rate(samples.iter().filter(found).count())
        };
        let tokens: usize = samples.iter().map(|sample| sample.completion.tokens).sum();
        let evaluations: usize = samples.iter().map(|sample| sample.completion.evaluations).sum();
        let seconds: f64 = samples.iter().map(|sample| sample.seconds).sum();
        let headline = task.headline(profile);
        let mut names: Vec<&str> = task.metrics().iter().map(|metric| &*metric.name).collect();
        // Stable: the others stay in the task's order.
        names.sort_by_key(|name| *name != headline);
        let value = |name: &str| {
            let value = Proportion::of(result.judged(name))?;
            Some(MetricValue { name: name.to_owned(), value, found_rate: found(name) })
        };
        Self {
            label,
            settings: settings.clone(),
            interrupted: result.interrupted,
            samples: count,
            resumed: samples.iter().filter(|sample| sample.resumed).count(),
            metrics: names.into_iter().filter_map(value).collect(),
            pass_at_k: budgets(settings.samples)
                .into_iter()
                .filter_map(|k| PassAtK::of(result.judged(headline), k))
                .collect(),
            along: along(samples, headline),
            format_rate: found(task.format_metric()),
            cut_off_rate: rate(samples.iter().filter(|s| s.completion.finish == FinishReason::MaxTokens).count()),
            tokens,
            prompt_tokens: samples.iter().map(|sample| sample.completion.prompt_tokens).sum(),
            seconds,
            tokens_per_second: (seconds > 0.0).then(|| tokens as f64 / seconds),
            evaluations,
            evaluations_per_token: (tokens > 0).then(|| evaluations as f64 / tokens as f64),
        }
    }

    /// pass@k, where it was computed for that k.
    pub fn pass_at(&self, k: usize) -> Option<PassAtK> {
        self.pass_at_k.iter().copied().find(|pass| pass.k == k)
    }

    /// The name of the run in a list: `L2D at 15 steps, guidance 2, seed 1`.
    pub fn title(&self) -> String {
        let RunLabel { series, steps, guidance } = &self.label;
        let guidance = guidance.map_or_else(String::new, |strength| format!(", guidance {strength}"));
        let plural = if *steps == 1 { "" } else { "s" };
        format!("{series} at {steps} step{plural}{guidance}, seed {}", self.settings.seed)
    }

    /// The value to quote, that of the profile's metric. `None` where there are no samples.
    pub fn accuracy(&self) -> Option<Proportion> {
        self.metrics.first().map(|metric| metric.value)
    }
}

impl Report {
    /// A report of `runs`, each with its samples, the first of which the others are compared with.
    pub fn new(task: TaskReport, model: Value, runs: Vec<(RunReport, &RunResult)>) -> Self {
        let mut comparisons = Vec::new();
        if let Some((first, base)) = runs.first() {
            for (run, result) in &runs[1..] {
                // A run that was called off, or asked fewer rows, is not over all of them.
                let difference =
                    PairedDifference::of_common(result.judged(&task.headline), base.judged(&task.headline));
                if let Some(difference) = difference {
                    comparisons.push(Comparison { first: run.title(), second: first.title(), difference });
                }
            }
        }
        let runs = runs.into_iter().map(|(run, _)| run).collect();
        Self { schema: SCHEMA_VERSION, task, model, environment: Value::Null, runs, comparisons }
    }

    /// The same, with where programs of the model ran.
    pub fn in_environment(self, environment: Value) -> Self {
        Self { environment, ..self }
    }

    /// The document, indented, with a newline at the end. Beside the fields of this struct it has those by which readers of
    /// lm-evaluation-harness's results find theirs.
    ///
    /// # Errors
    /// [`crate::Error::Json`] where a number is not finite.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(&json::document(self)?)?;
        text.push('\n');
        Ok(text)
    }

    /// One line for each metric of each run.
    ///
    /// # Errors
    /// [`crate::Error::Csv`].
    pub fn to_csv(&self) -> Result<String> {
        table::csv(self)
    }

    /// The table with a heading and what the numbers stand on.
    pub fn to_markdown(&self) -> String {
        table::markdown(self, None)
    }

    /// The same with a column of published numbers beside it.
    pub fn to_markdown_beside(&self, published: &Published) -> String {
        table::markdown(self, Some(published))
    }
}

/// Numbers somebody published, to stand beside ours: in percent, by task and steps.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// What the column is called, e.g. `paper, Llama-3.2-1B`.
    pub name: String,
    /// Where the numbers come from.
    pub source: String,
    /// The numbers.
    pub scores: Vec<PublishedScore>,
}

/// One published number.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedScore {
    /// The task, by its name here.
    pub task: String,
    /// Evaluations a token; 1 for a plain LM.
    pub steps: usize,
    /// The score in percent.
    pub percent: f64,
}

impl Published {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`crate::Error::Io`], or [`crate::Error::TaskFile`] with what is wrong in it.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        toml::from_str(&text).map_err(|error| Error::TaskFile { path: path.to_path_buf(), reason: error.to_string() })
    }

    /// The number for a run, if one was published.
    pub fn score(&self, task: &str, steps: usize) -> Option<f64> {
        self.scores.iter().find(|score| score.task == task && score.steps == steps).map(|score| score.percent)
    }
}

/// The k of pass@k worth knowing for `samples` a question.
fn budgets(samples: usize) -> Vec<usize> {
    if samples < 2 {
        return Vec::new();
    }
    let mut budgets: Vec<usize> =
        std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|k| *k <= samples).collect();
    budgets.extend([5, 10, samples].into_iter().filter(|k| *k <= samples));
    budgets.sort_unstable();
    budgets.dedup();
    budgets
}
