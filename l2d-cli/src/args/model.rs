//! Which model, and in which number formats.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The model.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// A PEFT folder with a low-rank adapter, merged into the model's weights first.
    #[arg(long, value_name = "DIR")]
    pub(crate) lora: Option<PathBuf>,

    /// The trained diffusion path; without it the model is the plain LM.
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: Option<PathBuf>,

    /// Number format of the base's weights in memory [default: stored on the CPU, f32 on a GPU, which also has f16 and bf16].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) weights: Option<WeightsKind>,

    /// Number format of cached keys and values, on the CPU: f16 reads half the bytes of a long context, and rounds
    /// [default: f32].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) kv_cache: Option<CacheKind>,
}

/// Number formats of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheKind {
    /// 32 bits a number, nothing rounded.
    F32,
    /// 16 bits a number, half precision.
    F16,
}

/// Number formats of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsKind {
    /// As the file stores them, nothing rounded: 16-bit floats and GGUF's blocks (Q4_0 to Q8_0, Q4_K to Q6_K) as they are.
    Stored,
    /// 32 bits a weight.
    F32,
    /// 16 bits, bfloat16; rounds what is finer.
    Bf16,
    /// 16 bits, half precision; rounds what is finer.
    F16,
    /// 8.5 bits in blocks of 32; rounds what is finer.
    #[value(name = "q8_0")]
    Q8_0,
    /// 5 bits in blocks of 32; rounds what is finer.
    #[value(name = "q4_1")]
    Q4_1,
}
