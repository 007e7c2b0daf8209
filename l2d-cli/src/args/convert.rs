//! `l2d convert`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What is made of what.
#[derive(Debug, Subcommand)]
pub(crate) enum ConvertCommand {
    /// A base with a PEFT LoRA adapter merged in, or as it is, to a Hugging Face folder.
    Merge(ConvertMergeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConvertMergeArgs {
    /// A Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// The PEFT folder with the adapter; without one the base is only written in the other format.
    #[arg(long, value_name = "DIR")]
    pub(crate) lora: Option<PathBuf>,

    /// The folder to write; it must not hold a model yet.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Store the weights in f16: half the size, rounded.
    #[arg(long)]
    pub(crate) f16: bool,
}
