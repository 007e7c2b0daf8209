//! `l2d plan`.

use std::path::PathBuf;

use clap::Args;

use super::data::SourceArgs;

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Memory the run may have, in GB [default: what the machine has free now]. Needed for a GPU.
    #[arg(long, value_name = "GB")]
    pub(crate) memory: Option<f64>,

    /// Compute only; run no step.
    #[arg(long)]
    pub(crate) no_measure: bool,

    /// Print JSON instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}
