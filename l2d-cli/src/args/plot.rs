//! `l2d plot`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// What is drawn.
#[derive(Debug, Subcommand)]
pub(crate) enum PlotCommand {
    /// The loss curves of one or several runs in one figure.
    Losses(PlotLossesArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PlotLossesArgs {
    /// Folders of runs; each needs its metrics.jsonl.
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,

    /// Names for the legend, in the order of the runs [default: the folders' names].
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    pub(crate) labels: Vec<String>,

    /// Which losses; several after commas.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "validation")]
    pub(crate) curves: Vec<CurveKind>,

    /// The title.
    #[arg(long, default_value = "Loss, nats per labelled token")]
    pub(crate) title: String,

    /// Where to: FILE.svg and FILE.png are both written, whichever of the two is named.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CurveKind {
    /// Of each batch, before its update.
    Training,
    /// Of the held-back examples.
    Validation,
    /// Of the held-back examples, at t > 0.9 alone.
    Late,
}
