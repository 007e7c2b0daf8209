//! What can go wrong while learning.

use std::path::{Path, PathBuf};

/// The learner's errors.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model or a checkpoint.
    #[error(transparent)]
    Core(#[from] l2d_core::Error),
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A row of training data cannot be used.
    #[error("{path}, row {row}: {reason}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Row in it, from 1.
        row: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file or folder of training data cannot be used.
    #[error("{path}: {reason}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It was called off before it was done.
    #[error("interrupted")]
    Interrupted,
    /// No example is left to learn from.
    #[error("no example to learn from: {0}")]
    NoData(String),
    /// A setting is out of its range or contradicts another.
    #[error("setting `{key}`: {reason}")]
    Config {
        /// The setting.
        key: &'static str,
        /// Why it cannot be used.
        reason: String,
    },
    /// The loss or the gradient is no longer a number.
    #[error("step {step}: the {what} is {value}; stopped, the last good checkpoint is {checkpoint}")]
    NotFinite {
        /// The update at which it happened, from 1.
        step: u64,
        /// `loss`, `gradient norm` or `validation loss`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The newest whose weights gave a finite loss, or that there is none.
        checkpoint: String,
    },
    /// A run cannot be resumed.
    #[error("{path}: cannot resume: {reason}")]
    Resume {
        /// The run's folder or a file in it.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, TrainError>;

impl TrainError {
    /// Wraps an I/O error with its path.
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }
}
