//! The model compiled into the binary: `assets/tiny`, with the recipe that made it.

use burn::module::Module;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{Checkpoint, EmbeddedCheckpoint};
use l2d_core::lm::Lm;
use l2d_infer::velocity::Estimate;
use l2d_train::TrainConfig;

use crate::error::CliError;
use crate::model::Text;

/// The longest prompt and solution take 55 tokens.
pub(crate) const MAX_TOKENS: usize = 64;
/// The longest solution takes 45.
pub(crate) const MAX_NEW_TOKENS: usize = 56;

/// The trained diffusion path.
pub(crate) const ADAPTER: &[u8] = include_bytes!("../../assets/tiny/adapter.safetensors");

const BASE: EmbeddedCheckpoint = EmbeddedCheckpoint {
    name: "the embedded LM",
    config: include_str!("../../assets/tiny/config.json"),
    weights: include_bytes!("../../assets/tiny/model.safetensors"),
    tokenizer: include_str!("../../assets/tiny/tokenizer.json"),
    tokenizer_config: include_str!("../../assets/tiny/tokenizer_config.json"),
    generation_config: Some(include_str!("../../assets/tiny/generation_config.json")),
};

/// Loads the base LM.
pub(crate) fn base<B: Backend>(device: &B::Device) -> Result<(Lm<B>, Text), CliError> {
    let checkpoint = Checkpoint::embedded(&BASE)?;
    let text = Text::of(&checkpoint);
    Ok((Lm::load(&checkpoint.config, checkpoint.tensors.as_ref(), device)?.no_grad(), text))
}

/// The settings the shipped adapter was trained with.
pub(crate) fn recipe() -> Result<TrainConfig, CliError> {
    toml::from_str(include_str!("../../assets/tiny/adapter.toml"))
        .map_err(|e| CliError::Usage(format!("assets/tiny/adapter.toml: {e}")))
}

/// How the quick start guesses along the diffusion: the paper's way, by sampling.
pub(crate) fn estimate() -> Estimate {
    Estimate::default()
}
