//! Rows of a data set, whatever file they came from.

mod jsonl;
mod locate;
mod parquet;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use jsonl::from_jsonl;
pub use locate::{DataSet, Files, locate, locate_in};

use crate::error::{Error, Result};
use crate::task::Task;

/// One row: named columns, and where it came from for error messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    columns: Map<String, Value>,
    origin: String,
}

impl Row {
    /// A row from its columns; `origin` (file and row) is what errors name.
    pub fn new(columns: Map<String, Value>, origin: impl Into<String>) -> Self {
        Self { columns, origin: origin.into() }
    }

    /// File and row number.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The columns in the file's order.
    pub fn columns(&self) -> &Map<String, Value> {
        &self.columns
    }

    /// A column that must be there.
    ///
    /// # Errors
    /// [`Error::MissingColumn`], which lists the columns there are.
    pub fn get(&self, column: &str) -> Result<&Value> {
        self.columns.get(column).ok_or_else(|| Error::MissingColumn {
            origin: self.origin.clone(),
            column: column.to_owned(),
            found: list(self.columns.keys()),
        })
    }

    /// A text column.
    ///
    /// # Errors
    /// [`Error::MissingColumn`] or [`Error::ColumnType`].
    pub fn text(&self, column: &str) -> Result<&str> {
        match self.get(column)? {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(column, other, "a string")),
        }
    }

    /// A column of text, or of a number as its digits.
    ///
    /// # Errors
    /// [`Error::MissingColumn`] or [`Error::ColumnType`].
    pub fn text_or_number(&self, column: &str) -> Result<String> {
        match self.get(column)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(self.wrong_type(column, other, "a string or a number")),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`Error::MissingColumn`] or [`Error::ColumnType`].
    pub fn integer(&self, column: &str) -> Result<i64> {
        let value = self.get(column)?;
        value.as_i64().ok_or_else(|| self.wrong_type(column, value, "a whole number"))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`Error::MissingColumn`] or [`Error::ColumnType`].
    pub fn texts(&self, column: &str) -> Result<Vec<&str>> {
        let value = self.get(column)?;
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| self.wrong_type(column, value, "a list of strings"))
    }

    /// An object's fields as columns of their own.
    ///
    /// # Errors
    /// [`Error::MissingColumn`] or [`Error::ColumnType`].
    pub fn object(&self, column: &str) -> Result<Self> {
        match self.get(column)? {
            Value::Object(columns) => Ok(Self::new(columns.clone(), format!("{}, in `{column}`", self.origin))),
            other => Err(self.wrong_type(column, other, "an object")),
        }
    }

    fn wrong_type(&self, column: &str, found: &Value, expected: &'static str) -> Error {
        Error::ColumnType { origin: self.origin.clone(), column: column.to_owned(), found: type_name(found), expected }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn list(names: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// A file that rows were read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name.
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Its rows.
    pub rows: usize,
}

/// Reads a task's split from wherever below `dir` its data set lies, or from the task's own folder. A task without either
/// finds `SPLIT.jsonl` in `dir` itself.
///
/// # Errors
/// [`Error::DataSetNotFound`], [`Error::Shards`], or what is wrong with a file itself.
pub fn read_split(dir: &Path, task: &dyn Task, split: &str) -> Result<(Vec<Row>, Vec<SourceFile>)> {
    let files = match (task.folder(), task.data_set()) {
        (Some(folder), _) => locate_in(&folder, task.name(), split)?,
        (None, Some(data_set)) => locate(dir, &data_set, split)?,
        (None, None) => locate_in(dir, task.name(), split)?,
    };
    let mut rows = Vec::new();
    let mut sources = Vec::new();
    for path in files.paths() {
        let before = rows.len();
        read_into(path, usize::MAX, &mut rows)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        sources.push(SourceFile { name, sha256: sha256(path)?, rows: rows.len() - before });
    }
    Ok((rows, sources))
}

/// Refuses a split that has not as many rows as the published one.
///
/// # Errors
/// [`Error::RowCount`].
pub fn check_count(task: &dyn Task, rows: usize) -> Result<()> {
    match task.official_rows() {
        Some(official) if official != rows => {
            Err(Error::RowCount { task: task.name().to_owned(), split: task.split().to_owned(), found: rows, official })
        }
        _ => Ok(()),
    }
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(|source| Error::io(path, source))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(|source| Error::io(path, source))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Reads all rows of one `.parquet`, `.jsonl` or `.jsonl.gz` file.
///
/// # Errors
/// What is wrong with the file.
pub fn read_file(path: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    read_into(path, usize::MAX, &mut rows)?;
    Ok(rows)
}

/// Appends rows of `path` until `rows` holds `wanted` of them.
fn read_into(path: &Path, wanted: usize, rows: &mut Vec<Row>) -> Result<()> {
    if path.extension().is_some_and(|extension| extension == "parquet") {
        parquet::read_into(path, wanted, rows)
    } else {
        jsonl::read_into(path, wanted, rows)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(value: Value) -> Row {
        match value {
            Value::Object(columns) => Row::new(columns, "test.jsonl: row 7"),
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn a_missing_column_is_named_with_those_there() {
        let error = row(json!({"question": "1+1?", "solution": "2"})).text("answer").unwrap_err();
        assert_eq!(error.to_string(), "test.jsonl: row 7: no column `answer` (there is `question`, `solution`)");
    }

    #[test]
    fn a_column_of_another_type_is_named() {
        let error = row(json!({"answer": [1]})).text("answer").unwrap_err();
        assert_eq!(error.to_string(), "test.jsonl: row 7: column `answer` holds a list, expected a string");
        assert_eq!(row(json!({"answer": 12})).text_or_number("answer").unwrap(), "12");
    }
}
