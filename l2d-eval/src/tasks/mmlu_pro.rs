//! MMLU-Pro: 14 categories, up to ten options (Wang et al. 2024, arXiv 2406.01574).

use super::choice::{Asked, MultipleChoice, index_in, letters, options};
use crate::error::Result;
use crate::rows::{DataSet, Row};

/// The paper's setting: the first five questions of the category's `validation` as shots, no reasoning asked for.
pub(super) fn mmlu_pro() -> MultipleChoice {
    MultipleChoice {
        name: "mmlu_pro",
        data_set: DataSet { owner: "TIGER-Lab", name: "MMLU-Pro", config: "data" },
        split: "test",
        shot_split: "validation",
        shots: 5,
        max_new_tokens: 256,
        grouped: true,
        read,
    }
}

fn read(row: &Row) -> Result<Asked> {
    let choices = row.texts("options")?;
    let labels = letters(choices.len());
    let answer = index_in(row, "answer_index", row.integer("answer_index")?, labels.len())?;
    let question = format!("Question:\n{}\nChoices:\n{}", row.text("question")?, options(&labels, choices));
    Ok(Asked { group: Some(row.text("category")?.to_owned()), question, labels, answer })
}
