//! Typed access to the key-value table of a GGUF file.

use std::collections::HashMap;
use std::path::Path;

use anamnesis::{GgufMetadataArray as Array, GgufMetadataValue as Value};

use crate::error::{Error, Result};

/// The table, with the path its errors name.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a> {
    path: &'a Path,
    table: &'a HashMap<String, Value>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(path: &'a Path, table: &'a HashMap<String, Value>) -> Self {
        Self { path, table }
    }

    fn wrong_type<T>(&self, key: &str, expected: &str) -> Result<T> {
        Err(Error::config(self.path, key, format!("is not {expected}")))
    }

    fn missing<T>(&self, key: &str) -> Result<T> {
        Err(Error::config(self.path, key, "missing"))
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong_type(key, "a string"),
        }
    }

    pub(super) fn required_string(&self, key: &str) -> Result<&'a str> {
        self.string(key)?.map_or_else(|| self.missing(key), Ok)
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => self.wrong_type(key, "a boolean"),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.table.get(key) {
            None => Ok(None),
            // Through its shortest decimal form: 1e-5 stored in f32 is meant as 1e-5, not as 9.999999747e-6.
            Some(Value::F32(x)) => Ok(Some(x.to_string().parse().unwrap_or(f64::from(*x)))),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(_) => self.wrong_type(key, "a floating-point number"),
        }
    }

    /// A size. Where the format allows one per block (head counts), all of them must agree.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let found = match self.table.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) => {
                let per_block = integer_list(array).unwrap_or_default();
                match per_block.split_first() {
                    Some((first, rest)) if rest.iter().all(|n| n == first) => Some(*first),
                    _ => return self.wrong_type(key, "one number, or the same number for every block"),
                }
            }
            Some(value) => integer(value),
        };
        match found.and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => self.wrong_type(key, "a non-negative integer"),
        }
    }

    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(value) => match integer(value) {
                // Some converters write -1, or its unsigned twin, for "none".
                Some(-1) => Ok(None),
                Some(n) if n == i64::from(u32::MAX) => Ok(None),
                Some(n) if u32::try_from(n).is_ok() => Ok(u32::try_from(n).ok()),
                _ => self.wrong_type(key, "a token id"),
            },
        }
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => match integer_list(array) {
                Some(list) => Ok(Some(list)),
                None => self.wrong_type(key, "a list of integers"),
            },
            Some(_) => self.wrong_type(key, "a list of integers"),
        }
    }

    pub(super) fn required_strings(&self, key: &str) -> Result<&'a [String]> {
        match self.table.get(key) {
            None => self.missing(key),
            Some(Value::Array(array)) => match array.as_ref() {
                Array::String(list) => Ok(list),
                _ => self.wrong_type(key, "a list of strings"),
            },
            Some(_) => self.wrong_type(key, "a list of strings"),
        }
    }
}

fn integer(value: &Value) -> Option<i64> {
    match *value {
        Value::U8(n) => Some(n.into()),
        Value::I8(n) => Some(n.into()),
        Value::U16(n) => Some(n.into()),
        Value::I16(n) => Some(n.into()),
        Value::U32(n) => Some(n.into()),
        Value::I32(n) => Some(n.into()),
        Value::U64(n) => n.try_into().ok(),
        Value::I64(n) => Some(n),
        _ => None,
    }
}

fn integer_list(array: &Array) -> Option<Vec<i64>> {
    match array {
        Array::U8(list) => Some(list.iter().map(|&n| n.into()).collect()),
        Array::I8(list) => Some(list.iter().map(|&n| n.into()).collect()),
        Array::U16(list) => Some(list.iter().map(|&n| n.into()).collect()),
        Array::I16(list) => Some(list.iter().map(|&n| n.into()).collect()),
        Array::U32(list) => Some(list.iter().map(|&n| n.into()).collect()),
        Array::I32(list) => Some(list.iter().map(|&n| n.into()).collect()),
        Array::U64(list) => list.iter().map(|&n| n.try_into().ok()).collect(),
        Array::I64(list) => Some(list.clone()),
        _ => None,
    }
}
