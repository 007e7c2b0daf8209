//! What the settings ask to be trained, beside the base LM.

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::Lm;
use l2d_core::parameters::trainable;
use l2d_train::objective::{LmObjective, add_lora};
use l2d_train::{L2dEngine, L2dTask, LmEngine, LmTask, ObjectiveKind, TrainConfig};
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
            let engine = L2dEngine::new(lm, config.head_chunk, config.matmul_precision, config.recompute);
            let path = trainable(AutodiffModule::from_inner(path));
            return Ok(Self::L2d(Box::new(L2dTask::new(engine, config.draws())), Box::new(path)));
        }
        let lm: Lm<Autodiff<B>> = AutodiffModule::from_inner(lm);
        let lm = if config.objective == ObjectiveKind::Full {
            // One table that receives both gradients, if the model is tied.
            let lm = if lm.config.tie_word_embeddings { Lm { head: None, ..lm } } else { lm };
            trainable(lm)
        } else {
            add_lora(lm, config.lora_rank, config.lora_alpha, rng)
        };
        let engine = if backend.is_cpu() {
            LmEngine::host(&lm, config.head_chunk, config.matmul_precision, config.recompute)
        } else {
            LmEngine::Autodiff(LmObjective { head_chunk: config.head_chunk })
        };
        Ok(Self::Lm(Box::new(LmTask::new(engine)), Box::new(lm)))
    }
}
