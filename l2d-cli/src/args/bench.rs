//! `l2d bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::decode::DecodeArgs;
use super::model::ModelArgs;

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Tokens per second of a model, by steps, batch and prompt length.
    Decode(Box<BenchDecodeArgs>),
    /// Seconds of a training step, forward and backward, beside what the machine's matrix products allow.
    Train(Box<BenchTrainArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct BenchTrainArgs {
    /// A Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// Settings as for `l2d train`: objective, diffusion path, recompute, head_chunk.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Any setting of the file, as KEY=VALUE; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Sequences of a micro-batch.
    #[arg(long, value_name = "B", default_value_t = 2)]
    pub(crate) batch: usize,

    /// Tokens of a sequence.
    #[arg(long, value_name = "T", default_value_t = 512)]
    pub(crate) tokens: usize,

    /// Part of each sequence's positions that is labelled, its end; several after commas.
    #[arg(long, value_name = "X,..", value_delimiter = ',', default_value = "1,0.5")]
    pub(crate) labelled: Vec<f64>,

    /// Steps of each case after a first one that warms up; the median is shown.
    #[arg(long, value_name = "R", default_value_t = 3)]
    pub(crate) repeats: usize,

    /// Differentiate automatically on the CPU as well, for comparison.
    #[arg(long)]
    pub(crate) autodiff: bool,

    /// Write the figures to this file as well.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchDecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Random weights in the shape that the folder's config.json gives (it needs a tokenizer, no weights), with a random diffusion path
    /// of the paper's settings: speed does not depend on what a model has learnt, but for how many guesses hold.
    #[arg(long, conflicts_with_all = ["adapter", "lora"])]
    pub(crate) random: bool,

    /// Evaluations per token, several after commas [default: 1, and 15 with an adapter].
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(crate) steps: Option<Vec<usize>>,

    /// Sequences decoded together, several after commas.
    #[arg(long, value_name = "B,..", value_delimiter = ',', default_value = "1")]
    pub(crate) batch: Vec<usize>,

    /// Tokens of the prompts, several after commas.
    #[arg(long, value_name = "P,..", value_delimiter = ',', default_value = "128")]
    pub(crate) prompt: Vec<usize>,

    /// New tokens of each sequence.
    #[arg(long, value_name = "M", default_value_t = 32)]
    pub(crate) tokens: usize,

    /// Runs of each case; the median is shown.
    #[arg(long, value_name = "R", default_value_t = 3)]
    pub(crate) repeats: usize,

    /// Write the figures to this file as well.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,
}
