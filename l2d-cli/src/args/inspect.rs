//! `l2d inspect`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model folder, a .gguf file, or an adapter.
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,

    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
}
