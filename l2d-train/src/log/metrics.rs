//! One JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Result, TrainError};

/// An open `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts a new file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| TrainError::io(path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Goes on with a file after `step` updates: lines of later updates, which a resumed run computes again, are dropped.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let io = |e| TrainError::io(path, e);
        let mut kept = Vec::new();
        if path.exists() {
            for line in BufReader::new(File::open(path).map_err(io)?).lines() {
                let line = line.map_err(io)?;
                // A line cut off by a crash is no JSON and goes too.
                let earlier = serde_json::from_str::<Value>(&line)
                    .ok()
                    .and_then(|row| row["step"].as_u64())
                    .is_some_and(|at| at <= step);
                if earlier {
                    kept.extend_from_slice(line.as_bytes());
                    kept.push(b'\n');
                }
            }
        }
        l2d_core::checkpoint::write_atomically(path, |out| out.write_all(&kept))?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends one line. It reaches the operating system at once, so that another program can follow the run.
    pub fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let io = |e| TrainError::io(&self.path, e);
        let mut line = serde_json::to_vec(row).map_err(|e| io(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(io)
    }
}
