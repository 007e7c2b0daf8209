//! The per-sample log: one line a finished completion, appended as it comes, so that an interrupted evaluation goes on
//! where it stopped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::generate::Completion;
use crate::task::{Scores, Turn};

/// One finished sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What the completion depends on, as a hash; see [`sample_key`].
    pub key: String,
    /// The task.
    pub task: String,
    /// Its version, which records of before do not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The row of the split, from 0.
    pub row: usize,
    /// Which sample of the row, from 0.
    pub sample: usize,
    /// The run's seed.
    pub seed: u64,
    /// The settings it was generated with, [`crate::RunSettings::generation`].
    pub settings: Value,
    /// What was asked.
    pub question: String,
    /// The reference solution.
    pub reference: String,
    /// What was answered.
    pub completion: Completion,
    /// How it was judged when it was written; empty where it was not. Judged anew when it is read, unless that runs
    /// programs.
    pub scores: Scores,
    /// What ran its programs for those scores, [`crate::Task::judge`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
    /// Log-likelihoods of the options, in nats, where they were what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub likelihoods: Option<Vec<f64>>,
    /// Wall-clock seconds of its batch, divided by the batch's samples: sums of it are wall-clock.
    pub seconds: f64,
}

/// The hash a completion is found by: task, version, prompt, limits, settings, seed, row and sample. Anything else equal,
/// the completion is the same.
pub fn sample_key(
    task: &str,
    version: u32,
    turns: &[Turn],
    max_new_tokens: usize,
    stop_strings: &[String],
    settings: &Value,
    seed: u64,
    row: usize,
    sample: usize,
) -> String {
    let mut settings = settings.clone();
    // A setting's place in its file is no part of what it means.
    settings.sort_all_objects();
    let content = json!({
        "task": task,
        "version": version,
        "turns": turns,
        "max_new_tokens": max_new_tokens,
        "stop_strings": stop_strings,
        "settings": settings,
        "seed": seed,
        "row": row,
        "sample": sample,
    });
    hash(content.to_string().as_bytes())
}

/// The first 128 bits of SHA-256, in hexadecimal.
pub(crate) fn hash(content: &[u8]) -> String {
    Sha256::digest(content)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An open journal: what is finished, and where more goes. One file may hold several settings, for keys tell them apart.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    kept: Kept,
    elsewhere: HashMap<String, Record>,
}

impl Journal {
    /// Opens or makes a journal. A last line that was cut off while it was written is dropped.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::JournalInUse`] where another process holds it; [`Error::Journal`] with the line's number
    /// where a whole line is broken.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let at = |source| Error::io(&path, source);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        }
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::JournalInUse { path }),
            // A file system without locks still journals, for one process at a time.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(at(error)),
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(at)?;
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < content.len() {
            tracing::warn!(journal = %path.display(), "its last line was cut off and is dropped");
            file.set_len(whole as u64).map_err(at)?;
        }
        file.seek(SeekFrom::Start(whole as u64)).map_err(at)?;
        let mut kept = Kept::default();
        kept.extend(parse(&path, &content[..whole])?);
        Ok(Self { path, file, kept, elsewhere: HashMap::new() })
    }

    /// Also finds samples that are kept elsewhere: what is there need not be asked again, and is not written here.
    pub fn also(&mut self, elsewhere: Vec<Record>) {
        for record in elsewhere {
            self.elsewhere.entry(record.key.clone()).or_insert(record);
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A finished sample by its key.
    pub fn get(&self, key: &str) -> Option<&Record> {
        let own = self.kept.places.get(key).map(|place| &self.kept.records[*place]);
        own.or_else(|| self.elsewhere.get(key))
    }

    /// Finished samples.
    pub fn len(&self) -> usize {
        self.kept.records.len()
    }

    /// Whether nothing is finished.
    pub fn is_empty(&self) -> bool {
        self.kept.records.is_empty()
    }

    /// Appends a batch and syncs it: once this returns, its samples survive a crash.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, records: &[Record]) -> Result<()> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
        }
        let at = |source| Error::io(&self.path, source);
        self.file.write_all(&lines).map_err(at)?;
        self.file.sync_data().map_err(at)?;
        self.kept.extend(records.iter().cloned());
        Ok(())
    }

    /// All finished samples, in the order they were written.
    pub fn records(&self) -> &[Record] {
        &self.kept.records
    }
}

/// The samples of a journal that nobody writes to, of several with one key the last; a last line that was cut off is left out.
///
/// # Errors
/// [`Error::Io`], or [`Error::Journal`] with the line's number where a whole line is broken.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let content = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut kept = Kept::default();
    kept.extend(parse(path, &content[..whole])?);
    Ok(kept.records)
}

/// Samples in the order they were first written; of several with one key the last counts.
#[derive(Debug, Default)]
struct Kept {
    records: Vec<Record>,
    places: HashMap<String, usize>,
}

impl Kept {
    fn extend(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            match self.places.get(&record.key) {
                Some(place) => self.records[*place] = record,
                None => {
                    self.places.insert(record.key.clone(), self.records.len());
                    self.records.push(record);
                }
            }
        }
    }
}

fn parse(path: &Path, content: &[u8]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let record: Record = serde_json::from_slice(line).map_err(|error| Error::Journal {
            path: path.to_path_buf(),
            line: index + 1,
            reason: error.to_string(),
        })?;
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use crate::generate::FinishReason;

    use super::*;

    fn record(key: &str) -> Record {
        Record {
            key: key.to_owned(),
            task: "gsm8k".to_owned(),
            version: Some(1),
            row: 3,
            sample: 0,
            seed: 1,
            settings: json!({"steps": 15}),
            question: "1+1?\nnow".to_owned(),
            reference: "#### 2".to_owned(),
            completion: Completion {
                text: "#### 2".to_owned(),
                tokens: 4,
                prompt_tokens: 9,
                evaluations: 60,
                finish: FinishReason::EndOfTurn,
                along: Vec::new(),
            },
            scores: Scores::new(),
            judge: None,
            likelihoods: None,
            seconds: 0.25,
        }
    }

    #[test]
    fn what_was_appended_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out/samples.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        assert!(journal.is_empty());
        journal.append(&[record("a"), record("b")]).unwrap();
        drop(journal);
        let mut journal = Journal::open(&path).unwrap();
        journal.append(&[record("c")]).unwrap();
        assert_eq!(journal.len(), 3);
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        for key in ["a", "b", "c"] {
            assert_eq!(journal.get(key), Some(&record(key)));
        }
    }

    #[test]
    fn a_cut_off_last_line_is_dropped_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        Journal::open(&path).unwrap().append(&[record("a"), record("b")]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in first..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            assert_eq!(journal.len(), 1);
            journal.append(&[record("b")]).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        Journal::open(&path).unwrap().append(&[record("a")]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"key\": 1}\n");
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Journal::open(&path), Err(Error::Journal { line: 2, .. })));
    }

    #[test]
    fn a_journal_has_one_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let _open = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(Error::JournalInUse { .. })));
    }

    #[test]
    fn the_key_changes_with_everything_a_completion_depends_on_and_nothing_else() {
        let key = |version, text: &str, settings: &str, row, sample| {
            let settings = serde_json::from_str(settings).unwrap();
            sample_key("gsm8k", version, &[Turn::user(text)], 256, &[], &settings, 1, row, sample)
        };
        let base = key(1, "1+1?", r#"{"steps": 15, "temperature": 1.0}"#, 0, 0);
        assert_eq!(base, key(1, "1+1?", r#"{"temperature": 1.0, "steps": 15}"#, 0, 0));
        // The parts that the closure above keeps.
        let kept = |task: &str, limit, stop: &[String], seed| {
            let settings = serde_json::from_str(r#"{"steps": 15, "temperature": 1.0}"#).unwrap();
            sample_key(task, 1, &[Turn::user("1+1?")], limit, stop, &settings, seed, 0, 0)
        };
        assert_eq!(base, kept("gsm8k", 256, &[], 1));
        for other in [
            kept("math", 256, &[], 1),
            kept("gsm8k", 255, &[], 1),
            kept("gsm8k", 256, &["x".to_owned()], 1),
            kept("gsm8k", 256, &[], 2),
        ] {
            assert_ne!(base, other);
        }
        assert_eq!(base.len(), 32);
        for other in [
            key(2, "1+1?", r#"{"steps": 15, "temperature": 1.0}"#, 0, 0),
            key(1, "1+2?", r#"{"steps": 15, "temperature": 1.0}"#, 0, 0),
            key(1, "1+1?", r#"{"steps": 7, "temperature": 1.0}"#, 0, 0),
            key(1, "1+1?", r#"{"steps": 15, "temperature": 1.0}"#, 1, 0),
            key(1, "1+1?", r#"{"steps": 15, "temperature": 1.0}"#, 0, 1),
        ] {
            assert_ne!(base, other);
        }
    }
}
