//! AdamW (Loshchilov & Hutter, 2019, algorithm 2) with PyTorch's semantics.
//!
//! burn's own has other defaults, hides its moments behind parameter ids, and its clipping is per tensor; here the moments
//! carry the parameters' names, so that a resumed run goes on bit for bit.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use l2d_core::lm::{HostTensor, host_values};
use l2d_core::parameters::ParameterPath;
use serde::{Deserialize, Serialize};

use super::gradients::NamedGradients;

/// Hyper-parameters. The defaults are PyTorch's: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled: each update multiplies the weights by `1 - learning_rate * weight_decay`.
    pub weight_decay: f64,
    /// Decay biases too. PyTorch does; the paper's code does not, and neither do we by default.
    pub decay_biases: bool,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, decay_biases: false }
    }
}

/// First and second moment of one parameter, flattened.
#[derive(Debug, Clone)]
struct Moments<B: Backend> {
    first: Tensor<B, 1>,
    second: Tensor<B, 1>,
}

/// The optimiser with its state.
#[derive(Debug, Clone)]
pub struct AdamW<B: Backend> {
    config: AdamWConfig,
    updates: u64,
    moments: BTreeMap<String, Moments<B>>,
}

impl<B: Backend> AdamW<B> {
    /// A fresh optimiser.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, updates: 0, moments: BTreeMap::new() }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update of every parameter that has a gradient.
    pub fn step<AB, M>(&mut self, module: M, gradients: &NamedGradients<B>, learning_rate: f64) -> M
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        self.updates += 1;
        module.map(&mut Update { optimiser: self, gradients, learning_rate, path: ParameterPath::default() })
    }

    /// `p <- p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps)` on flat tensors.
    fn update(
        &mut self,
        name: &str,
        weights: Tensor<B, 1>,
        gradient: Tensor<B, 1>,
        learning_rate: f64,
    ) -> Tensor<B, 1> {
        let AdamWConfig { beta1, beta2, eps, weight_decay, decay_biases } = self.config;
        let (first, second) = match self.moments.remove(name) {
            Some(Moments { first, second }) => {
                (first * beta1 + gradient.clone() * (1.0 - beta1), second * beta2 + gradient.square() * (1.0 - beta2))
            }
            None => (gradient.clone() * (1.0 - beta1), gradient.square() * (1.0 - beta2)),
        };
        let n = self.updates as f64;
        let (correction1, correction2) = (1.0 - beta1.powf(n), 1.0 - beta2.powf(n));
        let root = second.clone().sqrt() / correction2.sqrt() + eps;
        let is_bias = name == "bias" || name.ends_with(".bias");
        let decay = if is_bias && !decay_biases { 0.0 } else { weight_decay };
        let new = weights * (1.0 - learning_rate * decay) - (first.clone() / root) * (learning_rate / correction1);
        self.moments.insert(name.to_string(), Moments { first, second });
        new
    }

    /// The moments, named `first/PARAMETER` and `second/PARAMETER`, to be saved.
    pub fn export(&self) -> Vec<HostTensor> {
        let host = |kind: &str, name: &str, tensor: &Tensor<B, 1>| HostTensor {
            name: format!("{kind}/{name}"),
            shape: tensor.dims().to_vec(),
            values: host_values(tensor.clone()),
        };
        self.moments
            .iter()
            .flat_map(|(name, moments)| [host("first", name, &moments.first), host("second", name, &moments.second)])
            .collect()
    }

    /// Restores what [`AdamW::export`] gave after `updates` updates. `None` when a moment has no partner.
    pub fn import(config: AdamWConfig, updates: u64, tensors: Vec<HostTensor>, device: &B::Device) -> Option<Self> {
        let mut firsts = BTreeMap::new();
        let mut seconds = BTreeMap::new();
        for tensor in tensors {
            let count = tensor.values.len();
            let flat = Tensor::from_data(TensorData::new(tensor.values, [count]), device);
            let (kind, name) = tensor.name.split_once('/')?;
            match kind {
                "first" => firsts.insert(name.to_string(), flat),
                "second" => seconds.insert(name.to_string(), flat),
                _ => return None,
            };
        }
        if !firsts.keys().eq(seconds.keys()) {
            return None;
        }
        let moments = firsts
            .into_iter()
            .zip(seconds.into_values())
            .map(|((name, first), second)| (name, Moments { first, second }));
        Some(Self { config, updates, moments: moments.collect() })
    }
}

struct Update<'a, B: Backend> {
    optimiser: &'a mut AdamW<B>,
    gradients: &'a NamedGradients<B>,
    learning_rate: f64,
    path: ParameterPath,
}

impl<AB: AutodiffBackend> ModuleMapper<AB> for Update<'_, AB::InnerBackend> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<AB, D>>) -> Param<Tensor<AB, D>> {
        let (id, tensor, mapper) = param.consume();
        let name = self.path.name();
        let Some(gradient) = self.gradients.get(&name) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let shape = tensor.dims();
        let count = shape.iter().product::<usize>();
        let flat = tensor.inner().reshape([count]);
        let new = self.optimiser.update(&name, flat, gradient.clone(), self.learning_rate);
        Param::from_mapped_value(id, Tensor::from_inner(new.reshape(shape)).require_grad(), mapper)
    }
}
