//! What a task is: rows turned into prompts, completions turned into scores.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rows::{DataSet, Row};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What the user asks.
    pub question: String,
    /// What the model should have said; as a shot it is the assistant's turn.
    pub solution: String,
    /// The labels of the options it chooses from; empty where there are none.
    pub labels: Vec<String>,
}

impl Problem {
    /// A problem without options.
    pub fn new(question: impl Into<String>, solution: impl Into<String>) -> Self {
        Self { question: question.into(), solution: solution.into(), labels: Vec::new() }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// Its name, a key of [`Scores`].
    pub name: &'static str,
    /// What it counts, in a line.
    pub description: &'static str,
}

/// A benchmark: which rows, how they are asked, how answers are judged.
///
/// The version is part of every result and of every journal key: raise it whenever a prompt or a score can change.
pub trait Task {
    /// Its name on the command line.
    fn name(&self) -> &str;

    /// Raised with every change of prompts or scores.
    fn version(&self) -> u32;

    /// Where its rows lie, for a task with a public data set.
    fn data_set(&self) -> Option<DataSet>;

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

    /// The metric whose extraction tells whether a completion keeps the answer's format.
    fn format_metric(&self) -> &str {
        self.metrics()[0].name
    }

    /// Reads a row.
    ///
    /// # Errors
    /// A missing column or one of a wrong type.
    fn problem(&self, row: &Row) -> Result<Problem>;

    /// Judges a completion by every metric. `None` where the reference solution holds no answer: such a problem cannot be
    /// scored and is left out.
    fn score(&self, problem: &Problem, completion: &str) -> Option<Scores>;

    /// The conversation that asks `problem`: each shot as a turn of the user and one of the assistant, then the question.
    fn prompt(&self, shots: &[Problem], problem: &Problem) -> Vec<Turn> {
        let mut turns = Vec::with_capacity(2 * shots.len() + 1);
        for shot in shots {
            turns.push(Turn::user(&shot.question));
            turns.push(Turn::assistant(&shot.solution));
        }
        turns.push(Turn::user(&problem.question));
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
