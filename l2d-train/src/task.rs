//! The objectives behind one interface: what the training loop needs to know of them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use l2d_core::checkpoint::{BaseFingerprint, StoredDtype, load_adapter, read_tensors, save_adapter, write_tensors};
use l2d_core::cpu::dense::Products;
use l2d_core::diffusion::DiffusionPath;
use l2d_core::error::Error as CoreError;
use l2d_core::lm::{HostTensor, Lm};
use l2d_core::parameters::{replace_trained_parameters, trainable, trained_parameters};
use rand_chacha::ChaCha8Rng;

use crate::data::Batch;
use crate::error::{Result, TrainError};
use crate::objective::{DrawSettings, HostL2d, HostLm, L2dObjective, LmObjective, Recompute, StepLoss};
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

/// How the L2D objective is computed; both ways give the same numbers but for rounding.
#[derive(Debug)]
pub enum L2dEngine<AB: AutodiffBackend> {
    /// By automatic differentiation on any backend.
    Autodiff(Box<L2dObjective<AB>>),
    /// By hand, on the CPU.
    Host(Box<HostL2d<AB::InnerBackend>>),
}

impl<AB: AutodiffBackend> L2dEngine<AB> {
    /// By hand beside a packed LM, by automatic differentiation beside another. `head_chunk` rows of logits are held at a
    /// time; `products` and `recompute` are heeded by hand only.
    pub fn new(lm: Lm<AB::InnerBackend>, head_chunk: usize, products: Products, recompute: Recompute) -> Self {
        if lm.is_packed() {
            let mut objective = HostL2d::new(lm, products);
            (objective.head_chunk, objective.recompute) = (head_chunk, recompute);
            return Self::Host(Box::new(objective));
        }
        let mut objective = L2dObjective::new(lm);
        objective.head_chunk = head_chunk;
        Self::Autodiff(Box::new(objective))
    }
}

impl<AB: AutodiffBackend> L2dTask<AB> {
    /// Trains beside the engine's LM.
    pub fn new(engine: L2dEngine<AB>, draws: DrawSettings) -> Self {
        let mut task = Self { engine, base: BaseFingerprint::default(), draws };
        task.base = BaseFingerprint::of(task.lm());
        task
    }

    /// The base's fingerprint, as adapters carry it.
    pub fn base(&self) -> &BaseFingerprint {
        &self.base
    }

    /// The frozen LM.
    pub fn lm(&self) -> &Lm<AB::InnerBackend> {
        match &self.engine {
            L2dEngine::Autodiff(objective) => objective.lm(),
            L2dEngine::Host(objective) => objective.lm(),
        }
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
            L2dEngine::Autodiff(objective) => {
                let (loss, gradients) = objective.loss_and_gradients(model, &batch, &draws);
                (loss, NamedGradients::collect::<AB, _>(model, &gradients))
            }
            L2dEngine::Host(objective) => objective.loss_and_gradients(&model.valid(), &batch, &draws),
        }
    }

    fn loss(&self, model: &Self::Model, batch: &Batch, rngs: &mut [ChaCha8Rng]) -> StepLoss {
        let batch = batch.labelled();
        let draws = self.draws.draw(&model.config, &batch, rngs);
        match &self.engine {
            L2dEngine::Autodiff(objective) => objective.loss(&model.valid(), &batch, &draws),
            L2dEngine::Host(objective) => objective.loss(&model.valid(), &batch, &draws),
        }
    }

    fn no_class(&self, model: &Self::Model) -> Option<usize> {
        model.config.no_class()
    }

    fn save(&self, model: &Self::Model, folder: &Path, notes: &BTreeMap<String, String>) -> Result<()> {
        Ok(save_adapter(&folder.join(ADAPTER_FILE), &model.valid(), &self.base, notes, StoredDtype::F32)?)
    }

    fn load(&self, _model: Self::Model, folder: &Path) -> Result<Self::Model> {
        let path = load_adapter(&folder.join(ADAPTER_FILE), self.lm())?;
        Ok(trainable(AutodiffModule::from_inner(path)))
    }
}

/// The LM itself: from scratch, full finetuning, or LoRA. Saves its trained parameters by name; the finished model is
/// exported by whoever knows the tokenizer that belongs to it.
#[derive(Debug)]
pub struct LmTask {
    engine: LmEngine,
}

/// How next-token cross-entropy is computed; both ways give the same numbers but for rounding.
#[derive(Debug)]
pub enum LmEngine {
    /// By automatic differentiation on any backend.
    Autodiff(LmObjective),
    /// By hand, on the CPU.
    Host(Box<HostLm>),
}

impl LmEngine {
    /// By hand for the given model: a dense one, all of which is trained, or a packed one with corrections. `head_chunk` rows
    /// of logits are held at a time.
    pub fn host<B: Backend>(lm: &Lm<B>, head_chunk: usize, products: Products, recompute: Recompute) -> Self {
        let mut objective = HostLm::new(lm, products);
        (objective.head_chunk, objective.recompute) = (head_chunk, recompute);
        Self::Host(Box::new(objective))
    }
}

impl LmTask {
    /// Trains by the given engine.
    pub fn new(engine: LmEngine) -> Self {
        Self { engine }
    }
}

impl<AB: AutodiffBackend> Task<AB> for LmTask {
    type Model = Lm<AB>;

    fn gradients(
        &self,
        model: &Self::Model,
        batch: &Batch,
        _rngs: &mut [ChaCha8Rng],
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        match &self.engine {
            LmEngine::Autodiff(objective) => {
                let (loss, gradients) = objective.loss_and_gradients(model, &batch.labelled());
                (loss, NamedGradients::collect::<AB, _>(model, &gradients))
            }
            LmEngine::Host(objective) => objective.loss_and_gradients(model, &batch.labelled()),
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

    fn save(&self, model: &Self::Model, folder: &Path, notes: &BTreeMap<String, String>) -> Result<()> {
        let mut metadata = notes.clone();
        metadata.insert("format".into(), PARAMETERS_FORMAT.into());
        if let Some(base) = frozen_base(model) {
            metadata.insert("base_weights".into(), base);
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
        if frozen_base(&model).as_ref() != metadata.get("base_weights") {
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

/// What recognises the weights that stay as they are, where there are any (low-rank corrections).
fn frozen_base<AB: AutodiffBackend>(model: &Lm<AB>) -> Option<String> {
    let frozen = !model.final_norm.weight.is_require_grad();
    frozen.then(|| BaseFingerprint::of(&model.valid()).weights)
}
