//! What multiple-choice tasks have in common: a question with labelled options, and a label for an answer.

use regex::Regex;

use crate::error::{Error, Result};
use crate::extract::until;
use crate::rows::{DataSet, Row};
use crate::task::{LikelihoodQuestion, Metric, Problem, Profile, Score, Scores, Task};

/// A row as every multiple-choice task reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Rows of the same group are shots for each other, where the task has groups.
    pub(super) group: Option<String>,
    /// The question in the task's words, options included.
    pub(super) question: String,
    /// The labels of the options, in order.
    pub(super) labels: Vec<String>,
    /// Which of them is right.
    pub(super) answer: usize,
    /// The same for log-likelihoods, in lm-evaluation-harness's words: what comes before the option, and the options.
    pub(super) plain: (String, Vec<String>),
}

/// A multiple-choice benchmark in the paper's setting: shots as earlier turns, the answer a letter that is generated.
#[derive(Debug, Clone)]
pub struct MultipleChoice {
    pub(super) name: &'static str,
    pub(super) data_set: DataSet,
    pub(super) split: &'static str,
    /// Rows of the published split.
    pub(super) rows: usize,
    pub(super) shot_split: &'static str,
    /// Solved problems before the question.
    pub shots: usize,
    /// The most tokens of a completion.
    pub max_new_tokens: usize,
    /// Shots are of the question's own group.
    pub(super) grouped: bool,
    pub(super) read: fn(&Row) -> Result<Asked>,
    /// The guidance class of a row.
    pub(super) class: fn(&Row) -> &'static str,
    /// What the shots' group tells before the first of them, for log-likelihoods.
    pub(super) preamble: fn(Option<&str>) -> String,
}

/// For tasks whose shots need no introduction.
pub(super) fn no_preamble(_: Option<&str>) -> String {
    String::new()
}

/// Letters as labels.
pub(super) fn letters(count: usize) -> Vec<String> {
    (b'A'..=b'Z').take(count).map(|letter| char::from(letter).to_string()).collect()
}

/// `A. text`, a line each.
pub(super) fn options<'a>(labels: &[String], texts: impl IntoIterator<Item = &'a str>) -> String {
    labels.iter().zip(texts).map(|(label, text)| format!("{label}. {text}\n")).collect()
}

/// The place of the right option, which must be one of `labels`.
pub(super) fn index_in(row: &Row, column: &str, index: i64, labels: usize) -> Result<usize> {
    usize::try_from(index).ok().filter(|&index| index < labels).ok_or_else(|| Error::ColumnValue {
        origin: row.origin().to_owned(),
        column: column.to_owned(),
        reason: format!("{index} is none of the {labels} options"),
    })
}

const METRICS: &[Metric] = &[
    Metric::new(
        "accuracy",
        Profile::Paper,
        "the first option letter that no letter or digit follows (the L2D reference)",
    ),
    Metric::new("strict", Profile::Exact, "the completion is the letter alone, brackets, full stop and spaces aside"),
    Metric::new(
        "stated",
        Profile::Harness,
        "the first letter after `answer is`, as lm-evaluation-harness reads MMLU-Pro",
    ),
];

impl Task for MultipleChoice {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> u32 {
        2
    }

    fn data_set(&self) -> Option<DataSet> {
        Some(self.data_set.clone())
    }

    fn split(&self) -> &str {
        self.split
    }

    fn shot_split(&self) -> &str {
        self.shot_split
    }

    fn shots(&self) -> usize {
        self.shots
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        self.shots = shots;
        Ok(())
    }

    fn official_rows(&self) -> Option<usize> {
        Some(self.rows)
    }

    fn shot_rows(&self) -> Option<usize> {
        (!self.grouped).then_some(self.shots)
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
        let asked = (self.read)(row)?;
        let solution = asked.labels[asked.answer].clone();
        Ok(Problem { question: asked.question, solution, labels: asked.labels, ..Problem::default() })
    }

    fn shots_for(&self, rows: &[Row], row: &Row) -> Result<Vec<Problem>> {
        self.first_shots(&mut self.chosen_shots(rows, row)?.into_iter())
    }

    fn class(&self, row: &Row) -> &'static str {
        (self.class)(row)
    }

    fn likelihood(&self, shots: &[Row], row: &Row) -> Result<Option<LikelihoodQuestion>> {
        let asked = (self.read)(row)?;
        let mut context = (self.preamble)(asked.group.as_deref());
        for shot in self.chosen_shots(shots, row)? {
            let Asked { plain: (question, options), answer, .. } = (self.read)(shot)?;
            context.push_str(&format!("{question} {}\n\n", options[answer]));
        }
        let (question, options) = asked.plain;
        context.push_str(&question);
        let continuations = options.iter().map(|option| format!(" {option}")).collect();
        Ok(Some(LikelihoodQuestion { context, continuations, answer: asked.answer }))
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        let judged = |extracted: Option<String>| {
            let correct = extracted.as_deref() == Some(&problem.solution);
            Score { extracted, correct }
        };
        Ok(Scores::from([
            ("accuracy".to_owned(), judged(first_letter(&problem.labels, completion))),
            ("strict".to_owned(), judged(letter_alone(&problem.labels, completion))),
            ("stated".to_owned(), judged(stated_letter(&problem.labels, until(completion, &["Question:"])))),
        ]))
    }
}

impl MultipleChoice {
    /// The first rows of the shots' split, of the row's own group where the task has groups.
    fn chosen_shots<'r>(&self, rows: &'r [Row], row: &Row) -> Result<Vec<&'r Row>> {
        let group = (self.read)(row)?.group;
        let mut chosen = Vec::new();
        for other in rows {
            if chosen.len() < self.shots && (!self.grouped || (self.read)(other)?.group == group) {
                chosen.push(other);
            }
        }
        if chosen.len() < self.shots {
            return Err(Error::TooFewShots { task: self.name.to_owned(), shots: self.shots, found: chosen.len() });
        }
        Ok(chosen)
    }
}

/// The first label that no letter or digit follows; what is before it does not matter (`DNA and B` gives A).
fn first_letter(labels: &[String], text: &str) -> Option<String> {
    let after = |end: usize| text[end..].chars().next();
    let found = labels.iter().flat_map(|label| {
        text.match_indices(label.as_str())
            .filter(|(at, label)| after(at + label.len()).is_none_or(|c| !c.is_ascii_alphanumeric()))
            .map(|(at, _)| at)
            .next()
            .map(|at| (at, label))
    });
    found.min().map(|(_, label)| label.clone())
}

fn letter_alone(labels: &[String], text: &str) -> Option<String> {
    let bare = text.trim().trim_start_matches('(').trim_end_matches(['.', ')', ':']);
    labels.iter().find(|label| *label == bare).cloned()
}

/// lm-evaluation-harness's filter for MMLU-Pro, which takes any letter up to J whatever the options are, and the beginning of a
/// word for one; and this row's labels, where they are no letters.
fn stated_letter(labels: &[String], text: &str) -> Option<String> {
    let mut any = "[A-J]".to_owned();
    for label in labels.iter().filter(|label| !matches!(label.as_bytes(), [b'A'..=b'J'])) {
        any = format!("{any}|{}", regex::escape(label));
    }
    let pattern = Regex::new(&format!(r"answer is \(?({any})\)?")).ok()?;
    pattern.captures(text).map(|found| found[1].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_ways_of_reading_a_letter_differ() {
        let labels = letters(4);
        let read = |text: &str| {
            let all = [first_letter(&labels, text), letter_alone(&labels, text), stated_letter(&labels, text)];
            all.map(|letter| letter.unwrap_or_else(|| "-".to_owned())).join("")
        };
        for (text, expected) in [
            ("B", "BB-"),
            (" (C).", "CC-"),
            ("The answer is (D).", "D-D"),
            ("A bird in the hand: the answer is C", "A-C"),
            ("the answer is Cats", "--C"),
            ("answer is A, no, the answer is B", "A-A"),
            ("", "---"),
            ("E", "---"),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn longer_labels_and_other_scripts_do_no_harm() {
        assert_eq!(first_letter(&["10".into(), "1".into()], "10."), Some("10".into()));
        assert_eq!(first_letter(&letters(2), "é A"), Some("A".into()));
        assert_eq!(first_letter(&letters(2), "Aé"), Some("A".into()), "as the reference: no ASCII letter follows");
    }
}
