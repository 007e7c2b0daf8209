//! `l2d train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::data::SourceArgs;

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// A Hugging Face folder or a .gguf file. With --from-scratch: a folder with config.json and a tokenizer, no weights.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// A PEFT folder with a low-rank adapter, merged into the model's weights first: L2D on top of LoRA finetuning.
    #[arg(long, value_name = "DIR", conflicts_with = "from_scratch")]
    pub(crate) lora: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// The run's folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Go on from the newest checkpoint in --out.
    #[arg(long)]
    pub(crate) resume: bool,

    /// What to train.
    #[arg(long, value_enum)]
    pub(crate) objective: Option<ObjectiveArg>,

    /// Start from random weights (objective full).
    #[arg(long)]
    pub(crate) from_scratch: bool,

    /// Store the finished adapter or LM in f16: half the size, rounded.
    #[arg(long)]
    pub(crate) f16: bool,

    /// Updates.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,

    /// Passes over the data.
    #[arg(long, allow_negative_numbers = true, value_name = "X", conflicts_with = "steps")]
    pub(crate) epochs: Option<f64>,

    /// Sequences per update.
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,

    /// Sequences in memory at a time.
    #[arg(long, value_name = "N")]
    pub(crate) micro_batch_size: Option<usize>,

    /// Peak learning rate.
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub(crate) learning_rate: Option<f64>,

    /// How many ranks a launcher (mpirun, srun) must have started: a guard against one that starts single processes.
    #[arg(long, value_name = "N")]
    pub(crate) ranks: Option<usize>,

    /// Seed of initialisation, order and draws.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectiveArg {
    /// The diffusion path beside the frozen LM.
    L2d,
    /// All weights of the LM.
    Full,
    /// Low-rank corrections of the LM.
    Lora,
}
