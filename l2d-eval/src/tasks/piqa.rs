//! PIQA: which of two ways gets a thing done (Bisk et al. 2020, arXiv 1911.11641).

use super::choice::{Asked, MultipleChoice, index_in, letters, no_preamble, options};
use crate::error::Result;
use crate::rows::{DataSet, Row};
use crate::task::class;

/// The paper's setting: the first five questions of `train` as shots, asked over `validation` (the test's answers are not
/// public).
pub(super) fn piqa() -> MultipleChoice {
    MultipleChoice {
        name: "piqa",
        data_set: DataSet::new("ybisk", "piqa", "plain_text"),
        split: "validation",
        rows: 1838,
        shot_split: "train",
        shots: 5,
        max_new_tokens: 256,
        grouped: false,
        read,
        class: |_| class::GENERAL,
        preamble: no_preamble,
    }
}

fn read(row: &Row) -> Result<Asked> {
    let labels = letters(2);
    let answer = index_in(row, "label", row.integer("label")?, labels.len())?;
    let question = format!(
        "Goal:\n{}\nOptions:\n{}\nAnswer:",
        row.text("goal")?,
        options(&labels, [row.text("sol1")?, row.text("sol2")?])
    );
    let plain = (
        format!("Question: {}\nAnswer:", row.text("goal")?),
        vec![row.text("sol1")?.to_owned(), row.text("sol2")?.to_owned()],
    );
    Ok(Asked { group: None, question, labels, answer, plain })
}
