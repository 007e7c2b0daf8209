//! `l2d generate` and `l2d chat`.

use std::path::PathBuf;

use clap::Args;

use super::decode::{DecodeArgs, SearchArgs};
use super::model::ModelArgs;

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Evaluations per token; 1 = the plain LM [default: 15 with an adapter, else 1].
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,

    /// The most tokens to emit [default: 256, or what the context has room for].
    #[arg(long, value_name = "M")]
    pub(crate) max_tokens: Option<usize>,

    /// Feed the prompt as it is, without a chat template.
    #[arg(long)]
    pub(crate) raw: bool,

    /// A system message before the prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,

    /// End the answer before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Write the guesses on the way to each token to FILE.jsonl, and as a page to look at to FILE.html.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["beams", "samples"])]
    pub(crate) trace: Option<PathBuf>,

    /// Answers to draw, decoded together; the first is the one drawn without this flag.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096), conflicts_with = "beams")]
    pub(crate) samples: Option<u64>,

    /// Give each token's log-probability and those of the N likeliest, of the plain LM alone (--steps 1); with --json.
    #[arg(long, value_name = "N", requires = "json", conflicts_with = "beams")]
    pub(crate) logprobs: Option<usize>,

    /// One JSON object for each answer on stdout, once all are complete.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,

    #[command(flatten)]
    pub(crate) search: SearchArgs,

    /// The prompt; - reads stdin.
    pub(crate) prompt: String,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Evaluations per token; 1 = the plain LM [default: 15 with an adapter, else 1].
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,

    /// The most tokens in one answer [default: 512, or what the context has room for].
    #[arg(long, value_name = "M")]
    pub(crate) max_tokens: Option<usize>,

    /// A system message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,
}
