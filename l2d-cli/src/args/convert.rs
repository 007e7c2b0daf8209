//! `l2d convert`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What is made of what.
#[derive(Debug, Subcommand)]
pub(crate) enum ConvertCommand {
    /// A base with a PEFT LoRA adapter merged in, or as it is, to a Hugging Face folder.
    Merge(ConvertMergeArgs),
    /// A checkpoint of the authors' PyTorch code to an adapter.
    FromPytorch(FromPytorchArgs),
    /// An adapter to a checkpoint of the authors' PyTorch code.
    ToPytorch(ToPytorchArgs),
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

#[derive(Debug, Args)]
pub(crate) struct FromPytorchArgs {
    /// The base the path was trained beside: a Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// The state dict: a file of torch.save, safetensors, or a folder with one of the two.
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoint: PathBuf,

    /// The settings the model was built with, as a flat JSON object of the authors' names (noise_rescaling, ...).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Standard deviation of the noise; the authors' noise_rescaling.
    #[arg(long, value_name = "X")]
    pub(crate) sigma: Option<f64>,

    /// Corrections are scaled by this over their rank; the authors' flow_lora_alpha.
    #[arg(long, value_name = "X")]
    pub(crate) alpha: Option<f64>,

    /// Names of the guidance classes, comma-separated, in the order of the table [default: class0, class1, ...].
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    pub(crate) classes: Vec<String>,

    /// The adapter to write.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ToPytorchArgs {
    /// The base the adapter belongs to: a Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// The adapter.
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: PathBuf,

    /// The state dict to write, as safetensors; the settings for the authors' constructor lie beside it as .json.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// Also the base's weights, for a strict load of the whole model.
    #[arg(long)]
    pub(crate) whole: bool,

    /// Store in f16: half the size, rounded.
    #[arg(long)]
    pub(crate) f16: bool,
}
