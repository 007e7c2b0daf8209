//! What the settings ask to be trained, beside the base LM.

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::BaseFingerprint;
use l2d_core::cpu::WeightFormat;
use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::Lm;
use l2d_core::parameters::trainable;
use l2d_train::objective::add_lora;
use l2d_train::{FrozenWeights, L2dEngine, L2dTask, LmEngine, LmTask, ObjectiveKind, TrainConfig};
use rand_chacha::ChaCha8Rng;

use crate::backend::BackendKind;
use crate::error::CliError;

/// A task with the model that it begins with.
pub(crate) enum Learner<B: Backend> {
    /// A diffusion path beside the frozen LM.
    L2d(Box<L2dTask<Autodiff<B>>>, Box<DiffusionPath<Autodiff<B>>>),
    /// The LM's own weights, or low-rank corrections of them.
    Lm(Box<LmTask>, Box<Lm<Autodiff<B>>>),
}

impl<B: Backend> Learner<B> {
    /// As the settings have it; `file` is named where the diffusion's are wrong.
    pub(crate) fn new(
        lm: Lm<B>,
        config: &TrainConfig,
        file: &Path,
        backend: BackendKind,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self, CliError> {
        if config.objective == ObjectiveKind::L2d {
            let diffusion = config.diffusion.clone().check(file)?;
            let path = DiffusionPath::init(&lm, &diffusion, rng);
            let base = BaseFingerprint::of(&lm);
            let engine = L2dEngine::new(kept(lm, config, backend)?, config.engine());
            let path = trainable(AutodiffModule::from_inner(path));
            return Ok(Self::L2d(Box::new(L2dTask::new(engine, config.draws()).beside(base)), Box::new(path)));
        }
        if config.objective == ObjectiveKind::Full && lm.shards.is_some() {
            return Err(CliError::Usage(
                "objective full: this device holds the vocabulary in parts, which are not trained; use another backend"
                    .into(),
            ));
        }
        let lm: Lm<Autodiff<B>> = AutodiffModule::from_inner(kept(lm, config, backend)?);
        let lm = if config.objective == ObjectiveKind::Full {
            // One table that receives both gradients, if the model is tied.
            let lm = if lm.config.tie_word_embeddings { Lm { head: None, ..lm } } else { lm };
            trainable(lm)
        } else {
            add_lora(lm, config.lora_rank, config.lora_alpha, rng)
        };
        let engine = LmEngine::new(&lm, backend.is_cpu(), config.engine());
        Ok(Self::Lm(Box::new(LmTask::new(engine, config.lora_dropout)), Box::new(lm)))
    }
}

/// The frozen base in the format the settings ask for; one that is packed already stays as it is.
pub(crate) fn kept<B: Backend>(lm: Lm<B>, config: &TrainConfig, backend: BackendKind) -> Result<Lm<B>, CliError> {
    let (format, dtype) = match config.frozen_weights {
        FrozenWeights::Stored => return Ok(lm),
        FrozenWeights::F32 => (WeightFormat::F32, FloatDType::F32),
        FrozenWeights::Bf16 => (WeightFormat::Bf16, FloatDType::BF16),
        FrozenWeights::F16 => (WeightFormat::F16, FloatDType::F16),
    };
    if backend.is_cpu() {
        return Ok(lm.packed(format));
    }
    if !B::supports_dtype(&lm.device(), dtype.into()) {
        return Err(CliError::Usage(format!(
            "frozen_weights = \"{}\": this device does not compute with that format; choose another, or \"f32\"",
            format!("{:?}", config.frozen_weights).to_lowercase()
        )));
    }
    Ok(lm.kept_as(dtype))
}
