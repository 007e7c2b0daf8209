//! Multiple choice by log-likelihood, as lm-evaluation-harness scores it: the option the plain LM finds likeliest counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::asked::{self, ranges};
use crate::error::{BoxError, Error, Result};
use crate::generate::{Completion, FinishReason};
use crate::journal::{Journal, Record, hash, sample_key};
use crate::metric::{Judged, Proportion};
use crate::rows::{DataSet, Row};
use crate::runner::{Progress, RowCounts, RunResult, RunSettings, Sample};
use crate::select::Selection;
use crate::task::{LikelihoodQuestion, Metric, Problem, Profile, Score, Scores, Task, Turn};

/// What scoring by log-likelihood counts.
const METRICS: &[Metric] = &[
    Metric::new("acc", Profile::Harness, "the option with the highest log-likelihood"),
    Metric::new(
        "acc_norm",
        Profile::Harness,
        "the option with the highest log-likelihood over its length in characters",
    ),
];

/// How likely an option is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptionLikelihood {
    /// Log-probability in nats.
    pub log_probability: f64,
    /// Its tokens.
    pub tokens: usize,
}

/// What a question took.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredQuestion {
    /// One for each option.
    pub options: Vec<OptionLikelihood>,
    /// Tokens of the context.
    pub context_tokens: usize,
}

/// A language model, as scoring by log-likelihood sees it.
pub trait LikelihoodScorer {
    /// Tokens of context and longest option together.
    ///
    /// # Errors
    /// Where the text has no tokens.
    fn length(&mut self, question: &LikelihoodQuestion) -> Result<usize, BoxError>;

    /// The likelihood of every option of every question; fewer questions than asked for where it was called off.
    ///
    /// # Errors
    /// Whatever stops the model; the evaluation stops with it and can be resumed.
    fn score(&mut self, questions: &[&LikelihoodQuestion]) -> Result<Vec<ScoredQuestion>, BoxError>;
}

/// A task scored by log-likelihood. For reports it is a task of its own, `NAME_likelihood`, without shots unless they are
/// asked for, as lm-evaluation-harness has it.
pub struct ByLikelihood {
    inner: Box<dyn Task>,
    name: String,
}

impl ByLikelihood {
    /// A task with its shots taken away.
    ///
    /// # Errors
    /// [`Error::Setting`] where the task cannot do without its shots.
    pub fn new(mut inner: Box<dyn Task>) -> Result<Self> {
        inner.set_shots(0)?;
        Ok(Self { name: format!("{}_likelihood", inner.name()), inner })
    }
}

impl Task for ByLikelihood {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        self.inner.version()
    }

    fn data_set(&self) -> Option<DataSet> {
        self.inner.data_set()
    }

    fn folder(&self) -> Option<std::path::PathBuf> {
        self.inner.folder()
    }

    fn file_digest(&self) -> Option<&str> {
        self.inner.file_digest()
    }

    fn split(&self) -> &str {
        self.inner.split()
    }

    fn shot_split(&self) -> &str {
        self.inner.shot_split()
    }

    fn shots(&self) -> usize {
        self.inner.shots()
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        self.inner.set_shots(shots)
    }

    fn shot_rows(&self) -> Option<usize> {
        self.inner.shot_rows()
    }

    fn official_rows(&self) -> Option<usize> {
        self.inner.official_rows()
    }

    /// Nothing is generated.
    fn max_new_tokens(&self) -> usize {
        0
    }

    fn set_max_new_tokens(&mut self, _tokens: usize) {}

    fn metrics(&self) -> &[Metric] {
        METRICS
    }

    fn problem(&self, row: &Row) -> Result<Problem> {
        self.inner.problem(row)
    }

    fn score(&self, _problem: &Problem, _completion: &str) -> Result<Scores> {
        let reason = format!("{} is scored by log-likelihood, not by what is generated", self.name);
        Err(Error::Setting { key: "tasks", reason })
    }

    fn likelihood(&self, shots: &[Row], row: &Row) -> Result<Option<LikelihoodQuestion>> {
        self.inner.likelihood(shots, row)
    }
}

struct Asked {
    row: usize,
    question: LikelihoodQuestion,
}

/// A task's questions, ready to be scored by log-likelihood.
pub struct LikelihoodEvaluation<'t> {
    task: &'t ByLikelihood,
    asked: Vec<Asked>,
    counts: RowCounts,
    prompt_hash: String,
    chosen: String,
}

impl<'t> LikelihoodEvaluation<'t> {
    /// Builds the questions of the selected rows. Those longer than `context` tokens are left out and counted: the harness
    /// cuts their beginning off instead.
    ///
    /// # Errors
    /// [`Error::NoLikelihood`] for a task without options; what is wrong with a row; [`Error::NoRows`].
    pub fn prepare(
        task: &'t ByLikelihood,
        rows: &[Row],
        shot_rows: &[Row],
        selection: &Selection,
        context: usize,
        scorer: &mut dyn LikelihoodScorer,
    ) -> Result<Self> {
        let chosen = selection.rows(rows.len())?;
        let mut counts = RowCounts {
            in_split: rows.len(),
            official: task.official_rows(),
            rows: chosen.len(),
            shard: selection.shard,
            ..RowCounts::default()
        };
        let mut asked = Vec::new();
        for row in chosen {
            if task.inner.shots() > 0 && task.inner.leaves_out_shots() {
                let asked = task.inner.problem(&rows[row])?.question;
                if task.inner.shots_for(shot_rows, &rows[row])?.iter().any(|shot| shot.question == asked) {
                    counts.shots += 1;
                    continue;
                }
            }
            let question = task.likelihood(shot_rows, &rows[row])?;
            let question = question.ok_or_else(|| Error::NoLikelihood { task: task.inner.name().to_owned() })?;
            let origin = || rows[row].origin().to_owned();
            let tokens = scorer.length(&question).map_err(|source| Error::Prompt { origin: origin(), source })?;
            if tokens > context {
                counts.too_long += 1;
                continue;
            }
            asked.push(Asked { row, question });
        }
        counts.questions = asked.len();
        if asked.is_empty() {
            let reason = format!("{} of {} rows looked at, {} too long", counts.rows, counts.in_split, counts.too_long);
            return Err(Error::NoRows { task: task.name.clone(), reason });
        }
        let texts: Vec<(&str, &[String])> =
            asked.iter().map(|asked| (&*asked.question.context, &*asked.question.continuations)).collect();
        let prompt_hash = hash(&serde_json::to_vec(&texts)?);
        Ok(Self { task, asked, counts, prompt_hash, chosen: selection.described() })
    }

    /// What became of the rows.
    pub fn counts(&self) -> RowCounts {
        self.counts
    }

    /// The hash of all questions.
    pub fn prompt_hash(&self) -> &str {
        &self.prompt_hash
    }

    /// What a run with these settings is to ask; `files` are the SHA-256 of those it reads.
    pub fn asked(&self, settings: &RunSettings, files: Vec<String>) -> asked::Asked {
        asked::Asked {
            version: self.task.version(),
            settings: settings.generation.clone(),
            seed: settings.seed,
            samples: 1,
            rows: ranges(self.asked.iter().map(|asked| asked.row)),
            chosen: self.chosen.clone(),
            counts: self.counts,
            prompt_hash: self.prompt_hash.clone(),
            files,
        }
    }

    /// The questions with their rows.
    pub fn questions(&self) -> impl ExactSizeIterator<Item = (usize, &LikelihoodQuestion)> {
        self.asked.iter().map(|asked| (asked.row, &asked.question))
    }

    /// Scores every question that the journal does not hold yet.
    ///
    /// # Errors
    /// [`Error::Generator`], [`Error::CompletionCount`], or the journal's.
    pub fn run(
        &self,
        settings: &RunSettings,
        scorer: &mut dyn LikelihoodScorer,
        journal: &mut Journal,
        progress: &mut dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<RunResult> {
        let mut samples = Vec::new();
        let mut open = Vec::new();
        for asked in &self.asked {
            let key = self.key(asked, settings);
            match journal.get(&key) {
                Some(record) => samples.push(Sample {
                    row: record.row,
                    sample: 0,
                    completion: record.completion.clone(),
                    scores: record.scores.clone(),
                    along: Vec::new(),
                    seconds: record.seconds,
                    resumed: true,
                }),
                None => open.push((asked, key)),
            }
        }
        progress.begin(samples.len() + open.len(), samples.len());
        let mut interrupted = false;
        // In the split's order, which keeps questions with common shots together.
        for batch in open.chunks(settings.batch_size.max(1)) {
            if cancel.load(Ordering::Relaxed) {
                interrupted = true;
                break;
            }
            let questions: Vec<&LikelihoodQuestion> = batch.iter().map(|(asked, _)| &asked.question).collect();
            let start = Instant::now();
            let scored = scorer.score(&questions).map_err(Error::Generator)?;
            let seconds = start.elapsed().as_secs_f64() / batch.len() as f64;
            interrupted |= scored.len() < batch.len();
            let before = samples.len();
            let mut records = Vec::new();
            for ((asked, key), scored) in batch.iter().zip(scored) {
                let record = self.record(asked, settings, key, &scored, seconds)?;
                samples.push(Sample {
                    row: asked.row,
                    sample: 0,
                    completion: record.completion.clone(),
                    scores: record.scores.clone(),
                    along: Vec::new(),
                    seconds,
                    resumed: false,
                });
                records.push(record);
            }
            journal.append(&records)?;
            let so_far = samples.iter().map(|s| Judged { question: s.row, correct: s.scores["acc"].correct });
            progress.batch(&samples[before..], Proportion::of(so_far));
            if interrupted {
                break;
            }
        }
        samples.sort_by_key(|sample| sample.row);
        Ok(RunResult { samples, interrupted })
    }

    fn key(&self, asked: &Asked, settings: &RunSettings) -> String {
        let mut turns = vec![Turn::user(&asked.question.context)];
        turns.extend(asked.question.continuations.iter().map(Turn::assistant));
        let (task, row) = (self.task, asked.row);
        sample_key(task.name(), task.version(), &turns, 0, &[], &settings.generation, settings.seed, row, 0)
    }

    fn record(
        &self,
        asked: &Asked,
        settings: &RunSettings,
        key: &str,
        scored: &ScoredQuestion,
        seconds: f64,
    ) -> Result<Record> {
        let LikelihoodQuestion { context, continuations, answer } = &asked.question;
        if scored.options.len() != continuations.len() {
            return Err(Error::CompletionCount { expected: continuations.len(), found: scored.options.len() });
        }
        let likelihoods: Vec<f64> = scored.options.iter().map(|option| option.log_probability).collect();
        let (scores, best) = judge(&likelihoods, continuations, *answer);
        Ok(Record {
            key: key.to_owned(),
            task: self.task.name.clone(),
            version: Some(self.task.version()),
            row: asked.row,
            sample: 0,
            seed: settings.seed,
            settings: settings.generation.clone(),
            question: context.clone(),
            reference: continuations[*answer].clone(),
            completion: Completion {
                text: continuations.get(best).cloned().unwrap_or_default(),
                tokens: scored.options.iter().map(|option| option.tokens).sum(),
                prompt_tokens: scored.context_tokens,
                evaluations: scored.options.iter().map(|option| option.tokens).sum(),
                finish: FinishReason::EndOfTurn,
                along: Vec::new(),
            },
            scores,
            judge: None,
            likelihoods: Some(likelihoods),
            seconds,
        })
    }
}

/// The scores of a question, and its likeliest option. Options are scored without the space they begin with; the first of
/// equals counts, as numpy's argmax has it.
fn judge(likelihoods: &[f64], continuations: &[String], answer: usize) -> (Scores, usize) {
    let characters = |option: &String| option.strip_prefix(' ').unwrap_or(option).chars().count().max(1) as f64;
    let by_length: Vec<f64> =
        likelihoods.iter().zip(continuations).map(|(likelihood, option)| likelihood / characters(option)).collect();
    let judged = |values: &[f64]| {
        let best = first_largest(values);
        let extracted = Some(continuations.get(best).map_or("", |option| option.trim_start()).to_owned());
        (Score { extracted, correct: best == answer }, best)
    };
    let (acc, best) = judged(likelihoods);
    let (acc_norm, _) = judged(&by_length);
    (Scores::from([("acc".to_owned(), acc), ("acc_norm".to_owned(), acc_norm)]), best)
}

fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_counts_characters_without_the_first_space() {
        let options = [" aé".to_owned(), " abcdefgh".to_owned()];
        let (scores, best) = judge(&[-4.0, -8.0], &options, 1);
        assert_eq!(best, 0);
        assert!(!scores["acc"].correct && scores["acc_norm"].correct, "-2 a character against -1");
        let (scores, best) = judge(&[-1.0, -1.0], &options, 0);
        assert!(best == 0 && scores["acc"].correct, "the first of equals");
    }
}
