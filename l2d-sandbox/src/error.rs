//! The one error type of this crate.

use std::path::PathBuf;

/// What keeps a program from being run at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not Linux.
    #[error("programs are run on Linux only: generate here, and score the answers there")]
    System,
    /// A name that is no mode.
    #[error("no sandbox mode `{0}` (there is required, best-effort, off)")]
    Mode(String),
    /// No Python that the cell could read.
    #[error("no python3 that can be run in the sandbox: {0}; install the system's (/usr/bin/python3)")]
    Python(String),
    /// Root's programs run as nobody, who cannot reach the temporary folder.
    #[error(
        "no sandbox: root's programs run as nobody, and {barred} (of the temporary folder {temporary}) is closed to others; set \
         TMPDIR to a folder that all may enter, such as /tmp"
    )]
    Folder {
        /// The temporary folder.
        temporary: PathBuf,
        /// The part of its path.
        barred: PathBuf,
    },
    /// More time than a run may have.
    #[error("a program's time is at most {} hours", .0.as_secs() / 3600)]
    Limits(std::time::Duration),
    /// The binary that builds the cell cannot be started.
    #[error("{program}: starting the sandbox failed: {source}")]
    Launch {
        /// The binary.
        program: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A part of the cell cannot be had here.
    #[error("no sandbox: {layer} is not to be had here ({reason}); {remedy}")]
    Layer {
        /// The part.
        layer: String,
        /// What the system said.
        reason: String,
        /// What helps.
        remedy: &'static str,
    },
    /// The cell was built and does not hold.
    #[error("no sandbox: a program inside could {0}; this is a defect, please report it")]
    Leak(String),
    /// The process that builds the cell broke down.
    #[error("the sandbox broke down: {0}")]
    Broken(String),
    /// The operating system refused something else.
    #[error("sandbox: {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
