//! What a run reads: its sources, as a person writes them, and checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::schema::{Columns, Schema};
use crate::error::{Result, TrainError};

/// One source of training rows. Every key may be left out; unknown keys are refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// A file or a folder.
    pub path: Option<PathBuf>,
    /// A folder in it: a configuration, in the words of the Hugging Face hub.
    pub subset: Option<String>,
    /// Which split of a folder; `train` when absent.
    pub split: Option<String>,
    /// How a row is laid out.
    pub schema: Schema,
    /// The guidance class of all its rows.
    pub class: Option<String>,
    /// Its share of the examples a run sees, relative to the others' weights. All sources have one, or none has.
    pub weight: Option<f64>,
    /// At most so many rows are used, the first ones.
    pub max_rows: Option<u64>,
    /// Names of its columns; those of the run when absent.
    pub columns: Option<Columns>,
    /// Rows whose column (the key) has one of these values are left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exclude: BTreeMap<String, Vec<String>>,
}

/// What becomes of a row that cannot be used as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadRows {
    /// It ends the command, named with its file and number.
    #[default]
    Error,
    /// It is left out and counted by reason.
    Drop,
}

impl SourceConfig {
    /// All of one file or folder.
    pub fn of(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }
}

/// Checks all sources together; `classes` are the guidance classes of the run, `columns` those of sources without their own.
///
/// # Errors
/// The setting that contradicts another or is out of range.
pub(crate) fn check_sources(sources: &[SourceConfig], classes: &[String], columns: &Columns) -> Result<()> {
    let fail = |key: &'static str, reason: String| Err(TrainError::Config { key, reason });
    let weighted = sources.iter().filter(|source| source.weight.is_some()).count();
    if weighted != 0 && weighted != sources.len() {
        return fail(
            "sources.weight",
            format!("{weighted} of {} sources have one: give it to all or none", sources.len()),
        );
    }
    for (number, source) in (1..).zip(sources) {
        if let Some(weight) = source.weight.filter(|weight| !(*weight > 0.0 && *weight <= 1e12)) {
            return fail("sources.weight", format!("{weight} of source {number} is not a positive number up to 1e12"));
        }
        if source.max_rows == Some(0) {
            return fail("sources.max_rows", format!("source {number} would have no row; leave the source out"));
        }
        if classes.is_empty() {
            continue;
        }
        let column = source.columns.as_ref().unwrap_or(columns).class.as_ref();
        match &source.class {
            Some(_) if column.is_some() => {
                return fail(
                    "sources.class",
                    format!("source {number} also has a column of classes: which one counts?"),
                );
            }
            Some(class) if !classes.contains(class) => {
                return fail(
                    "sources.class",
                    format!("`{class}` of source {number} is none of: {}", classes.join(", ")),
                );
            }
            None if column.is_none() => {
                let reason = format!("source {number} has neither a class nor a column of classes (columns.class)");
                return fail("sources.class", reason);
            }
            _ => {}
        }
    }
    Ok(())
}
