//! `l2d quickstart`.

use std::path::PathBuf;

use clap::Args;

use crate::arithmetic::TEST_PROBLEMS;

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Where the table, the plot and the live adapter go.
    #[arg(long, value_name = "DIR", default_value = "quickstart")]
    pub(crate) out: PathBuf,

    /// Seconds of live finetuning.
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub(crate) seconds: u64,

    /// Held-out problems per row of the table.
    #[arg(long, default_value_t = 400, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=TEST_PROBLEMS))]
    pub(crate) problems: u64,

    /// Train to the end instead of using the shipped adapter.
    #[arg(long)]
    pub(crate) long: bool,

    /// Add low-rank finetuning of the weights on the same data and for the same time.
    #[arg(long)]
    pub(crate) baseline: bool,

    /// Only write the task's data (corpus.jsonl, train.jsonl, test.jsonl) into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) export_data: Option<PathBuf>,

    /// Seed.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}
