//! `l2d warmup`.

use clap::Args;

use super::decode::DecodeArgs;
use super::model::ModelArgs;

#[derive(Debug, Args)]
pub(crate) struct WarmupArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Sequences decoded together, each number a shape of its own.
    #[arg(long, value_delimiter = ',', value_name = "B,B", default_value = "1")]
    pub(crate) batch: Vec<usize>,

    /// Prompt tokens up to which kernels are made ready, from 16 on in powers of two.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt: usize,

    /// Evaluations per token [default: 1, and with an adapter the adapter's usual number].
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub(crate) steps: Option<Vec<usize>>,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,
}
