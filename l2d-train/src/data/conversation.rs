//! Conversations from jsonl files, plain or gzipped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Result, TrainError};

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Turn {
    /// A message of that role.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_string(), content: content.into() }
    }
}

/// One row of training data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// In order.
    pub turns: Vec<Turn>,
    /// Guidance class of the row, if its column was asked for.
    pub class: Option<String>,
    /// Where it was read, for error messages.
    pub origin: Option<Origin>,
}

/// A row of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: Arc<Path>,
    /// The row, from 1.
    pub row: usize,
}

/// Which columns of a row hold what. A row with a `messages` column needs no question and answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// A list of `{role, content}`.
    pub messages: String,
    /// The user's turn, in rows without messages.
    pub question: String,
    /// The assistant's turn, in rows without messages.
    pub answer: String,
    /// The guidance class, if any.
    pub class: Option<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Self { messages: "messages".into(), question: "question".into(), answer: "answer".into(), class: None }
    }
}

/// Reads all rows of the given files; a folder stands for every `.jsonl` and `.jsonl.gz` directly in it, sorted by name.
///
/// # Errors
/// A path is missing or unreadable, a folder holds no such file, or a row is broken: named with its file and number.
pub fn read_conversations(paths: &[PathBuf], columns: &Columns) -> Result<Vec<Conversation>> {
    let mut all = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            read_file(&file, columns, &mut all)?;
        }
    }
    Ok(all)
}

fn is_jsonl(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    name.ends_with(".jsonl") || name.ends_with(".jsonl.gz")
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| TrainError::io(path, e))?;
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(|e| TrainError::io(path, e)))
        .collect::<Result<Vec<_>>>()?;
    files.retain(|file| is_jsonl(file));
    files.sort();
    if files.is_empty() {
        return Err(TrainError::NoData(format!("{}: no .jsonl or .jsonl.gz file in this folder", path.display())));
    }
    Ok(files)
}

/// A row longer than this is no conversation but a file without line ends, perhaps a small archive of a huge one.
const MAX_LINE: u64 = 64 << 20;

fn read_file(path: &Path, columns: &Columns, all: &mut Vec<Conversation>) -> Result<()> {
    let file = File::open(path).map_err(|e| TrainError::io(path, e))?;
    let gzipped = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    let shared: Arc<Path> = path.into();
    let reader: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    for row_number in 1.. {
        let at_row = |reason: String| TrainError::Row { path: path.to_path_buf(), row: row_number, reason };
        line.clear();
        // A truncated archive ends here, with the row it was met at.
        reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(|e| at_row(e.to_string()))?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 > MAX_LINE {
            return Err(at_row(format!("the line is longer than {} MiB; is this jsonl?", MAX_LINE >> 20)));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let row: Map<String, Value> = serde_json::from_slice(&line).map_err(|e| at_row(e.to_string()))?;
        let origin = Some(Origin { path: shared.clone(), row: row_number });
        all.push(Conversation { origin, ..conversation(&row, columns).map_err(at_row)? });
    }
    Ok(())
}

fn conversation(row: &Map<String, Value>, columns: &Columns) -> std::result::Result<Conversation, String> {
    // Exports of mixed tables write absent columns as null.
    let column = |key: &str| row.get(key).filter(|value| !value.is_null());
    let text = |key: &str, absent: &str| match column(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("column `{key}` is not a string")),
        None => {
            let found: Vec<&str> = row.keys().map(String::as_str).collect();
            Err(format!("{absent}no column `{key}`; this row has: {}", found.join(", ")))
        }
    };
    let no_messages = format!("no column `{}` and ", columns.messages);
    let turns = match column(&columns.messages) {
        Some(messages) => {
            Vec::<Turn>::deserialize(messages).map_err(|e| format!("column `{}`: {e}", columns.messages))?
        }
        None => vec![
            Turn::new("user", text(&columns.question, &no_messages)?),
            Turn::new("assistant", text(&columns.answer, &no_messages)?),
        ],
    };
    let class = match &columns.class {
        // A null is a row without a class; a missing column is a mistake.
        Some(key) if row.get(key).is_some_and(Value::is_null) => None,
        Some(key) => Some(text(key, "")?),
        None => None,
    };
    Ok(Conversation { turns, class, origin: None })
}
