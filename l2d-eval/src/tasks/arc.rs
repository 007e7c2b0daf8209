//! ARC: science questions of grade schools, an easy and a hard set (Clark et al. 2018, arXiv 1803.05457).

use super::choice::{Asked, MultipleChoice, no_preamble, options};
use crate::error::{Error, Result};
use crate::rows::{DataSet, Row};
use crate::task::class;

/// ARC-Easy in the paper's setting: the first five questions of `validation` as shots.
pub(super) fn easy() -> MultipleChoice {
    arc("arc_easy", "ARC-Easy", 2376)
}

/// ARC-Challenge in the same.
pub(super) fn challenge() -> MultipleChoice {
    arc("arc_challenge", "ARC-Challenge", 1172)
}

fn arc(name: &'static str, config: &'static str, rows: usize) -> MultipleChoice {
    MultipleChoice {
        name,
        data_set: DataSet::new("allenai", "ai2_arc", config),
        split: "test",
        rows,
        shot_split: "validation",
        shots: 5,
        max_new_tokens: 256,
        grouped: false,
        read,
        class: |_| class::GENERAL,
        preamble: no_preamble,
    }
}

/// Rows bring their own labels: letters, or digits in a few.
fn read(row: &Row) -> Result<Asked> {
    let choices = row.object("choices")?;
    let labels: Vec<String> = choices.texts("label")?.into_iter().map(str::to_owned).collect();
    let texts = choices.texts("text")?;
    let key = row.text("answerKey")?;
    let bad = |column: &str, reason: String| Error::ColumnValue {
        origin: row.origin().to_owned(),
        column: column.to_owned(),
        reason,
    };
    if texts.len() != labels.len() {
        return Err(bad("choices", format!("{} labels for {} texts", labels.len(), texts.len())));
    }
    let answer = labels.iter().position(|label| label == key);
    let answer = answer.ok_or_else(|| bad("answerKey", format!("`{key}` is none of {}", labels.join(", "))))?;
    let question =
        format!("Question:\n{}\nChoices:\n{}\nAnswer:", row.text("question")?, options(&labels, texts.iter().copied()));
    let plain =
        (format!("Question: {}\nAnswer:", row.text("question")?), texts.into_iter().map(str::to_owned).collect());
    Ok(Asked { group: None, question, labels, answer, plain })
}
