//! `l2d doctor`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Only say what there is; measure nothing.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Also as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}
