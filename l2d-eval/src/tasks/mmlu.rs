//! MMLU: 57 subjects, four options (Hendrycks et al. 2021, arXiv 2009.03300).

use super::choice::{Asked, MultipleChoice, index_in, letters, options};
use crate::error::Result;
use crate::rows::{DataSet, Row};
use crate::task::class;

/// The paper's setting: the first five questions of the subject's `dev` as shots.
pub(super) fn mmlu() -> MultipleChoice {
    MultipleChoice {
        name: "mmlu",
        data_set: DataSet::new("cais", "mmlu", "all"),
        split: "test",
        rows: 14042,
        shot_split: "dev",
        shots: 5,
        max_new_tokens: 256,
        grouped: true,
        read,
        class: class_of,
        preamble,
    }
}

fn read(row: &Row) -> Result<Asked> {
    let choices = row.texts("choices")?;
    let labels = letters(choices.len());
    let answer = index_in(row, "answer", row.integer("answer")?, labels.len())?;
    let question = format!(
        "Question:\n{}\nChoices:\n{}\nAnswer:",
        row.text("question")?,
        options(&labels, choices.iter().copied())
    );
    let asked = format!("{}\n{}Answer:", row.text("question")?.trim(), options(&labels, choices.iter().copied()));
    let plain = (asked, labels.clone());
    Ok(Asked { group: Some(row.text("subject")?.to_owned()), question, labels, answer, plain })
}

/// The sentence lm-evaluation-harness begins with.
fn preamble(subject: Option<&str>) -> String {
    let subject = subject.unwrap_or_default().replace('_', " ");
    format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
}

fn class_of(row: &Row) -> &'static str {
    match row.text("subject").unwrap_or_default() {
        "high_school_computer_science" => class::CODING,
        "abstract_algebra"
        | "college_mathematics"
        | "elementary_mathematics"
        | "high_school_mathematics"
        | "high_school_statistics" => class::MATH,
        _ => class::GENERAL,
    }
}
