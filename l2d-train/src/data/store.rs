//! Tokenised examples on the disk.
//!
//! A folder `<key>/` with `tokens.bin` (u32, little-endian, one example after the other), `index.bin` (24 bytes an example)
//! and `manifest` (a checksum, then JSON: counts, sources, checksums of the other two). It gets its name when everything in
//! it is on the disk. Examples are read with seeks, not through a memory map: what a map touches counts as this process's
//! memory, up to the size of the data set, and a file cut short under it kills the process.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dataset::{DatasetStats, Example};
use crate::error::{Result, TrainError};

const TOKENS: &str = "tokens.bin";
const INDEX: &str = "index.bin";
const MANIFEST: &str = "manifest";
/// Begins the names of folders that are being written.
const INCOMPLETE: &str = ".incomplete-";
/// Nobody writes one data set for longer.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const ENTRY_BYTES: usize = 24;
const NO_CLASS: u16 = u16::MAX;

/// Where one example lies, and what is known of it without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Tokens before it.
    start: u64,
    /// Its tokens.
    pub len: u32,
    /// Those of its prompt.
    pub prompt: u32,
    /// Which conversation it is of, from 0.
    pub conversation: u32,
    class: u16,
    /// Which source it is of, from 0.
    pub source: u16,
}

impl Entry {
    /// Index of the guidance class, if any.
    pub fn class(&self) -> Option<usize> {
        (self.class != NO_CLASS).then_some(self.class as usize)
    }

    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.prompt.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.conversation.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.class.to_le_bytes());
        bytes[22..].copy_from_slice(&self.source.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let four = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let two = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            start: u64::from(four(0)) | u64::from(four(4)) << 32,
            len: four(8),
            prompt: four(12),
            conversation: four(16),
            class: two(20),
            source: two(22),
        }
    }
}

/// What is known of the examples of one source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceReport {
    /// The file or folder, as it was named.
    pub name: String,
    /// Its files, in order.
    pub files: Vec<PathBuf>,
    /// What became of its rows.
    pub stats: DatasetStats,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    sources: Vec<SourceReport>,
    examples: u64,
    tokens: u64,
    tokens_sha256: String,
    index_sha256: String,
}

/// Tokenised examples in files; the index of them in memory (24 bytes an example).
#[derive(Debug)]
pub struct TokenStore {
    path: PathBuf,
    file: Mutex<File>,
    entries: Vec<Entry>,
    sources: Vec<SourceReport>,
    fingerprint: [u8; 32],
}

impl TokenStore {
    /// Opens the examples of that key, having read all of them once to compare their checksums. `None` where there are none.
    ///
    /// # Errors
    /// A file is missing, damaged, or cannot be read: what is wrong, in words.
    pub(super) fn open(cache: &Path, key: &str) -> std::result::Result<Option<Self>, String> {
        let folder = cache.join(key);
        if !folder.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(folder.join(MANIFEST)).map_err(|e| format!("{MANIFEST}: {e}"))?;
        let (sum, json) = text.split_once('\n').ok_or_else(|| format!("{MANIFEST} is cut off"))?;
        if hex(&Sha256::digest(json)) != sum {
            return Err(format!("{MANIFEST} does not have its checksum"));
        }
        let manifest: Manifest = serde_json::from_str(json).map_err(|e| format!("{MANIFEST}: {e}"))?;
        let index = fs::read(folder.join(INDEX)).map_err(|e| format!("{INDEX}: {e}"))?;
        if hex(&Sha256::digest(&index)) != manifest.index_sha256 {
            return Err(format!("{INDEX} does not have its checksum"));
        }
        let (records, rest) = index.as_chunks::<ENTRY_BYTES>();
        let entries: Vec<Entry> = records.iter().map(Entry::from_bytes).collect();
        if !rest.is_empty() || entries.len() as u64 != manifest.examples {
            return Err(format!("{INDEX} does not hold {} examples", manifest.examples));
        }
        let path = folder.join(TOKENS);
        let file = File::open(&path).map_err(|e| format!("{TOKENS}: {e}"))?;
        if hex(&digest(&file).map_err(|e| format!("{TOKENS}: {e}"))?) != manifest.tokens_sha256 {
            return Err(format!("{TOKENS} does not have its checksum"));
        }
        let mut fingerprint = Sha256::new();
        fingerprint.update(&manifest.tokens_sha256);
        fingerprint.update(&manifest.index_sha256);
        Ok(Some(Self {
            path,
            file: Mutex::new(file),
            entries,
            sources: manifest.sources,
            fingerprint: fingerprint.finalize().into(),
        }))
    }

    /// The same examples, whose sources go by other names and files.
    pub(super) fn named(mut self, names: impl Iterator<Item = (String, Vec<PathBuf>)>) -> Self {
        for (report, (name, files)) in self.sources.iter_mut().zip(names) {
            (report.name, report.files) = (name, files);
        }
        self
    }

    /// All examples, in the order of the rows, source by source.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What each source gave.
    pub fn sources(&self) -> &[SourceReport] {
        &self.sources
    }

    /// The counts of all sources together.
    pub fn stats(&self) -> DatasetStats {
        let mut stats = DatasetStats::default();
        for source in &self.sources {
            stats.merge(&source.stats);
        }
        stats
    }

    /// What recognises these examples.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Reads the example of that number.
    ///
    /// # Errors
    /// The file cannot be read.
    ///
    /// # Panics
    /// When there is no example of that number.
    pub fn get(&self, number: usize) -> Result<Example> {
        let entry = self.entries[number];
        let mut bytes = vec![0; entry.len as usize * 4];
        {
            let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            file.seek(SeekFrom::Start(entry.start * 4))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|e| TrainError::io(&self.path, e))?;
        }
        let (words, _) = bytes.as_chunks::<4>();
        Ok(Example {
            tokens: words.iter().map(|&word| u32::from_le_bytes(word)).collect(),
            prompt: entry.prompt as usize,
            class: entry.class(),
            conversation: entry.conversation as usize,
        })
    }
}

fn digest(mut file: &File) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// The checksum of a file's content.
///
/// # Errors
/// It cannot be read.
pub(super) fn file_digest(path: &Path) -> Result<[u8; 32]> {
    File::open(path).and_then(|file| digest(&file)).map_err(|e| TrainError::io(path, e))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a [`TokenStore`] under a temporary name.
pub(super) struct StoreWriter {
    folder: tempfile::TempDir,
    tokens: BufWriter<File>,
    index: BufWriter<File>,
    tokens_hash: Sha256,
    index_hash: Sha256,
    examples: u64,
    written: u64,
}

impl StoreWriter {
    /// Begins one in the folder of the cache, which is made where it does not exist.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub(super) fn create(cache: &Path) -> Result<Self> {
        let at = |e| TrainError::io(cache, e);
        fs::create_dir_all(cache).map_err(at)?;
        remove_abandoned(cache).map_err(at)?;
        let folder = tempfile::Builder::new().prefix(INCOMPLETE).tempdir_in(cache).map_err(at)?;
        let file = |name: &str| File::create(folder.path().join(name)).map_err(at);
        let (tokens, index) = (BufWriter::with_capacity(1 << 20, file(TOKENS)?), BufWriter::new(file(INDEX)?));
        let (tokens_hash, index_hash) = (Sha256::new(), Sha256::new());
        Ok(Self { folder, tokens, index, tokens_hash, index_hash, examples: 0, written: 0 })
    }

    /// Adds an example of the source with that number.
    ///
    /// # Errors
    /// The disk is full, or there are more conversations, sources or classes than the format can number.
    pub(super) fn push(&mut self, example: &Example, source: usize) -> Result<()> {
        let too_many = |what: &str| TrainError::NoData(format!("more {what} than one data set may have"));
        let class = match example.class {
            Some(class) => {
                u16::try_from(class).ok().filter(|&class| class != NO_CLASS).ok_or_else(|| too_many("classes"))?
            }
            None => NO_CLASS,
        };
        let entry = Entry {
            start: self.written,
            len: u32::try_from(example.tokens.len()).map_err(|_| too_many("tokens"))?,
            prompt: u32::try_from(example.prompt).map_err(|_| too_many("tokens"))?,
            conversation: u32::try_from(example.conversation).map_err(|_| too_many("conversations"))?,
            class,
            source: u16::try_from(source).map_err(|_| too_many("sources"))?,
        };
        let bytes: Vec<u8> = example.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let record = entry.to_bytes();
        self.tokens_hash.update(&bytes);
        self.index_hash.update(record);
        self.written += example.tokens.len() as u64;
        self.examples += 1;
        let at = |e| TrainError::io(self.folder.path(), e);
        self.tokens.write_all(&bytes).map_err(at)?;
        self.index.write_all(&record).map_err(at)
    }

    /// Brings everything to the disk and gives the folder its name. Where another process was faster, its files stay.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn finish(self, cache: &Path, key: &str, sources: Vec<SourceReport>) -> Result<()> {
        let at = |e| TrainError::io(cache, e);
        for file in [self.tokens, self.index] {
            file.into_inner().map_err(|e| at(e.into_error()))?.sync_all().map_err(at)?;
        }
        let manifest = Manifest {
            sources,
            examples: self.examples,
            tokens: self.written,
            tokens_sha256: hex(&self.tokens_hash.finalize()),
            index_sha256: hex(&self.index_hash.finalize()),
        };
        let json = serde_json::to_string_pretty(&manifest).map_err(|e| at(e.into()))?;
        let text = format!("{}\n{json}", hex(&Sha256::digest(&json)));
        let manifest = self.folder.path().join(MANIFEST);
        l2d_core::checkpoint::write_atomically(&manifest, |out| out.write_all(text.as_bytes()))?;
        let target = cache.join(key);
        match fs::rename(self.folder.path(), &target) {
            Ok(()) => {
                // It has its name now: the guard must not look for it under the old one.
                let _ = self.folder.keep();
            }
            Err(_) if target.is_dir() => {}
            Err(error) => return Err(at(error)),
        }
        #[cfg(unix)]
        File::open(cache).and_then(|folder| folder.sync_all()).map_err(at)?;
        Ok(())
    }
}

/// Removes what killed processes left half written. What is younger than a day may be another process's work, and what is
/// gone meanwhile was renamed or removed by one.
fn remove_abandoned(cache: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(INCOMPLETE) {
            continue;
        }
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > ABANDONED_AFTER))
            && let Err(error) = fs::remove_dir_all(entry.path())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Removes examples that turned out to be damaged.
///
/// # Errors
/// They cannot be removed.
pub(super) fn remove(cache: &Path, key: &str) -> Result<()> {
    let folder = cache.join(key);
    fs::remove_dir_all(&folder).map_err(|e| TrainError::io(&folder, e))
}
