//! From rows to judged samples: prompts, batches, the journal, progress, stopping early.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{BoxError, Error, Result};
use crate::generate::{Completion, FinishReason, GenerateRequest, Generator};
use crate::journal::{Journal, Record, hash, sample_key};
use crate::metric::{Judged, Proportion};
use crate::rows::Row;
use crate::task::{Problem, Scores, Task, Turn};

/// Which prompts are short enough.
pub struct LengthLimit<'a> {
    /// Counts the tokens of a prompt and its reference solution.
    pub measure: &'a dyn Fn(&[Turn], &str) -> Result<RowLength, BoxError>,
    /// The most prompt and solution may have together; the paper drops rows over 2048.
    pub max_tokens: usize,
    /// The most prompt and completion may have together: the model's context.
    pub context: usize,
}

/// Tokens of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLength {
    /// Of the prompt, generation prompt included.
    pub prompt: usize,
    /// Of the reference solution.
    pub solution: usize,
}

/// How a run generates. `generation` is the only part the harness does not read itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// Completions a question.
    pub samples: usize,
    /// Completions generated together.
    pub batch_size: usize,
    /// Seed of all randomness.
    pub seed: u64,
    /// Everything else a completion depends on (model, adapter, steps, sampling), as the report and the journal's keys
    /// should hold it.
    pub generation: Value,
}

impl RunSettings {
    fn check(&self) -> Result<()> {
        for (key, value) in [("samples", self.samples), ("batch_size", self.batch_size)] {
            if value == 0 || u32::try_from(value).is_err() {
                return Err(Error::Setting { key, reason: format!("{value} is not at least 1 and below 2^32") });
            }
        }
        Ok(())
    }
}

/// What became of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows looked at.
    pub rows: usize,
    /// Rows dropped because prompt and reference solution, or prompt and completion, are too long together.
    pub too_long: usize,
    /// Rows left out because their reference solution holds no answer.
    pub without_answer: usize,
    /// Rows that are asked.
    pub questions: usize,
}

#[derive(Debug, Clone)]
struct Question {
    row: usize,
    problem: Problem,
    turns: Vec<Turn>,
}

/// A finished sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The row of the split, from 0.
    pub row: usize,
    /// Which sample of the row, from 0.
    pub sample: usize,
    /// The completion.
    pub completion: Completion,
    /// How it was judged.
    pub scores: Scores,
    /// Its share of its batch's wall-clock seconds.
    pub seconds: f64,
    /// Whether it comes from the journal.
    pub resumed: bool,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunResult {
    /// The samples, by row and sample number.
    pub samples: Vec<Sample>,
    /// Whether it was called off before all samples were there.
    pub interrupted: bool,
}

impl RunResult {
    /// The judgement of one metric on every sample.
    pub fn judged<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = Judged> + 'a {
        self.samples.iter().filter_map(move |sample| {
            let score = sample.scores.get(metric)?;
            Some(Judged { question: sample.row, correct: score.correct })
        })
    }
}

/// Watches a run. Every method does nothing by default.
pub trait Progress {
    /// The run begins: `total` samples, `resumed` of which the journal already holds.
    fn begin(&mut self, total: usize, resumed: usize) {
        let _ = (total, resumed);
    }

    /// A batch is finished. `so_far` is the first metric over all finished samples.
    fn batch(&mut self, finished: &[Sample], so_far: Proportion) {
        let _ = (finished, so_far);
    }
}

impl Progress for () {}

/// A task with its prompts, ready to be run with one setting after another.
pub struct Evaluation<'t> {
    task: &'t dyn Task,
    questions: Vec<Question>,
    counts: RowCounts,
    prompt_hash: String,
}

impl<'t> Evaluation<'t> {
    /// Builds the prompts of the first `limit` rows (all for `None`) with the shots from `shot_rows`. The limit counts rows
    /// before any is dropped.
    ///
    /// # Errors
    /// [`Error::TooFewShots`]; a row without its columns; [`Error::Prompt`]; [`Error::NoRows`] where none is left.
    pub fn prepare(
        task: &'t dyn Task,
        rows: &[Row],
        shot_rows: &[Row],
        limit: Option<usize>,
        length: Option<&LengthLimit<'_>>,
    ) -> Result<Self> {
        let rows = &rows[..limit.unwrap_or(rows.len()).min(rows.len())];
        let mut counts = RowCounts { rows: rows.len(), ..RowCounts::default() };
        let mut questions = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let problem = task.problem(row)?;
            if task.score(&problem, "").is_none() {
                counts.without_answer += 1;
                continue;
            }
            let turns = task.prompt(&task.shots_for(shot_rows, row)?, &problem);
            if let Some(length) = length {
                let tokens = (length.measure)(&turns, &problem.solution)
                    .map_err(|source| Error::Prompt { origin: row.origin().to_owned(), source })?;
                if tokens.prompt + tokens.solution > length.max_tokens
                    || tokens.prompt + task.max_new_tokens() > length.context
                {
                    counts.too_long += 1;
                    continue;
                }
            }
            questions.push(Question { row: index, problem, turns });
        }
        counts.questions = questions.len();
        if questions.is_empty() {
            return Err(Error::NoRows {
                task: task.name().to_owned(),
                reason: format!(
                    "{} read, {} too long, {} without an answer",
                    counts.rows, counts.too_long, counts.without_answer
                ),
            });
        }
        let prompts: Vec<&[Turn]> = questions.iter().map(|question| question.turns.as_slice()).collect();
        let prompt_hash = hash(&serde_json::to_vec(&prompts)?);
        Ok(Self { task, questions, counts, prompt_hash })
    }

    /// The task.
    pub fn task(&self) -> &'t dyn Task {
        self.task
    }

    /// What became of the rows.
    pub fn counts(&self) -> RowCounts {
        self.counts
    }

    /// The hash of all prompts: runs with equal ones were asked the same.
    pub fn prompt_hash(&self) -> &str {
        &self.prompt_hash
    }

    /// The rows asked, with their prompts.
    pub fn prompts(&self) -> impl ExactSizeIterator<Item = (usize, &[Turn])> {
        self.questions.iter().map(|question| (question.row, question.turns.as_slice()))
    }

    /// Generates and judges every sample the journal does not hold yet. `cancel` is looked at before every batch; the
    /// generator may look at it too and give back what it had to leave as [`FinishReason::Cancelled`].
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Generator`], [`Error::CompletionCount`], or the journal's. What was finished before is
    /// in the journal.
    pub fn run(
        &self,
        settings: &RunSettings,
        generator: &mut dyn Generator,
        mut journal: Option<&mut Journal>,
        progress: &mut dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<RunResult> {
        settings.check()?;
        let mut samples = Vec::new();
        let mut open = Vec::new();
        for question in &self.questions {
            for sample in 0..settings.samples {
                let key = self.key(question, settings, sample);
                match journal.as_deref().and_then(|journal| journal.get(&key)) {
                    Some(record) => samples.push(Sample {
                        resumed: true,
                        ..self.judge(question, sample, record.completion.clone(), record.seconds)
                    }),
                    None => open.push((question, sample, key)),
                }
            }
        }
        progress.begin(samples.len() + open.len(), samples.len());

        let mut interrupted = false;
        for batch in open.chunks(settings.batch_size) {
            if cancel.load(Ordering::Relaxed) {
                interrupted = true;
                break;
            }
            let requests: Vec<GenerateRequest> =
                batch.iter().map(|(question, sample, _)| self.request(question, settings, *sample)).collect();
            let start = Instant::now();
            let completions = generator.generate(&requests).map_err(Error::Generator)?;
            let seconds = start.elapsed().as_secs_f64() / batch.len() as f64;
            if completions.len() != batch.len() {
                return Err(Error::CompletionCount { expected: batch.len(), found: completions.len() });
            }

            let before = samples.len();
            let mut records = Vec::new();
            for ((question, sample, key), completion) in batch.iter().zip(completions) {
                if completion.finish == FinishReason::Cancelled {
                    interrupted = true;
                    continue;
                }
                let sample = self.judge(question, *sample, completion, seconds);
                if journal.is_some() {
                    records.push(self.record(question, settings, &sample, key));
                }
                samples.push(sample);
            }
            if let Some(journal) = journal.as_deref_mut() {
                journal.append(&records)?;
            }
            if let Some(so_far) = self.so_far(&samples) {
                progress.batch(&samples[before..], so_far);
            }
            if interrupted {
                break;
            }
        }
        samples.sort_by_key(|sample| (sample.row, sample.sample));
        Ok(RunResult { samples, interrupted })
    }

    fn key(&self, question: &Question, settings: &RunSettings, sample: usize) -> String {
        sample_key(
            self.task.name(),
            self.task.version(),
            &question.turns,
            self.task.max_new_tokens(),
            &self.task.stop_strings(),
            &settings.generation,
            settings.seed,
            question.row,
            sample,
        )
    }

    fn request(&self, question: &Question, settings: &RunSettings, sample: usize) -> GenerateRequest {
        GenerateRequest {
            turns: question.turns.clone(),
            row: question.row,
            sample,
            seed: settings.seed,
            sequence: (sample as u64) << 32 | question.row as u64,
            max_new_tokens: self.task.max_new_tokens(),
            stop_strings: self.task.stop_strings(),
        }
    }

    fn judge(&self, question: &Question, sample: usize, completion: Completion, seconds: f64) -> Sample {
        // `prepare` kept only problems whose reference can be scored.
        let scores = self.task.score(&question.problem, &completion.text).unwrap_or_default();
        Sample { row: question.row, sample, completion, scores, seconds, resumed: false }
    }

    fn record(&self, question: &Question, settings: &RunSettings, sample: &Sample, key: &str) -> Record {
        Record {
            key: key.to_owned(),
            task: self.task.name().to_owned(),
            row: sample.row,
            sample: sample.sample,
            seed: settings.seed,
            settings: settings.generation.clone(),
            question: question.problem.question.clone(),
            reference: question.problem.solution.clone(),
            completion: sample.completion.clone(),
            scores: sample.scores.clone(),
            seconds: sample.seconds,
        }
    }

    fn so_far(&self, samples: &[Sample]) -> Option<Proportion> {
        let metric = self.task.metrics()[0].name;
        Proportion::of(samples.iter().filter_map(|sample| {
            let score = sample.scores.get(metric)?;
            Some(Judged { question: sample.row, correct: score.correct })
        }))
    }
}
