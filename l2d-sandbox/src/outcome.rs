//! What becomes of a program.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the program came to its end.
    pub verdict: Verdict,
    /// Wall-clock time, the cell's own included; of both runs where there were two.
    pub wall: Duration,
    /// CPU time of the program and all it started.
    pub cpu: Duration,
    /// The last of what it wrote to standard output and standard error, as text.
    pub output: String,
}

/// Whether a program came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It did.
    Passed,
    /// It did not.
    Failed {
        /// The last line of its traceback, or how it ended.
        error: String,
    },
    /// Its time was up.
    TimedOut,
    /// It ran into the limit of memory.
    OutOfMemory,
    /// It claimed to have come to its end where it could not.
    Forged,
}
