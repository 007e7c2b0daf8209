//! Rows of a file, in pieces that can be parsed on any thread.

mod jsonl;
mod parquet;

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Result;

/// Some neighbouring rows of one file, still as they were read.
pub(super) enum Chunk {
    Lines(jsonl::Lines),
    Records(parquet::Records),
}

/// A row's number in its file, from 1, and its columns, or what is wrong with it.
pub(super) type NumberedRow = (usize, std::result::Result<Map<String, Value>, String>);

impl Chunk {
    /// Parses the rows.
    pub(super) fn rows(self) -> Vec<NumberedRow> {
        match self {
            Self::Lines(lines) => lines.rows(),
            Self::Records(records) => records.rows(),
        }
    }
}

/// Reads a file from its beginning and hands its rows on, in order, until `take` returns `false`.
///
/// # Errors
/// The file cannot be read to its end: it is missing, cut off, or not of the format its name or first bytes say.
pub(super) fn read(path: &Path, take: &mut dyn FnMut(Chunk) -> bool) -> Result<()> {
    if is_parquet(path) { parquet::read(path, take) } else { jsonl::read(path, take) }
}

/// Whether a file's name says that it holds rows.
pub(super) fn is_data(path: &Path) -> bool {
    let name = lower_name(path);
    [".jsonl", ".jsonl.gz", ".parquet"].iter().any(|end| name.ends_with(end))
}

fn is_parquet(path: &Path) -> bool {
    lower_name(path).ends_with(".parquet")
}

fn lower_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default()
}
