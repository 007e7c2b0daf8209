//! What the process that builds the cell is told, and what it tells back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::mode::{Layers, Limits};

/// The first line on its standard input; the rest is the driver's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Which layers to build; a layer that cannot be built ends the run.
    pub(crate) layers: Layers,
    pub(crate) limits: Limits,
    /// Python's binary.
    pub(crate) python: PathBuf,
    /// Folders and files that may be read.
    pub(crate) readable: Vec<PathBuf>,
    /// An empty folder.
    pub(crate) folder: PathBuf,
    /// The process that gives the orders: the cell ends with it.
    pub(crate) parent: i32,
}

/// What it writes to its standard error, as JSON: the only line there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// A layer could not be built.
    NoLayer { layer: String, reason: String },
    /// Python could not be started.
    NoPython(String),
    /// Python ended.
    Ended {
        /// As `wait` has it.
        status: i32,
        /// What the driver told of the program's end, in hexadecimal.
        told: String,
    },
    /// The time was up.
    TimedOut,
    /// Its processes had more memory in use than they may have together.
    TooMuchMemory,
}
