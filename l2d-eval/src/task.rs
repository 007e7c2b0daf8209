//! What a task is: rows turned into prompts, completions turned into scores.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::near;
use crate::rows::{DataSet, Row};

/// Guidance classes by the paper's names.
pub mod class {
    /// HumanEval, MBPP and MMLU's `high_school_computer_science`.
    pub const CODING: &str = "coding";
    /// GSM8K, MATH, MMLU-Pro's `math` and MMLU's mathematical subjects.
    pub const MATH: &str = "math";
    /// Everything else.
    pub const GENERAL: &str = "general knowledge";
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name chat templates know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a prompt. A prompt that ends with a turn of the assistant asks for that turn to be continued.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Turn {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// A turn of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// A row as its task reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// What the user asks.
    pub question: String,
    /// What the model should have said; as a shot it is the assistant's turn.
    pub solution: String,
    /// The labels of the options it chooses from; empty where there are none.
    pub labels: Vec<String>,
    /// How the reply begins: the model goes on from there. Part of no completion; empty where it begins the reply itself.
    pub opening: String,
    /// The tests that judge a program; `None` where no program is asked for.
    pub tests: Option<CodeTests>,
}

impl Problem {
    /// A problem without options, opening or tests.
    pub fn new(question: impl Into<String>, solution: impl Into<String>) -> Self {
        Self { question: question.into(), solution: solution.into(), ..Self::default() }
    }
}

/// What makes a test program of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeTests {
    /// What a completion goes on from: the function's head, for HumanEval. Empty where the completion is the whole program.
    pub head: String,
    /// The function the tests call, where the task names it.
    pub entry_point: Option<String>,
    /// What follows the completion: it must run to its end.
    pub checks: String,
}

/// A multiple-choice question as log-likelihoods answer it: each continuation is scored after the same context, no chat
/// template between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LikelihoodQuestion {
    /// What comes first, ending without a space.
    pub context: String,
    /// The options as they would go on, each beginning with a space.
    pub continuations: Vec<String>,
    /// Which of them is right.
    pub answer: usize,
}

/// Whose rules a metric follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Ours: values compared exactly.
    Exact,
    /// The released L2D reference, its oddities included.
    Paper,
    /// lm-evaluation-harness; bigcode-evaluation-harness for programs.
    Harness,
}

impl Profile {
    /// The profiles by the names they have on the command line.
    pub const NAMES: [(&'static str, Self); 3] =
        [("exact", Self::Exact), ("paper", Self::Paper), ("harness", Self::Harness)];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Paper => "paper",
            Self::Harness => "harness",
        }
    }
}

impl std::str::FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, profile)| *profile);
        found.ok_or_else(|| Error::UnknownProfile {
            name: name.to_owned(),
            known: near::list(name, Self::NAMES.iter().map(|(name, _)| *name)),
        })
    }
}

/// The result of one metric on one completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// The answer found in the completion, `None` where there is none.
    pub extracted: Option<String>,
    /// Whether it is the reference's.
    pub correct: bool,
}

/// Scores of one completion by metric name.
pub type Scores = BTreeMap<String, Score>;

/// One metric of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// Its name, a key of [`Scores`].
    pub name: Cow<'static, str>,
    /// Whose rules it follows.
    pub profile: Profile,
    /// What it counts, in a line.
    pub description: Cow<'static, str>,
    /// The key it has in a result of lm-evaluation-harness 0.4, where that has this very metric under another name.
    #[serde(skip)]
    pub harness_key: Option<&'static str>,
}

impl Metric {
    /// A metric known when this was compiled.
    pub const fn new(name: &'static str, profile: Profile, description: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), profile, description: Cow::Borrowed(description), harness_key: None }
    }

    /// One of lm-evaluation-harness, with the key it has there.
    pub const fn of_harness(name: &'static str, key: &'static str, description: &'static str) -> Self {
        let (name, description) = (Cow::Borrowed(name), Cow::Borrowed(description));
        Self { name, profile: Profile::Harness, description, harness_key: Some(key) }
    }
}

/// A benchmark: which rows, how they are asked, how answers are judged.
///
/// The version is part of every result and of every journal key: raise it whenever a prompt or a score can change.
pub trait Task: Send + Sync {
    /// Its name on the command line.
    fn name(&self) -> &str;

    /// Raised with every change of prompts or scores.
    fn version(&self) -> u32;

    /// Where its rows lie, for a task with a public data set.
    fn data_set(&self) -> Option<DataSet>;

    /// The folder of its rows, for a task that brings its own.
    fn folder(&self) -> Option<PathBuf> {
        None
    }

    /// The hash of the file that says what it is; `None` for a task that is part of this crate.
    fn file_digest(&self) -> Option<&str> {
        None
    }

    /// The split that is evaluated.
    fn split(&self) -> &str {
        "test"
    }

    /// The split the shots come from.
    fn shot_split(&self) -> &str {
        "train"
    }

    /// How many solved problems precede the question, as earlier turns.
    fn shots(&self) -> usize;

    /// Asks with another number of shots.
    ///
    /// # Errors
    /// [`Error::Setting`] where the task has not so many.
    fn set_shots(&mut self, shots: usize) -> Result<()>;

    /// Whether a row that asks the same as a shot is left out: where shots come from the evaluated split.
    fn leaves_out_shots(&self) -> bool {
        false
    }

    /// How many rows the published split has, `None` for a task without one.
    fn official_rows(&self) -> Option<usize> {
        None
    }

    /// Completions of each question in the standard setting.
    fn repeats(&self) -> usize {
        1
    }

    /// The temperature of the standard setting where it is another than 1.
    fn temperature(&self) -> Option<f64> {
        None
    }

    /// The most tokens of a completion.
    fn max_new_tokens(&self) -> usize;

    /// Sets the most tokens of a completion: prompts stay what they are, results are no longer the standard ones.
    fn set_max_new_tokens(&mut self, tokens: usize);

    /// Texts that end a completion, beside the model's own end of turn.
    fn stop_strings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Its metrics, the one to report first at the head.
    fn metrics(&self) -> &[Metric];

    /// The metric to quote under a profile: the first that follows it, the task's first where none does.
    fn headline(&self, profile: Profile) -> &str {
        let metrics = self.metrics();
        &metrics.iter().find(|metric| metric.profile == profile).unwrap_or(&metrics[0]).name
    }

    /// The metric whose extraction tells whether a completion keeps the answer's format.
    fn format_metric(&self) -> &str {
        &self.metrics()[0].name
    }

    /// Reads a row.
    ///
    /// # Errors
    /// A missing column or one of a wrong type.
    fn problem(&self, row: &Row) -> Result<Problem>;

    /// Whether the reference solution holds an answer: a problem without one cannot be scored and is left out.
    fn answerable(&self, problem: &Problem) -> bool {
        let _ = problem;
        true
    }

    /// Judges a completion by every metric.
    ///
    /// # Errors
    /// [`Error::Code`] where a program could not be run at all. A program that fails is a score and no error.
    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores>;

    /// Whether judging runs programs: scores are then taken from the journal where they are there and were made by the same
    /// [`Task::judge`].
    fn scoring_is_costly(&self) -> bool {
        false
    }

    /// What runs the programs, see [`crate::CodeRunner::identity`]; `None` where nothing does.
    fn judge(&self) -> Option<String> {
        None
    }

    /// The guidance class of a row, by the paper's names.
    fn class(&self, row: &Row) -> &'static str {
        let _ = row;
        class::GENERAL
    }

    /// The row as a question for log-likelihoods, shots included; `None` for a task that has no options.
    ///
    /// # Errors
    /// As [`Task::problem`] and [`Task::shots_for`].
    fn likelihood(&self, shots: &[Row], row: &Row) -> Result<Option<LikelihoodQuestion>> {
        let _ = (shots, row);
        Ok(None)
    }

    /// The conversation that asks `problem`: each shot as a turn of the user and one of the assistant, then the question,
    /// then the reply's opening where there is one.
    fn prompt(&self, shots: &[Problem], problem: &Problem) -> Vec<Turn> {
        let mut turns = Vec::with_capacity(2 * shots.len() + 2);
        for shot in shots {
            turns.push(Turn::user(&shot.question));
            turns.push(Turn::assistant(format!("{}{}", shot.opening, shot.solution)));
        }
        turns.push(Turn::user(&problem.question));
        if !problem.opening.is_empty() {
            turns.push(Turn::assistant(&problem.opening));
        }
        turns
    }

    /// How many rows of the shots' split are looked at, the first ones; `None` for all.
    fn shot_rows(&self) -> Option<usize> {
        Some(self.shots())
    }

    /// The shots that precede the question of `row`, from the rows of their split: the first [`Task::shots`].
    ///
    /// # Errors
    /// [`Error::TooFewShots`], or what is wrong with a row.
    fn shots_for(&self, rows: &[Row], row: &Row) -> Result<Vec<Problem>> {
        let _ = row;
        self.first_shots(&mut rows.iter())
    }

    /// The first [`Task::shots`] of some rows as problems.
    ///
    /// # Errors
    /// [`Error::TooFewShots`], or what is wrong with a row.
    fn first_shots(&self, rows: &mut dyn Iterator<Item = &Row>) -> Result<Vec<Problem>> {
        let chosen = rows.take(self.shots()).map(|row| self.problem(row)).collect::<Result<Vec<_>>>()?;
        if chosen.len() < self.shots() {
            return Err(Error::TooFewShots { task: self.name().to_owned(), shots: self.shots(), found: chosen.len() });
        }
        Ok(chosen)
    }
}
