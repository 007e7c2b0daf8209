//! From rows to judged samples: prompts, batches, the journal, progress, stopping early.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::asked::{Asked, ranges};
use crate::error::{BoxError, Error, Result};
use crate::generate::{Completion, FinishReason, GenerateRequest, Generator};
use crate::journal::{Journal, Record, hash, sample_key};
use crate::metric::{Judged, Proportion};
use crate::rows::Row;
use crate::select::{Selection, Shard};
use crate::task::{Problem, Profile, Scores, Task, Turn};

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

/// What becomes of completions as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// They are judged.
    Now,
    /// They are only kept, to be judged by [`crate::rescore()`].
    Later,
}

/// What became of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows of the split.
    #[serde(default)]
    pub in_split: usize,
    /// Rows the published split has.
    #[serde(default)]
    pub official: Option<usize>,
    /// Rows looked at.
    pub rows: usize,
    /// Rows left out because they are a shot's twin.
    #[serde(default)]
    pub shots: usize,
    /// Rows dropped because prompt and reference solution, or prompt and completion, are too long together.
    pub too_long: usize,
    /// Rows left out because their reference solution holds no answer.
    pub without_answer: usize,
    /// Rows that are asked.
    pub questions: usize,
    /// Which part of the split it is, where it was shared out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

#[derive(Debug, Clone)]
struct Question {
    row: usize,
    problem: Problem,
    turns: Vec<Turn>,
    class: &'static str,
    /// Tokens of the prompt where they were counted, else its bytes: only their order matters.
    length: usize,
    /// Questions with the same shots, numbered as they first come.
    group: usize,
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
    /// How what it was along the diffusion's time was judged, as [`Completion::along`] has it.
    pub along: Vec<Scores>,
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

    /// A batch is finished. `so_far` is the metric to quote over all finished samples, `None` where they are judged later.
    fn batch(&mut self, finished: &[Sample], so_far: Option<Proportion>) {
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
    /// The metric that progress is shown by.
    headline: String,
    /// [`Asked::chosen`].
    chosen: String,
}

impl<'t> Evaluation<'t> {
    /// Builds the prompts of the selected rows with the shots from `shot_rows`. The selection counts rows before any is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::TooFewShots`]; a row without its columns; [`Error::Prompt`]; [`Error::NoRows`] where none is left;
    /// [`Error::ShotsTooLong`] where the shots alone leave no room for any question.
    pub fn prepare(
        task: &'t dyn Task,
        rows: &[Row],
        shot_rows: &[Row],
        selection: &Selection,
        length: Option<&LengthLimit<'_>>,
    ) -> Result<Self> {
        let chosen = selection.rows(rows.len())?;
        let mut counts = RowCounts {
            in_split: rows.len(),
            official: task.official_rows(),
            rows: chosen.len(),
            shard: selection.shard,
            ..RowCounts::default()
        };
        let mut questions = Vec::new();
        let mut groups: HashMap<Vec<Turn>, usize> = HashMap::new();
        let mut shortest: Option<usize> = None;
        for index in chosen {
            let row = &rows[index];
            let problem = task.problem(row)?;
            if !task.answerable(&problem) {
                counts.without_answer += 1;
                continue;
            }
            let shots = task.shots_for(shot_rows, row)?;
            if task.leaves_out_shots() && shots.iter().any(|shot| shot.question == problem.question) {
                counts.shots += 1;
                continue;
            }
            let turns = task.prompt(&shots, &problem);
            let mut tokens = turns.iter().map(|turn| turn.content.len()).sum();
            if let Some(length) = length {
                let measured = (length.measure)(&turns, &problem.solution)
                    .map_err(|source| Error::Prompt { origin: row.origin().to_owned(), source })?;
                tokens = measured.prompt;
                shortest = Some(shortest.map_or(tokens, |shortest| shortest.min(tokens)));
                if measured.prompt + measured.solution > length.max_tokens
                    || measured.prompt + task.max_new_tokens() > length.context
                {
                    counts.too_long += 1;
                    continue;
                }
            }
            let next = groups.len();
            let group = *groups.entry(turns[..2 * shots.len()].to_vec()).or_insert(next);
            questions.push(Question { row: index, problem, turns, class: task.class(row), length: tokens, group });
        }
        counts.questions = questions.len();
        if questions.is_empty() {
            if let (Some(limit), Some(prompt)) = (length, shortest)
                && counts.too_long > 0
            {
                return Err(Error::ShotsTooLong {
                    task: task.name().to_owned(),
                    shots: task.shots(),
                    prompt,
                    completion: task.max_new_tokens(),
                    context: limit.context,
                    max_tokens: limit.max_tokens,
                });
            }
            return Err(Error::NoRows {
                task: task.name().to_owned(),
                reason: format!(
                    "{} of {} rows looked at, {} shots themselves, {} without an answer",
                    counts.rows, counts.in_split, counts.shots, counts.without_answer
                ),
            });
        }
        let prompts: Vec<&[Turn]> = questions.iter().map(|question| question.turns.as_slice()).collect();
        let prompt_hash = hash(&serde_json::to_vec(&prompts)?);
        let headline = task.metrics()[0].name.clone().into_owned();
        Ok(Self { task, questions, counts, prompt_hash, headline, chosen: selection.described() })
    }

    /// The same, its progress shown by the metric that `profile` quotes instead of the task's first.
    pub fn quoting(self, profile: Profile) -> Self {
        Self { headline: self.task.headline(profile).to_owned(), ..self }
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

    /// What a run with these settings is to ask; `files` are the SHA-256 of those it reads.
    pub fn asked(&self, settings: &RunSettings, files: Vec<String>) -> Asked {
        Asked {
            version: self.task.version(),
            settings: settings.generation.clone(),
            seed: settings.seed,
            samples: settings.samples,
            rows: ranges(self.questions.iter().map(|question| question.row)),
            chosen: self.chosen.clone(),
            counts: self.counts,
            prompt_hash: self.prompt_hash.clone(),
            files,
        }
    }

    /// The rows asked, with their prompts.
    pub fn prompts(&self) -> impl ExactSizeIterator<Item = (usize, &[Turn])> {
        self.questions.iter().map(|question| (question.row, question.turns.as_slice()))
    }

    /// Generates and judges every sample the journal does not hold yet: questions with the same shots one after the other,
    /// so that a decoder computes the shots once, and of those the longest first, so that a batch's prompts are alike in
    /// length and what needs the most memory comes early. `cancel` is looked at before every
    /// batch; the generator may look at it too and give back what it had to leave as [`FinishReason::Cancelled`].
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Generator`], [`Error::CompletionCount`], what judging or the journal says. What was
    /// finished before is in the journal.
    pub fn run(
        &self,
        settings: &RunSettings,
        scoring: Scoring,
        generator: &mut dyn Generator,
        mut journal: Option<&mut Journal>,
        progress: &mut dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<RunResult> {
        settings.check()?;
        let mut finished = Vec::new();
        let mut open = Vec::new();
        for question in &self.questions {
            for sample in 0..settings.samples {
                let key = self.key(question, settings, sample);
                match journal.as_deref().and_then(|journal| journal.get(&key)) {
                    Some(record) => finished.push((question, record.clone())),
                    None => open.push((question, sample, key)),
                }
            }
        }
        let (mut samples, judged_anew): (Vec<_>, Vec<_>) = self.resume(finished, scoring)?.into_iter().unzip();
        let judged_anew: Vec<Record> = judged_anew.into_iter().flatten().collect();
        if let Some(journal) = journal.as_deref_mut().filter(|_| !judged_anew.is_empty()) {
            journal.append(&judged_anew)?;
        }
        open.sort_by_key(|(question, sample, _)| (question.group, Reverse(question.length), question.row, *sample));
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
            let whole: Vec<_> = batch
                .iter()
                .zip(completions)
                .filter(|(_, completion)| completion.finish != FinishReason::Cancelled)
                .collect();
            interrupted |= whole.len() < batch.len();
            // Judging a program waits for it most of the time, so several are judged at once.
            let judged: Vec<Result<(Sample, Record)>> = whole
                .into_par_iter()
                .map(|((question, number, key), completion)| {
                    let sample = self.judge(question, *number, completion, seconds, scoring)?;
                    let record = self.record(question, settings, &sample, key);
                    Ok((sample, record))
                })
                .collect();
            let (new, records): (Vec<_>, Vec<_>) = judged.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
            samples.extend(new);
            if let Some(journal) = journal.as_deref_mut() {
                journal.append(&records)?;
            }
            progress.batch(&samples[before..], self.so_far(&samples));
            if interrupted {
                break;
            }
        }
        samples.sort_by_key(|sample| (sample.row, sample.sample));
        Ok(RunResult { samples, interrupted })
    }

    /// Samples of the journal, judged anew; where judging is costly and was done by the judge there is now, as they were judged.
    /// Beside a sample its record, where a costly judgement is to be kept.
    fn resume(&self, finished: Vec<(&Question, Record)>, scoring: Scoring) -> Result<Vec<(Sample, Option<Record>)>> {
        let (costly, judge) = (self.task.scoring_is_costly(), self.task.judge());
        // What is only kept now keeps the scores it has.
        let keeps = costly || scoring == Scoring::Later;
        finished
            .into_par_iter()
            .map(|(question, record)| {
                let judged = !record.scores.is_empty() && (scoring == Scoring::Later || record.judge == judge);
                if keeps && judged && record.completion.along.is_empty() {
                    let sample = Sample {
                        row: record.row,
                        sample: record.sample,
                        completion: record.completion,
                        scores: record.scores,
                        along: Vec::new(),
                        seconds: record.seconds,
                        resumed: true,
                    };
                    return Ok((sample, None));
                }
                let sample = self.judge(question, record.sample, record.completion.clone(), record.seconds, scoring)?;
                let (scores, judge) = (sample.scores.clone(), judge.clone());
                let kept = (costly && scoring == Scoring::Now && !scores.is_empty()).then(|| Record {
                    scores,
                    judge,
                    ..record
                });
                Ok((Sample { resumed: true, ..sample }, kept))
            })
            .collect()
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
            class: question.class,
        }
    }

    fn judge(
        &self,
        question: &Question,
        sample: usize,
        completion: Completion,
        seconds: f64,
        scoring: Scoring,
    ) -> Result<Sample> {
        let (scores, along) = match scoring {
            Scoring::Now => judge(self.task, &question.problem, &completion)?,
            Scoring::Later => (Scores::new(), Vec::new()),
        };
        Ok(Sample { row: question.row, sample, completion, scores, along, seconds, resumed: false })
    }

    fn record(&self, question: &Question, settings: &RunSettings, sample: &Sample, key: &str) -> Record {
        Record {
            key: key.to_owned(),
            task: self.task.name().to_owned(),
            version: Some(self.task.version()),
            row: sample.row,
            sample: sample.sample,
            seed: settings.seed,
            settings: settings.generation.clone(),
            question: question.problem.question.clone(),
            reference: question.problem.solution.clone(),
            completion: sample.completion.clone(),
            scores: sample.scores.clone(),
            judge: self.task.judge().filter(|_| !sample.scores.is_empty()),
            likelihoods: None,
            seconds: sample.seconds,
        }
    }

    /// The metric to quote over all samples that were judged.
    fn so_far(&self, samples: &[Sample]) -> Option<Proportion> {
        Proportion::of(samples.iter().filter_map(|sample| {
            let score = sample.scores.get(&self.headline)?;
            Some(Judged { question: sample.row, correct: score.correct })
        }))
    }
}

/// Judges a completion, and what it was along the diffusion's time.
pub(crate) fn judge(task: &dyn Task, problem: &Problem, completion: &Completion) -> Result<(Scores, Vec<Scores>)> {
    let along = completion.along.iter().map(|guessed| task.score(problem, &guessed.text)).collect::<Result<_>>()?;
    Ok((task.score(problem, &completion.text)?, along))
}
