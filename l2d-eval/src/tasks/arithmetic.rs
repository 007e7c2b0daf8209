//! Written-out arithmetic: the quick start's synthetic problems, whose answer is the last number of a worked solution.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::extract::canonical_number;
use crate::rows::{DataSet, Row};
use crate::task::{Metric, Problem, Profile, Score, Scores, Task};

static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)").expect("a valid pattern"));

const METRICS: &[Metric] =
    &[Metric::new("accuracy", Profile::Exact, "the worked solution's final number, compared as numbers")];

/// Where a solution's answer stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerPlace {
    /// The first number after the last occurrence of this text, e.g. `=` or `####`, with nothing but blanks between.
    AfterLast(String),
    /// The last number of the text.
    LastNumber,
}

impl AnswerPlace {
    /// The answer in plain decimal notation.
    pub fn find(&self, text: &str) -> Option<String> {
        let number = match self {
            Self::AfterLast(marker) => {
                let rest = text.rsplit_once(marker.as_str())?.1.trim_start();
                NUMBER.find(rest).filter(|number| number.start() == 0)?
            }
            Self::LastNumber => NUMBER.find_iter(text).last()?,
        };
        canonical_number(number.as_str())
    }
}

/// Problems with columns `question` and `answer`, asked without shots. `answer` may be the bare number or the whole worked
/// solution.
#[derive(Debug, Clone, Serialize)]
pub struct Arithmetic {
    /// Where the answer stands in a solution.
    pub answer_place: AnswerPlace,
    /// The most tokens of a completion.
    pub max_new_tokens: usize,
}

impl Default for Arithmetic {
    fn default() -> Self {
        Self { answer_place: AnswerPlace::AfterLast("=".to_owned()), max_new_tokens: 128 }
    }
}

impl Arithmetic {
    fn expected(&self, problem: &Problem) -> Option<String> {
        self.answer_place.find(&problem.solution).or_else(|| canonical_number(&problem.solution))
    }
}

impl Task for Arithmetic {
    fn name(&self) -> &str {
        "arithmetic"
    }

    fn version(&self) -> u32 {
        1
    }

    fn data_set(&self) -> Option<DataSet> {
        None
    }

    fn shots(&self) -> usize {
        0
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        let reason = format!("{shots}, and arithmetic has no split for shots");
        if shots == 0 { Ok(()) } else { Err(Error::Setting { key: "shots", reason }) }
    }

    fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    fn set_max_new_tokens(&mut self, tokens: usize) {
        self.max_new_tokens = tokens;
    }

    fn metrics(&self) -> &[Metric] {
        METRICS
    }

    fn problem(&self, row: &Row) -> Result<Problem> {
        Ok(Problem::new(row.text("question")?.to_owned(), row.text_or_number("answer")?))
    }

    fn answerable(&self, problem: &Problem) -> bool {
        self.expected(problem).is_some()
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        let extracted = self.answer_place.find(completion);
        let correct = extracted.is_some() && extracted == self.expected(problem);
        Ok(Scores::from([("accuracy".to_owned(), Score { extracted, correct })]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correct(place: AnswerPlace, reference: &str, completion: &str) -> bool {
        let task = Arithmetic { answer_place: place, ..Arithmetic::default() };
        let problem = Problem::new("123*45".to_owned(), reference.to_owned());
        task.score(&problem, completion).expect("scores")["accuracy"].correct
    }

    #[test]
    fn the_final_number_after_the_last_marker_counts() {
        let equals = || AnswerPlace::AfterLast("=".to_owned());
        let worked = "123*5=615\n123*40=4920\n615+4920=5535";
        assert!(correct(equals(), worked, worked));
        assert!(correct(equals(), "5535", "615+4920 = 5,535."));
        assert!(!correct(equals(), "5535", "615+4920=5534"));
        assert!(!correct(equals(), "5535", "5535"), "no marker");
        assert!(!correct(equals(), "5535", "5535="), "nothing after the marker");
        assert!(!correct(equals(), "5535", "= about 5535"), "words before the number");
        assert!(!correct(equals(), "5535", "=55351"));
        assert!(correct(AnswerPlace::AfterLast("####".to_owned()), "x #### -3", "y = 4\n####-3"));
        assert!(correct(AnswerPlace::LastNumber, "7", "6, or rather 7"));
    }

    #[test]
    fn a_reference_without_a_number_cannot_be_scored() {
        let problem = Problem::new("", "unknown".to_owned());
        assert!(!Arithmetic::default().answerable(&problem));
    }
}
