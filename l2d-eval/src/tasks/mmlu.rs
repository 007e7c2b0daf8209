//! MMLU: 57 subjects, four options (Hendrycks et al. 2021, arXiv 2009.03300).

use super::choice::{Asked, MultipleChoice, index_in, letters, options};
use crate::error::Result;
use crate::rows::{DataSet, Row};

/// The paper's setting: the first five questions of the subject's `dev` as shots.
pub(super) fn mmlu() -> MultipleChoice {
    MultipleChoice {
        name: "mmlu",
        data_set: DataSet { owner: "cais", name: "mmlu", config: "all" },
        split: "test",
        shot_split: "dev",
        shots: 5,
        max_new_tokens: 256,
        grouped: true,
        read,
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
    Ok(Asked { group: Some(row.text("subject")?.to_owned()), question, labels, answer })
}
