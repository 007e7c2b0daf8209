//! The folder of a run.
//!
//! `config.toml` (the settings that were used), `metrics.jsonl`, `events.out.tfevents.*`, and
//! `checkpoints/step-NNNNNNNN/{adapter.safetensors, optimizer.safetensors, state.json}`. A checkpoint appears under its name
//! when it is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{StoredDtype, read_tensors, write_atomically, write_tensors};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::optimiser::{AdamW, AdamWConfig};

const CHECKPOINTS: &str = "checkpoints";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// Where a run stands; with weights and moments, all that is needed to go on exactly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Updates made.
    pub step: u64,
    /// Updates planned, which the schedule depends on.
    pub total_steps: u64,
    /// Examples seen, which the order of the next ones depends on.
    pub examples_seen: u64,
    /// Lowest validation loss so far.
    pub best_validation: Option<f64>,
    /// The update it was measured after.
    pub best_step: Option<u64>,
    /// Fingerprint of settings and data that the rest of the run depends on.
    pub fingerprint: u64,
}

/// The folder of a run.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Makes the folder (or takes an existing one) and tries at once that it can be written to, rather than after an hour.
    pub fn create(root: &Path) -> Result<Self> {
        let io = |e| TrainError::io(root, e);
        fs::create_dir_all(root.join(CHECKPOINTS)).map_err(io)?;
        tempfile::NamedTempFile::new_in(root).map_err(io)?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Steps of the complete checkpoints, ascending.
    pub fn checkpoints(&self) -> Result<Vec<u64>> {
        let folder = self.root.join(CHECKPOINTS);
        let mut steps = Vec::new();
        for entry in fs::read_dir(&folder).map_err(|e| TrainError::io(&folder, e))? {
            let entry = entry.map_err(|e| TrainError::io(&folder, e))?;
            let name = entry.file_name();
            if let Some(step) = name.to_str().and_then(|name| name.strip_prefix("step-")).and_then(|n| n.parse().ok()) {
                steps.push(step);
            }
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The folder of a checkpoint.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.root.join(CHECKPOINTS).join(format!("step-{step:08}"))
    }

    /// Writes a checkpoint: `save` puts the weights into the folder it is given. The folder gets its name when everything in
    /// it is on the disk.
    pub fn save<B: Backend>(
        &self,
        state: &RunState,
        optimiser: &AdamW<B>,
        save: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let target = self.checkpoint(state.step);
        let parent = self.root.join(CHECKPOINTS);
        let temporary = tempfile::Builder::new()
            .prefix(".incomplete-")
            .tempdir_in(&parent)
            .map_err(|e| TrainError::io(&parent, e))?;
        save(temporary.path())?;
        let metadata = BTreeMap::from([("updates".to_string(), optimiser.updates().to_string())]);
        write_tensors(&temporary.path().join(OPTIMIZER), &optimiser.export(), &metadata, StoredDtype::F32)?;
        let json = serde_json::to_vec_pretty(state).map_err(|e| TrainError::io(&target, e.into()))?;
        write_atomically(&temporary.path().join(STATE), |out| out.write_all(&json))?;
        let io = |e| TrainError::io(&target, e);
        if target.exists() {
            // The same step again, after a resume: the same content, so either may stand.
            fs::remove_dir_all(&target).map_err(io)?;
        }
        fs::rename(temporary.keep(), &target).map_err(io)?;
        Ok(target)
    }

    /// Reads the state and the optimiser of a checkpoint.
    pub fn load<B: Backend>(&self, step: u64, config: AdamWConfig, device: &B::Device) -> Result<(RunState, AdamW<B>)> {
        let folder = self.checkpoint(step);
        let resume = |file: &Path, reason: String| TrainError::Resume { path: file.to_path_buf(), reason };
        let file = folder.join(STATE);
        let text = fs::read(&file).map_err(|e| TrainError::io(&file, e))?;
        let state: RunState = serde_json::from_slice(&text).map_err(|e| resume(&file, e.to_string()))?;
        let file = folder.join(OPTIMIZER);
        let (tensors, metadata) = read_tensors(&file)?;
        let updates = metadata
            .get("updates")
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| resume(&file, "its metadata does not say how many updates were made".into()))?;
        let optimiser = AdamW::import(config, updates, tensors.into_values().collect(), device)
            .ok_or_else(|| resume(&file, "its moments do not come in pairs".into()))?;
        Ok((state, optimiser))
    }

    /// Removes all but the newest `keep_last` checkpoints and the best.
    pub fn prune(&self, keep_last: usize, best: Option<u64>) -> Result<()> {
        let steps = self.checkpoints()?;
        let old = &steps[..steps.len().saturating_sub(keep_last)];
        for &step in old.iter().filter(|&&step| Some(step) != best) {
            let folder = self.checkpoint(step);
            fs::remove_dir_all(&folder).map_err(|e| TrainError::io(&folder, e))?;
        }
        Ok(())
    }
}
