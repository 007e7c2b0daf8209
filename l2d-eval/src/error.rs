//! The one error type of this crate. Every variant names the file, row, column or text at fault.

use std::path::{Path, PathBuf};

/// An error of something handed in by the caller (the decoder, the tokenizer).
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong between a data set and a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// No folder below the data folder holds the data set.
    #[error("no data set {name} with split `{split}` in {dir}; looked for {looked_for}")]
    DataSetNotFound {
        /// The data set, `org/name/config`.
        name: String,
        /// The split wanted.
        split: String,
        /// The folder given.
        dir: PathBuf,
        /// Every place tried, as one list.
        looked_for: String,
    },
    /// Some shards of a split are there and others are not.
    #[error("{dir}: split `{split}` is incomplete: {reason}")]
    Shards {
        /// The data set's folder.
        dir: PathBuf,
        /// The split.
        split: String,
        /// Which shard is missing or doubled.
        reason: String,
    },
    /// A parquet file is truncated, broken, or of a kind that is not read.
    #[error("{path}: not a readable parquet file: {reason}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        reason: String,
    },
    /// A line of a jsonl file is no JSON object.
    #[error("{path}: line {line}: {reason}")]
    Jsonl {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What broke.
        reason: String,
    },
    /// A row lacks a column the task reads.
    #[error("{origin}: no column `{column}` (there is {found})")]
    MissingColumn {
        /// File and row.
        origin: String,
        /// The column.
        column: String,
        /// The columns there are.
        found: String,
    },
    /// A column holds another type than the task reads.
    #[error("{origin}: column `{column}` holds {found}, expected {expected}")]
    ColumnType {
        /// File and row.
        origin: String,
        /// The column.
        column: String,
        /// The type there.
        found: &'static str,
        /// The type expected.
        expected: &'static str,
    },
    /// A column's value contradicts the rest of its row.
    #[error("{origin}: column `{column}`: {reason}")]
    ColumnValue {
        /// File and row.
        origin: String,
        /// The column.
        column: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// A split has fewer rows than there are shots.
    #[error("{task}: {shots} shots wanted, the shots' split has only {found} rows")]
    TooFewShots {
        /// The task.
        task: String,
        /// Shots wanted.
        shots: usize,
        /// Rows there.
        found: usize,
    },
    /// No question fits the context, or the limit on rows, with its shots.
    #[error(
        "{task}: no question is left: the shortest prompt with {shots} shots has {prompt} tokens, an answer up to {completion}, the context {context} (and prompt and reference together at most {max_tokens}); ask for fewer --shots or --max-tokens"
    )]
    ShotsTooLong {
        /// The task.
        task: String,
        /// Shots before each question.
        shots: usize,
        /// Tokens of the shortest prompt.
        prompt: usize,
        /// The most tokens of a completion.
        completion: usize,
        /// Tokens of the model's context.
        context: usize,
        /// The most tokens of prompt and reference solution.
        max_tokens: usize,
    },
    /// No row is left to evaluate.
    #[error("{task}: no row left to evaluate ({reason})")]
    NoRows {
        /// The task.
        task: String,
        /// Where the rows went.
        reason: String,
    },
    /// A task is not in the registry.
    #[error("no task `{name}` (there is {known}; or the path of a task's .toml file)")]
    UnknownTask {
        /// The name given.
        name: String,
        /// The names there are, those like it first.
        known: String,
    },
    /// A profile is none of those there are.
    #[error("no profile `{name}` (there is {known})")]
    UnknownProfile {
        /// The name given.
        name: String,
        /// The names there are, those like it first.
        known: String,
    },
    /// The file of a task does not say what a task needs.
    #[error("{path}: {reason}")]
    TaskFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A split has another number of rows than the published one.
    #[error(
        "{task}: split `{split}` has {found} rows here, the published one has {official}: scores on it are not comparable; go on with --any-row-count"
    )]
    RowCount {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// Rows there.
        found: usize,
        /// Rows published.
        official: usize,
    },
    /// A program that a model wrote could not be run.
    #[error("running a candidate program failed: {0}")]
    Code(#[source] BoxError),
    /// A task whose answers are programs was given nothing to run them with.
    #[error("{task}: its answers are programs, and there is nothing to run them in")]
    NoCodeRunner {
        /// The task.
        task: String,
    },
    /// A task without options was to be scored by log-likelihood.
    #[error("{task}: it has no options to score by log-likelihood (the multiple-choice tasks have)")]
    NoLikelihood {
        /// The task.
        task: String,
    },
    /// A journal holds samples of other rows, or of another task, than they are scored as.
    #[error("{path}: sample {sample} of row {row}: {reason}")]
    JournalMismatch {
        /// The journal.
        path: PathBuf,
        /// The row it names.
        row: usize,
        /// The sample it names.
        sample: usize,
        /// How it differs.
        reason: String,
    },
    /// A setting is out of its range.
    #[error("`{key}`: {reason}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Why it cannot be used.
        reason: String,
    },
    /// A line of the journal is broken, and not because writing was cut off.
    #[error("{path}: line {line} is no record of this journal ({reason}); move the file away to start anew")]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What broke.
        reason: String,
    },
    /// Another process writes to the journal.
    #[error("{path}: another evaluation is writing to this journal")]
    JournalInUse {
        /// The journal.
        path: PathBuf,
    },
    /// The decoder failed.
    #[error("generating failed: {0}")]
    Generator(#[source] BoxError),
    /// The decoder returned another number of completions than there were requests.
    #[error("the generator returned {found} completions for {expected} requests")]
    CompletionCount {
        /// Requests.
        expected: usize,
        /// Completions.
        found: usize,
    },
    /// The prompt's length could not be found.
    #[error("{origin}: rendering the prompt failed: {source}")]
    Prompt {
        /// File and row.
        origin: String,
        /// The tokenizer's or template's reason.
        source: BoxError,
    },
    /// Two runs that are not over the same questions were compared.
    #[error("the runs cannot be compared: {0}")]
    NotPaired(String),
    /// A result could not be written as CSV.
    #[error("result as CSV: {0}")]
    Csv(String),
    /// A chart could not be drawn.
    #[error("plot: {0}")]
    Plot(String),
    /// A result could not be written as JSON.
    #[error("result as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an I/O error with the path it happened at.
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }
}
