//! GSM8K: grade-school word problems with a number for an answer (Cobbe et al. 2021, arXiv 2110.14168).

use std::sync::LazyLock;

use regex::Regex;

use crate::error::Result;
use crate::extract::{canonical_number, until};
use crate::rows::{DataSet, Row};
use crate::task::{Metric, Problem, Profile, Score, Scores, Task, class};

/// `#### ` and a number, as the data set's solutions end.
static MARKED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#### (\-?[0-9\.,]+)").expect("a valid pattern"));
/// Any number, as lm-evaluation-harness looks for it.
static ANY_NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(-?[$0-9.,]{2,})|(-?[0-9]+)").expect("a valid pattern"));

const METRICS: &[Metric] = &[
    Metric::new("accuracy", Profile::Exact, "first `#### number`, compared as numbers"),
    Metric::of_harness(
        "strict",
        "exact_match,strict-match",
        "lm-evaluation-harness strict-match: first `#### number`, compared as text",
    ),
    Metric::of_harness(
        "flexible",
        "exact_match,flexible-extract",
        "lm-evaluation-harness flexible-extract: the last number, compared as text",
    ),
    Metric::new("paper", Profile::Paper, "the L2D reference: first `#### number`, commas removed, compared as text"),
];

/// GSM8K in the paper's setting: 5 shots of the train split as earlier turns, at most 256 new tokens.
#[derive(Debug, Clone)]
pub struct Gsm8k {
    /// Solved problems before the question.
    pub shots: usize,
    /// The most tokens of a completion.
    pub max_new_tokens: usize,
}

impl Default for Gsm8k {
    fn default() -> Self {
        Self { shots: 5, max_new_tokens: 256 }
    }
}

impl Task for Gsm8k {
    fn name(&self) -> &str {
        "gsm8k"
    }

    fn version(&self) -> u32 {
        1
    }

    fn data_set(&self) -> Option<DataSet> {
        Some(DataSet::new("openai", "gsm8k", "main"))
    }

    fn shots(&self) -> usize {
        self.shots
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        self.shots = shots;
        Ok(())
    }

    fn official_rows(&self) -> Option<usize> {
        Some(1319)
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
        Ok(Problem::new(row.text("question")?.to_owned(), row.text("answer")?.to_owned()))
    }

    fn class(&self, _row: &Row) -> &'static str {
        class::MATH
    }

    fn answerable(&self, problem: &Problem) -> bool {
        first_marked(&problem.solution).and_then(canonical_number).is_some()
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        let reference = first_marked(&problem.solution).unwrap_or_default();
        let number = canonical_number(reference).unwrap_or_default();
        let found = first_marked(completion);

        let accuracy = found.and_then(canonical_number);
        let paper = found.map(without_commas);
        let target = harness_text(&problem.solution);
        let harness = until(completion, HARNESS_STOPS);
        let strict = first_marked(harness).map(harness_text);
        let flexible = last_number(harness).map(harness_text);
        Ok(Scores::from([
            ("accuracy".to_owned(), judged(accuracy, &number)),
            ("strict".to_owned(), judged(strict, &target)),
            ("flexible".to_owned(), judged(flexible, &target)),
            ("paper".to_owned(), judged(paper, &without_commas(reference))),
        ]))
    }
}

/// Where lm-evaluation-harness ends a completion (gsm8k.yaml).
const HARNESS_STOPS: &[&str] = &["Question:", "</s>", "<|im_end|>"];

fn judged(extracted: Option<String>, expected: &str) -> Score {
    let correct = extracted.as_deref() == Some(expected);
    Score { extracted, correct }
}

fn first_marked(text: &str) -> Option<&str> {
    MARKED.captures(text)?.get(1).map(|number| number.as_str())
}

fn without_commas(text: &str) -> String {
    text.replace(',', "")
}

fn last_number(text: &str) -> Option<&str> {
    ANY_NUMBER.find_iter(text).last().map(|number| number.as_str().trim())
}

/// What lm-evaluation-harness compares: without `,`, `$`, everything up to the last `#### ` and a final `.`, case ignored.
fn harness_text(text: &str) -> String {
    let bare: String = text.chars().filter(|c| !matches!(c, ',' | '$')).collect();
    let answer = bare.rsplit_once("#### ").map_or(bare.as_str(), |(_, answer)| answer);
    answer.strip_suffix('.').unwrap_or(answer).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(reference: &str, completion: &str) -> Scores {
        let problem = Problem::new("", reference.to_owned());
        assert!(Gsm8k::default().answerable(&problem));
        Gsm8k::default().score(&problem, completion).expect("scores")
    }

    /// Which metrics count the completion as correct, in the order accuracy, strict, flexible, paper.
    fn correct(reference: &str, completion: &str) -> [bool; 4] {
        let scores = scores(reference, completion);
        METRICS.iter().map(|metric| scores[&*metric.name].correct).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn metrics_differ_where_they_should() {
        for (reference, completion, expected) in [
            ("so\n#### 18", "thus\n#### 18", [true, true, true, true]),
            ("#### 18", "#### 18.", [true, true, true, false]),
            ("#### 1,000", "#### 1000", [true, true, true, true]),
            ("#### 5", "#### 5.0", [true, false, false, false]),
            ("#### 72", "so it is $72.", [false, false, true, false]),
            ("#### 3", "#### 3, that is 2 + 1", [true, true, false, true]),
            ("#### 4", "#### 3 no: #### 4", [false, false, true, false]),
            ("#### -7", "#### -7", [true, true, true, true]),
            ("#### 5", "five", [false, false, false, false]),
        ] {
            assert_eq!(correct(reference, completion), expected, "{reference:?} {completion:?}");
        }
    }

    #[test]
    fn a_comma_alone_is_no_answer() {
        assert_eq!(scores("#### 5", "#### ,")["accuracy"].extracted, None);
        assert_eq!(scores("#### 5", "#### ,")["paper"].extracted.as_deref(), Some(""));
    }

    #[test]
    fn a_reference_without_an_answer_cannot_be_scored() {
        let problem = Problem::new("", "it depends".to_owned());
        assert!(!Gsm8k::default().answerable(&problem));
    }
}
