//! From sources to tokenised examples on the disk: taken from the cache where they are there, made otherwise.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::conversation::Conversation;
use super::dataset::{DatasetStats, Example, Rendered, Template, render};
use super::drops::{DropReason, Fault};
use super::files::files_of;
use super::pipeline;
use super::rows::Chunk;
use super::schema::{Columns, class, turns};
use super::sources::{BadRows, SourceConfig, check_sources};
use super::store::{SourceReport, StoreWriter, TokenStore, file_digest, hex, remove};
use crate::error::{Result, TrainError};

/// Raised when the same rows would give other tokens than before, or other files.
const FORMAT: &str = "l2d tokens 1";

/// What is read, and how.
#[derive(Debug, Clone)]
pub struct DataSettings<'a> {
    /// In order.
    pub sources: &'a [SourceConfig],
    /// Columns of sources that do not name their own.
    pub columns: &'a Columns,
    /// Guidance classes; where there are none, the rows' classes are not looked at.
    pub classes: &'a [String],
    /// Longer examples are dropped.
    pub max_tokens: usize,
    /// What becomes of rows that cannot be used.
    pub bad_rows: BadRows,
    /// The folder of all tokenised data.
    pub cache: &'a Path,
    /// Threads that parse, render and tokenise.
    pub threads: usize,
}

/// Where the examples came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheUse {
    /// They were tokenised now.
    Made,
    /// They were there already.
    Found,
    /// They were there, but damaged, and were made again.
    Remade {
        /// What was wrong with them.
        damage: String,
    },
}

/// Watches the reading; the binary shows it.
pub trait DataProgress {
    /// After each piece of some hundred rows.
    fn rows(&mut self, _source: &str, _so_far: &DatasetStats) {}
}

/// Watches nothing.
impl DataProgress for () {}

/// Opens the tokenised examples of the sources, or makes them: rows are read, rendered and tokenised in parallel, in
/// bounded memory. They are found again under a key of the files' contents, the tokenizer, the template and all settings
/// that decide what becomes of a row.
///
/// # Errors
/// A source that names nothing, a file or row that cannot be used, nothing left to learn from, a full disk; or
/// [`TrainError::Interrupted`] after `cancel` was raised.
pub fn prepare(
    settings: &DataSettings<'_>,
    template: &dyn Template,
    cancel: &AtomicBool,
    progress: &mut dyn DataProgress,
) -> Result<(TokenStore, CacheUse)> {
    check_sources(settings.sources, settings.classes, settings.columns)?;
    if settings.sources.is_empty() {
        return Err(TrainError::NoData("no source was named".into()));
    }
    let files = settings.sources.iter().map(files_of).collect::<Result<Vec<_>>>()?;
    let key = key(settings, &files, &template.fingerprint())?;
    let mut outcome = CacheUse::Made;
    match TokenStore::open(settings.cache, &key) {
        Ok(Some(store)) => {
            // The same rows may lie elsewhere now, and weights are no part of the key.
            let store = store.named(settings.sources.iter().map(name_of).zip(files.clone()));
            weighted_give(settings, store.sources())?;
            return Ok((store, CacheUse::Found));
        }
        Ok(None) => {}
        Err(damage) => {
            tracing::warn!("tokenised data in {} is damaged ({damage}) and is made again", settings.cache.display());
            remove(settings.cache, &key)?;
            outcome = CacheUse::Remade { damage };
        }
    }
    let mut writer = StoreWriter::create(settings.cache)?;
    let mut reports = Vec::new();
    let mut rows = 0;
    for (number, (source, files)) in settings.sources.iter().zip(files).enumerate() {
        let reader = SourceReader { settings, source, template };
        let report = reader.run(number, files, &mut rows, &mut writer, cancel, progress)?;
        reports.push(report);
    }
    let mut stats = DatasetStats::default();
    reports.iter().for_each(|report| stats.merge(&report.stats));
    weighted_give(settings, &reports)?;
    stats.some_left(settings.max_tokens)?;
    writer.finish(settings.cache, &key, reports)?;
    match TokenStore::open(settings.cache, &key) {
        Ok(Some(store)) => Ok((store, outcome)),
        Ok(None) => Err(unreadable(settings.cache, "it is not there")),
        Err(damage) => Err(unreadable(settings.cache, &damage)),
    }
}

/// A source as it was named.
fn name_of(source: &SourceConfig) -> String {
    match (&source.path, &source.subset) {
        (Some(path), Some(subset)) => format!("{} ({subset})", path.display()),
        (Some(path), None) => path.display().to_string(),
        (None, _) => String::new(),
    }
}

/// A source with a weight must give an example.
fn weighted_give(settings: &DataSettings<'_>, reports: &[SourceReport]) -> Result<()> {
    let empty = settings
        .sources
        .iter()
        .zip(reports)
        .find(|(source, report)| source.weight.is_some() && report.stats.examples == 0);
    match empty {
        None => Ok(()),
        Some((_, report)) => Err(TrainError::NoData(format!(
            "source {} has a weight and gives no example; {} rows, dropped: {}",
            report.name,
            report.stats.rows,
            report.stats.dropped_in_words()
        ))),
    }
}

fn unreadable(cache: &Path, damage: &str) -> TrainError {
    let reason = format!("what was written here cannot be read back: {damage}; is the disk failing?");
    TrainError::File { path: cache.to_path_buf(), reason }
}

/// Files count by their content, not their names: a copy elsewhere is the same data, a file written over is other data.
fn key(settings: &DataSettings<'_>, files: &[Vec<PathBuf>], template: &[u8; 32]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(FORMAT);
    hash.update(template);
    let mut setting = |value: &dyn std::fmt::Debug| hash.update(format!("{value:?}\n"));
    setting(&(settings.classes, settings.max_tokens, settings.bad_rows));
    for (source, files) in settings.sources.iter().zip(files) {
        let columns = source.columns.as_ref().unwrap_or(settings.columns);
        setting(&(columns, source.schema, &source.class, &source.exclude, source.max_rows, files.len()));
        for file in files {
            let name = file.extension().map(|extension| extension.to_ascii_lowercase());
            setting(&(name, hex(&file_digest(file)?)));
        }
    }
    Ok(hex(&hash.finalize()[..16]))
}

/// What became of one row.
enum RowOutcome {
    Kept(Rendered),
    Dropped(DropReason),
}

struct SourceReader<'a> {
    settings: &'a DataSettings<'a>,
    source: &'a SourceConfig,
    template: &'a dyn Template,
}

impl SourceReader<'_> {
    /// Reads one source. `rows` counts the rows of all sources, and numbers conversations.
    fn run(
        &self,
        number: usize,
        files: Vec<PathBuf>,
        rows: &mut usize,
        writer: &mut StoreWriter,
        cancel: &AtomicBool,
        progress: &mut dyn DataProgress,
    ) -> Result<SourceReport> {
        let name = name_of(self.source);
        let mut stats = DatasetStats::default();
        let mut used = 0;
        let take = |outcomes: Vec<RowOutcome>| {
            if cancel.load(Ordering::Relaxed) {
                return Err(TrainError::Interrupted);
            }
            for outcome in outcomes {
                stats.rows += 1;
                match outcome {
                    RowOutcome::Dropped(reason) => stats.drop(reason, 1),
                    RowOutcome::Kept(Rendered { examples, too_long }) => {
                        stats.drop(DropReason::TooLong, too_long);
                        used += u64::from(!examples.is_empty());
                        for example in examples {
                            stats.keep(example.tokens.len(), example.num_labels());
                            writer.push(&Example { conversation: *rows, ..example }, number)?;
                        }
                    }
                }
                *rows += 1;
                if self.source.max_rows == Some(used) {
                    return Ok(ControlFlow::Break(()));
                }
            }
            progress.rows(&name, &stats);
            Ok(ControlFlow::Continue(()))
        };
        pipeline::run(&files, self.settings.threads, |path, chunk| self.work(path, chunk), take)?;
        Ok(SourceReport { name, files, stats })
    }

    fn work(&self, path: &Arc<Path>, chunk: Chunk) -> Result<Vec<RowOutcome>> {
        let mut outcomes = Vec::new();
        for (number, row) in chunk.rows() {
            let at_row = |reason: String| TrainError::Row { path: path.to_path_buf(), row: number, reason };
            // Broken JSON is a broken file, whatever may be dropped.
            let row = row.map_err(at_row)?;
            outcomes.push(match self.row(&row) {
                Ok(rendered) => RowOutcome::Kept(rendered),
                Err(Fault { reason, .. }) if reason.is_expected() || self.settings.bad_rows == BadRows::Drop => {
                    RowOutcome::Dropped(reason)
                }
                Err(Fault { text, .. }) => return Err(at_row(text)),
            });
        }
        Ok(outcomes)
    }

    fn row(&self, row: &Map<String, Value>) -> std::result::Result<Rendered, Fault> {
        for (column, values) in &self.source.exclude {
            let excluded = match row.get(column) {
                None => {
                    let reason = format!("no column `{column}`, by which rows are to be excluded");
                    return Err(Fault::new(DropReason::WrongType, reason));
                }
                Some(Value::String(text)) => values.contains(text),
                Some(Value::Null) => false,
                Some(other) => values.contains(&other.to_string()),
            };
            if excluded {
                return Err(Fault::new(DropReason::Excluded, ""));
            }
        }
        let columns = self.source.columns.as_ref().unwrap_or(self.settings.columns);
        let (turns, context) = turns(row, self.source.schema, columns)?;
        let class = if self.settings.classes.is_empty() {
            None
        } else if self.source.class.is_some() {
            self.source.class.clone()
        } else {
            class(row, columns)?
        };
        let conversation = Conversation { turns, context, class, origin: None };
        render(&conversation, self.template, self.settings.classes, self.settings.max_tokens)
    }
}
