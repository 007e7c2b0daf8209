//! The objectives behind one interface: what the training loop needs to know of them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use l2d_core::checkpoint::{
    BaseFingerprint, StoredDtype, load_adapter_of, read_tensors, save_adapter, weights_digest, write_tensors,
};
use l2d_core::diffusion::DiffusionPath;
use l2d_core::error::Error as CoreError;
use l2d_core::lm::{HostTensor, Lm};
use l2d_core::parameters::{replace_trained_parameters, trainable, trained_parameters};
use rand_chacha::ChaCha8Rng;

use crate::data::Batch;
use crate::engine::{L2dEngine, LmEngine};
use crate::error::{Result, TrainError};
use crate::objective::{DrawSettings, DropoutDraws, StepLoss};
use crate::optimiser::NamedGradients;

/// The diffusion path in a checkpoint's folder: an adapter as `l2d generate` takes it.
const ADAPTER_FILE: &str = "adapter.safetensors";
/// The trained weights of an LM in a checkpoint's folder.
const PARAMETERS_FILE: &str = "parameters.safetensors";
/// Value of their metadata key `format`.
const PARAMETERS_FORMAT: &str = "l2d-lm-parameters";

/// Something that can be trained.
pub trait Task<AB: AutodiffBackend> {
    /// What is trained.
    type Model: AutodiffModule<AB>;

    /// The loss of a micro-batch and the gradient of its SUM over labelled positions. `rngs` holds one generator for each
    /// sequence.
    fn gradients(
        &self,
        model: &Self::Model,
        batch: &Batch,
        rngs: &mut [ChaCha8Rng],
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>);

    /// The loss alone, for validation.
    fn loss(&self, model: &Self::Model, batch: &Batch, rngs: &mut [ChaCha8Rng]) -> StepLoss;

    /// The class index of examples without a class, when classes are trained.
    fn no_class(&self, model: &Self::Model) -> Option<usize>;

    /// What recognises the weights that stay as they are, where there are any: every matrix has a part in it.
    fn frozen_digest(&self, _model: &Self::Model) -> Option<String> {
        None
    }

    /// Saves the trained weights, exactly, into a checkpoint's folder.
    ///
    /// # Errors
    /// A file cannot be written.
    fn save(&self, model: &Self::Model, folder: &Path, notes: &BTreeMap<String, String>) -> Result<()>;

    /// Restores what [`Task::save`] wrote; `model` has the right shape.
    ///
    /// # Errors
    /// A file is missing or does not fit.
    fn load(&self, model: Self::Model, folder: &Path) -> Result<Self::Model>;
}

/// L2D: a diffusion path beside a frozen LM.
#[derive(Debug)]
pub struct L2dTask<AB: AutodiffBackend> {
    engine: L2dEngine<AB>,
    base: BaseFingerprint,
    draws: DrawSettings,
}

impl<AB: AutodiffBackend> L2dTask<AB> {
    /// Trains beside the engine's LM.
    pub fn new(engine: L2dEngine<AB>, draws: DrawSettings) -> Self {
        let base = BaseFingerprint::of(engine.lm());
        Self { engine, base, draws }
    }

    /// The same task, whose adapters belong to `base`: where the engine's LM is a rounded copy of it.
    pub fn beside(self, base: BaseFingerprint) -> Self {
        Self { base, ..self }
    }

    /// The base's fingerprint, as adapters carry it.
    pub fn base(&self) -> &BaseFingerprint {
        &self.base
    }

    /// The frozen LM.
    pub fn lm(&self) -> &Lm<AB::InnerBackend> {
        self.engine.lm()
    }
}

impl<AB: AutodiffBackend> Task<AB> for L2dTask<AB> {
    type Model = DiffusionPath<AB>;

    fn gradients(
        &self,
        model: &Self::Model,
        batch: &Batch,
        rngs: &mut [ChaCha8Rng],
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        let batch = batch.labelled();
        let draws = self.draws.draw(&model.config, &batch, rngs);
        match &self.engine {
            L2dEngine::Autodiff(objective) => objective.loss_and_gradients(model, &batch, &draws),
            L2dEngine::Host(objective) => objective.loss_and_gradients(&model.valid(), &batch, &draws),
        }
    }

    fn loss(&self, model: &Self::Model, batch: &Batch, rngs: &mut [ChaCha8Rng]) -> StepLoss {
        let batch = batch.labelled();
        // What is measured drops nothing.
        let draws = DrawSettings { lora_dropout: 0.0, ..self.draws }.draw(&model.config, &batch, rngs);
        match &self.engine {
            L2dEngine::Autodiff(objective) => objective.loss(&model.valid(), &batch, &draws),
            L2dEngine::Host(objective) => objective.loss(&model.valid(), &batch, &draws),
        }
    }

    fn no_class(&self, model: &Self::Model) -> Option<usize> {
        model.config.no_class()
    }

    fn frozen_digest(&self, _model: &Self::Model) -> Option<String> {
        Some(weights_digest(self.lm()))
    }

    fn save(&self, model: &Self::Model, folder: &Path, notes: &BTreeMap<String, String>) -> Result<()> {
        Ok(save_adapter(&folder.join(ADAPTER_FILE), &model.valid(), &self.base, notes, StoredDtype::F32)?)
    }

    fn load(&self, _model: Self::Model, folder: &Path) -> Result<Self::Model> {
        let path = load_adapter_of(&folder.join(ADAPTER_FILE), self.lm(), &self.base)?;
        Ok(trainable(AutodiffModule::from_inner(path)))
    }
}

/// The LM itself: from scratch, full finetuning, or LoRA. Saves its trained parameters by name; the finished model is
/// exported by whoever knows the tokenizer that belongs to it.
#[derive(Debug)]
pub struct LmTask {
    engine: LmEngine,
    lora_dropout: f64,
}

impl LmTask {
    /// Trains by the given engine; each input of a low-rank correction is dropped with the probability `lora_dropout`.
    pub fn new(engine: LmEngine, lora_dropout: f64) -> Self {
        Self { engine, lora_dropout }
    }
}

impl<AB: AutodiffBackend> Task<AB> for LmTask {
    type Model = Lm<AB>;

    fn gradients(
        &self,
        model: &Self::Model,
        batch: &Batch,
        rngs: &mut [ChaCha8Rng],
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        let dropout = DropoutDraws::of_sequences(self.lora_dropout, rngs);
        match &self.engine {
            LmEngine::Autodiff(objective) => objective.loss_and_gradients(model, &batch.labelled(), dropout.as_ref()),
            LmEngine::Host(objective) => objective.loss_and_gradients(model, &batch.labelled(), dropout.as_ref()),
        }
    }

    fn loss(&self, model: &Self::Model, batch: &Batch, _rngs: &mut [ChaCha8Rng]) -> StepLoss {
        match &self.engine {
            LmEngine::Autodiff(objective) => objective.loss(&model.valid(), &batch.labelled()),
            LmEngine::Host(objective) => objective.loss(model, &batch.labelled()),
        }
    }

    fn no_class(&self, _model: &Self::Model) -> Option<usize> {
        None
    }

    fn frozen_digest(&self, model: &Self::Model) -> Option<String> {
        is_frozen(model).then(|| weights_digest(&model.valid()))
    }

    fn save(&self, model: &Self::Model, folder: &Path, notes: &BTreeMap<String, String>) -> Result<()> {
        let mut metadata = notes.clone();
        metadata.insert("format".into(), PARAMETERS_FORMAT.into());
        if let Some(base) = frozen_base(model) {
            metadata.insert("base_weights".into(), base);
            metadata.insert("base_matrices".into(), weights_digest(&model.valid()));
        }
        let trained = trained_parameters(model);
        Ok(write_tensors(&folder.join(PARAMETERS_FILE), &trained, &metadata, StoredDtype::F32)?)
    }

    fn load(&self, model: Self::Model, folder: &Path) -> Result<Self::Model> {
        let file = folder.join(PARAMETERS_FILE);
        let (mut tensors, metadata) = read_tensors(&file)?;
        if metadata.get("format").is_none_or(|format| format != PARAMETERS_FORMAT) {
            let reason = format!("its metadata has no `format: {PARAMETERS_FORMAT}`");
            return Err(TrainError::Resume { path: file, reason });
        }
        // Checkpoints of before that was kept say nothing of all matrices.
        let other = metadata.get("base_matrices").is_some_and(|base| *base != weights_digest(&model.valid()));
        if other || frozen_base(&model).as_ref() != metadata.get("base_weights") {
            let reason = "it was trained beside another base model; resume with the same --model".into();
            return Err(TrainError::Resume { path: file, reason });
        }
        let model = replace_trained_parameters(model, &mut |name, shape| match tensors.remove(name) {
            Some(HostTensor { shape: found, values, .. }) if found == shape => Ok(values),
            Some(HostTensor { shape: found, .. }) => {
                Err(CoreError::Shape { path: file.clone(), name: name.to_string(), expected: shape.to_vec(), found })
            }
            None => Err(CoreError::MissingTensor { path: file.clone(), name: name.to_string() }),
        })?;
        match tensors.keys().next() {
            None => Ok(model),
            Some(name) => Err(CoreError::ExtraTensor { path: file, name: name.clone(), count: tensors.len() }.into()),
        }
    }
}

/// Whether a model has weights that stay as they are: with low-rank corrections.
fn is_frozen<AB: AutodiffBackend>(model: &Lm<AB>) -> bool {
    !model.final_norm.weight.is_require_grad()
}

/// What checkpoints recognise those weights by.
fn frozen_base<AB: AutodiffBackend>(model: &Lm<AB>) -> Option<String> {
    is_frozen(model).then(|| BaseFingerprint::of(&model.valid()).weights)
}
