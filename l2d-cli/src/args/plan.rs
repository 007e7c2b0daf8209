//! `l2d plan`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// The data, as for `l2d train`.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) data: Vec<PathBuf>,

    /// Settings as for `l2d train`.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Any setting of the file, as KEY=VALUE; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,

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
