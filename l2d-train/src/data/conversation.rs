//! One row of training data, as messages.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
    /// So many turns at the beginning are context alone: an assistant's turn among them is not learnt.
    pub context: usize,
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
