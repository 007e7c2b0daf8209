//! MMLU-Pro: 14 categories, up to ten options (Wang et al. 2024, arXiv 2406.01574).

use super::choice::{Asked, MultipleChoice, index_in, letters, no_preamble, options};
use crate::error::Result;
use crate::rows::{DataSet, Row};
use crate::task::class;

/// The paper's setting: the first five questions of the category's `validation` as shots, no reasoning asked for.
pub(super) fn mmlu_pro() -> MultipleChoice {
    MultipleChoice {
        name: "mmlu_pro",
        data_set: DataSet::new("TIGER-Lab", "MMLU-Pro", "data"),
        split: "test",
        rows: 12032,
        shot_split: "validation",
        shots: 5,
        max_new_tokens: 256,
        grouped: true,
        read,
        class: class_of,
        preamble: no_preamble,
    }
}

fn read(row: &Row) -> Result<Asked> {
    let choices = row.texts("options")?;
    let labels = letters(choices.len());
    let answer = index_in(row, "answer_index", row.integer("answer_index")?, labels.len())?;
    let question = format!("Question:\n{}\nChoices:\n{}", row.text("question")?, options(&labels, choices));
    let plain = (format!("{question}Answer:"), labels.clone());
    Ok(Asked { group: Some(row.text("category")?.to_owned()), question, labels, answer, plain })
}

fn class_of(row: &Row) -> &'static str {
    if row.text("category").is_ok_and(|category| category == "math") { class::MATH } else { class::GENERAL }
}
