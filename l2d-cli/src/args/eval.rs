//! `l2d eval`.

use std::path::PathBuf;

use clap::Args;

use super::decode::{DecodeArgs, SearchArgs};
use super::model::ModelArgs;

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Benchmarks, comma-separated.
    #[arg(long, value_delimiter = ',', required = true, value_name = "TASKS")]
    pub(crate) tasks: Vec<String>,

    /// Folder of data sets in the Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,

    /// Only the first N rows.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,

    /// Evaluations per token to compare, comma-separated [default: 1,15 with an adapter, else 1].
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub(crate) steps: Option<Vec<usize>>,

    /// Folder for samples, results and plot. The same command goes on where it was stopped.
    #[arg(long, value_name = "DIR", default_value = "eval-results")]
    pub(crate) out: PathBuf,

    /// Sequences decoded together.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) batch_size: usize,

    /// The most tokens of one answer [default: the task's own].
    #[arg(long, value_name = "M")]
    pub(crate) max_tokens: Option<usize>,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,

    #[command(flatten)]
    pub(crate) search: SearchArgs,
}
