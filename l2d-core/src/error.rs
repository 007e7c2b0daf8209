//! The one error type of this crate. Every variant names the file, tensor, key or text at fault; the binary adds what to
//! do next.

use std::path::{Path, PathBuf};

/// What can go wrong between a file and a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is not what its name or magic promises, or breaks its format's rules.
    #[error("{path}: not a valid {format} file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The format expected, e.g. `gguf`.
        format: &'static str,
        /// What broke which rule.
        reason: String,
    },
    /// A well-formed file asks for something this crate does not implement.
    #[error("{path}: unsupported {what}: {found} (supported: {supported})")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The kind of thing, e.g. `model_type`.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What we read.
        supported: &'static str,
    },
    /// A value in a config is out of its range or contradicts another.
    #[error("{path}: `{key}`: {reason}")]
    Config {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// The key at fault.
        key: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// A device cannot hold a tensor.
    #[error(
        "{path}: tensor `{name}` has {} MB in f32, and this device holds {} MB in one piece; use another backend (cuda and \
         the CPU have no such limit), or a smaller model", .bytes / 1_000_000, .limit / 1_000_000
    )]
    DeviceLimit {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        name: String,
        /// Bytes in f32.
        bytes: usize,
        /// Bytes the device holds in one piece.
        limit: usize,
    },
    /// A tensor the model needs is not in the checkpoint.
    #[error("{path}: tensor `{name}` is missing")]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        name: String,
    },
    /// A checkpoint has tensors the model does not know. Refused, because a silently dropped bias changes every output.
    #[error("{path}: {count} tensor(s) the model has no place for, first `{name}`")]
    ExtraTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The first such tensor.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// A tensor's shape is not the one its config implies.
    #[error("{path}: tensor `{name}` has shape {found:?}, the config implies {expected:?}")]
    Shape {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape the config implies.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a number format we do not read.
    #[error("{path}: tensor `{name}` is stored as {found} (supported: {supported})")]
    Dtype {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The stored type.
        found: String,
        /// The types we read.
        supported: &'static str,
    },
    /// An adapter was trained on another base LM than the one it is asked to join.
    #[error("{path}: this adapter was trained on another base: {reason}")]
    AdapterMismatch {
        /// The adapter file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The tokenizer could not be built, or lacks a token it needs.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template could not be parsed, or raised while it was rendered.
    #[error("chat template: {0}")]
    ChatTemplate(String),
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps an I/O error with the path it happened at.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A `Format` error.
    pub fn format(path: impl AsRef<Path>, format: &'static str, reason: impl Into<String>) -> Self {
        Self::Format { path: path.as_ref().to_path_buf(), format, reason: reason.into() }
    }

    /// A `Config` error.
    pub fn config(path: impl AsRef<Path>, key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { path: path.as_ref().to_path_buf(), key: key.into(), reason: reason.into() }
    }
}
