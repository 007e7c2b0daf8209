//! The folder of a run.
//!
//! `config.toml` (the settings that were used), `metrics.jsonl`, `events.out.tfevents.*`, and
//! `checkpoints/step-NNNNNNNN/{adapter.safetensors, optimizer.safetensors, state.json, SHA256SUMS}`. A checkpoint appears under
//! its name when it is whole.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{StoredDtype, read_tensors, write_atomically, write_tensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checksums;
use crate::error::{Result, TrainError};
use crate::optimiser::{AdamW, AdamWConfig};

const CHECKPOINTS: &str = "checkpoints";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
/// Begins the names of checkpoints that are being written or removed.
const INCOMPLETE: &str = ".incomplete-";
const ASIDE: &str = "aside";
/// Ends the names of checkpoints whose weights give no number.
const FAILED: &str = "failed";
/// Ends the names of checkpoints whose files are not what was written.
const DAMAGED: &str = "damaged";

/// Where a run stands; with weights and moments, all that is needed to go on exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Highest accuracy of generated answers so far.
    pub best_generation: Option<f64>,
    /// The update after which the weights were the best, by whichever of the two decides.
    pub best_step: Option<u64>,
    /// Whether the validation after this update was called off and is still to be made.
    pub validation_pending: bool,
    /// The same of the validation by generating.
    pub generation_pending: bool,
    /// Validations since the last improvement, and the loss it brought.
    pub stale_validations: u64,
    /// Validation loss of the last improvement.
    pub improved_to: Option<f64>,
    /// The settings, as JSON.
    pub settings: Value,
    /// What recognises the training examples, in hexadecimal.
    pub data: String,
}

/// Locked for as long as a run writes to its folder; the file stays, empty.
const LOCK: &str = ".lock";

/// The folder of a run, reserved for this process until all copies are dropped.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
    /// Released by the system even when the process is killed.
    #[allow(dead_code, reason = "held, not read")]
    lock: Option<Arc<File>>,
}

impl RunDir {
    /// Makes the folder (or takes an existing one), reserves it, and tries at once that it can be written to, rather than
    /// after an hour.
    ///
    /// # Errors
    /// The folder cannot be written to, or another run is writing to it.
    pub fn create(root: &Path) -> Result<Self> {
        let io = |e| TrainError::io(root, e);
        if root.is_file() {
            let reason = "this is a file; a run needs a folder of its own".to_string();
            return Err(TrainError::File { path: root.to_path_buf(), reason });
        }
        fs::create_dir_all(root.join(CHECKPOINTS)).map_err(io)?;
        tempfile::NamedTempFile::new_in(root).map_err(io)?;
        let lock = File::create(root.join(LOCK)).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            // A file system without locks still trains; nobody else is kept out.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(io(error)),
            Err(TryLockError::WouldBlock) => {
                let reason = "another run is writing to this folder; wait for it, stop it, or give another folder";
                return Err(io(std::io::Error::new(std::io::ErrorKind::ResourceBusy, reason)));
            }
        }
        Ok(Self { root: root.to_path_buf(), lock: Some(Arc::new(lock)) })
    }

    /// The folder of a run that another rank has made and writes to; this one only reads.
    ///
    /// # Errors
    /// It is not there: the ranks do not see the same files.
    pub fn shared(root: &Path) -> Result<Self> {
        if !root.join(CHECKPOINTS).is_dir() {
            let reason =
                "this rank does not see the run's folder, which rank 0 has made: put it where all ranks can read";
            return Err(TrainError::File { path: root.to_path_buf(), reason: reason.into() });
        }
        Ok(Self { root: root.to_path_buf(), lock: None })
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

    /// Renames a checkpoint whose weights failed, so that a resumed run does not begin with them. Returns its new path.
    pub fn reject(&self, step: u64) -> Result<PathBuf> {
        self.rename(step, FAILED)
    }

    /// Renames a checkpoint whose files are damaged. Returns its new path.
    pub fn set_damaged_aside(&self, step: u64) -> Result<PathBuf> {
        self.rename(step, DAMAGED)
    }

    fn rename(&self, step: u64, extension: &str) -> Result<PathBuf> {
        let folder = self.checkpoint(step);
        let rejected = folder.with_extension(extension);
        let io = |e| TrainError::io(&folder, e);
        if rejected.exists() {
            fs::remove_dir_all(&rejected).map_err(io)?;
        }
        fs::rename(&folder, &rejected).map_err(io)?;
        Ok(rejected)
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
        let temporary =
            tempfile::Builder::new().prefix(INCOMPLETE).tempdir_in(&parent).map_err(|e| TrainError::io(&parent, e))?;
        save(temporary.path())?;
        let metadata = BTreeMap::from([("updates".to_string(), optimiser.updates().to_string())]);
        write_tensors(&temporary.path().join(OPTIMIZER), &optimiser.export(), &metadata, StoredDtype::F32)?;
        let json = serde_json::to_vec_pretty(state).map_err(|e| TrainError::io(&target, e.into()))?;
        write_atomically(&temporary.path().join(STATE), |out| out.write_all(&json))?;
        checksums::write(temporary.path())?;
        let io = |e| TrainError::io(&target, e);
        // An older one of the same step steps aside first, so that at no moment neither exists.
        let older = if target.exists() { Some(self.set_aside(&target)?) } else { None };
        if let Err(error) = fs::rename(temporary.path(), &target) {
            if let Some(older) = older {
                fs::rename(older.path().join(ASIDE), &target).map_err(io)?;
            }
            return Err(io(error));
        }
        // It has its name now: the guard must not look for it under the old one.
        let _ = temporary.keep();
        sync_folder(&parent)?;
        Ok(target)
    }

    /// What is wrong with a checkpoint's files, if anything: each must be what was written, by its checksum.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn damage(&self, step: u64) -> Result<Option<String>> {
        checksums::damage(&self.checkpoint(step))
    }

    /// Reads the state of a checkpoint.
    ///
    /// # Errors
    /// Its file cannot be read, or is of another step.
    pub fn state(&self, step: u64) -> Result<RunState> {
        let file = self.checkpoint(step).join(STATE);
        let resume = |reason: String| TrainError::Resume { path: file.clone(), reason };
        let text = fs::read(&file).map_err(|e| TrainError::io(&file, e))?;
        let state: RunState = serde_json::from_slice(&text).map_err(|e| resume(e.to_string()))?;
        if state.step != step {
            return Err(resume(format!("it is the state after {} updates, not after {step}", state.step)));
        }
        Ok(state)
    }

    /// Reads the state and the optimiser of a checkpoint.
    pub fn load<B: Backend>(&self, step: u64, config: AdamWConfig, device: &B::Device) -> Result<(RunState, AdamW<B>)> {
        let state = self.state(step)?;
        let resume = |file: &Path, reason: String| TrainError::Resume { path: file.to_path_buf(), reason };
        let file = self.checkpoint(step).join(OPTIMIZER);
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
            // Dropping the guard removes it; were it removed in place, a kill would leave half of it under its name.
            self.set_aside(&self.checkpoint(step))?;
        }
        Ok(())
    }

    /// Moves a checkpoint to where it counts as incomplete; it is removed when the guard is dropped.
    fn set_aside(&self, folder: &Path) -> Result<tempfile::TempDir> {
        let io = |e| TrainError::io(folder, e);
        let aside = tempfile::Builder::new().prefix(INCOMPLETE).tempdir_in(self.root.join(CHECKPOINTS)).map_err(io)?;
        fs::rename(folder, aside.path().join(ASIDE)).map_err(io)?;
        Ok(aside)
    }

    /// Removes what a killed process left half written. Call only while no other process writes into this folder.
    pub fn clear_incomplete(&self) -> Result<()> {
        let parent = self.root.join(CHECKPOINTS);
        for entry in fs::read_dir(&parent).map_err(|e| TrainError::io(&parent, e))? {
            let entry = entry.map_err(|e| TrainError::io(&parent, e))?;
            if entry.file_name().to_string_lossy().starts_with(INCOMPLETE) {
                fs::remove_dir_all(entry.path()).map_err(|e| TrainError::io(entry.path(), e))?;
            }
        }
        Ok(())
    }
}

/// Brings a folder's entries to the disk: without it a rename may be lost with the power, and what it replaced with it.
fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| TrainError::io(folder, e))?;
    Ok(())
}
