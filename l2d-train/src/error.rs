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
    /// The loss or the gradient is no longer a number, or the loss is beyond `max_loss`.
    #[error(
        "step {step}: the {what} is {value}; stopped, the last good checkpoint is {checkpoint}. Start anew in another folder \
         with a lower learning_rate, a longer warmup_steps or a smaller clip_norm"
    )]
    Diverged {
        /// The update at which it happened, from 1.
        step: u64,
        /// `loss`, `gradient norm` or `validation loss`.
        what: &'static str,
        /// Its value, and the limit where that is `max_loss`.
        value: String,
        /// The newest whose weights gave a good loss, or that there is none.
        checkpoint: String,
    },
    /// All checkpoints of a run are damaged.
    #[error(
        "{path}: cannot resume: no checkpoint is whole ({damage}); restore one from a copy, or start anew in another folder"
    )]
    NoGoodCheckpoint {
        /// The run's folder.
        path: PathBuf,
        /// What is wrong with each.
        damage: String,
    },
    /// Whoever answers problems during the run has failed.
    #[error("step {step}: validation by generating failed: {source}")]
    Generation {
        /// Updates made before.
        step: u64,
        /// Its reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The link between ranks is broken.
    #[error("the ranks of this run are no longer together: {reason}")]
    Ranks {
        /// What happened.
        reason: String,
    },
    /// Ranks were started with different things.
    #[error(
        "rank {rank} differs from rank 0 in its {what}: {difference}. Start the same program with the same command, files and \
         data on every rank"
    )]
    Unequal {
        /// What differs.
        what: &'static str,
        /// The first rank that differs.
        rank: usize,
        /// Both.
        difference: String,
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
