//! `l2d data`, and the flags about data that `l2d train` shares with it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Count rows, tokens and what is dropped; draw the lengths; print some examples with their labelled part marked.
    Inspect(DataInspectArgs),
}

/// What is read, and as what.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Training data: .jsonl, .jsonl.gz and .parquet files, or folders of them. docs/training.md lists the layouts of rows.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(crate) data: Vec<PathBuf>,

    /// Settings as TOML (docs/training.md lists them); flags override it. Of several files, later ones win.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) config: Vec<PathBuf>,

    /// Any other setting: key=value as in the TOML file, e.g. --set diffusion.dim=64.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Where tokenised data is kept [default: the platform's folder for caches, or $L2D_CACHE].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_cache: Option<PathBuf>,

    /// Drop examples longer than this.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct DataInspectArgs {
    /// The model whose tokenizer and chat template are used: a Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Print so many examples, spread over the data.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) examples: usize,

    /// Print one JSON object instead.
    #[arg(long)]
    pub(crate) json: bool,
}
