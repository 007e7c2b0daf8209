//! Gradients by parameter name, summed over micro-batches.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use l2d_core::lm::host_values;
use l2d_core::parameters::ParameterPath;

use crate::error::Result;
use crate::ranks::{Ranks, agree};

/// The gradient of each trained parameter, flattened, under the parameter's name.
#[derive(Debug, Clone)]
pub struct NamedGradients<B: Backend> {
    flat: BTreeMap<String, Tensor<B, 1>>,
}

impl<B: Backend> Default for NamedGradients<B> {
    fn default() -> Self {
        Self { flat: BTreeMap::new() }
    }
}

impl<B: Backend> NamedGradients<B> {
    /// Takes the gradients of a module's trained parameters out of a backward pass. A parameter the loss does not depend
    /// on has none.
    pub fn collect<AB, M>(module: &M, gradients: &AB::Gradients) -> Self
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        struct Collect<'a, AB: AutodiffBackend> {
            path: ParameterPath,
            gradients: &'a AB::Gradients,
            flat: BTreeMap<String, Tensor<AB::InnerBackend, 1>>,
        }
        impl<AB: AutodiffBackend> ModuleVisitor<AB> for Collect<'_, AB> {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.path.enter(name, container_type);
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.exit();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AB, D>>) {
                if let Some(gradient) = param.val().grad(self.gradients) {
                    let count = gradient.shape().num_elements();
                    self.flat.insert(self.path.name(), gradient.reshape([count]));
                }
            }
        }
        let mut collect = Collect::<AB> { path: ParameterPath::default(), gradients, flat: BTreeMap::new() };
        module.visit(&mut collect);
        Self { flat: collect.flat }
    }

    /// Gradients that were not computed by automatic differentiation, flattened, under their parameters' names.
    pub fn from_named(named: impl IntoIterator<Item = (String, Tensor<B, 1>)>) -> Self {
        Self { flat: named.into_iter().collect() }
    }

    /// Adds another micro-batch's gradients.
    pub fn add(&mut self, other: Self) {
        for (name, gradient) in other.flat {
            let sum = match self.flat.remove(&name) {
                Some(mine) => mine + gradient,
                None => gradient,
            };
            self.flat.insert(name, sum);
        }
    }

    /// Sums the gradients of all ranks.
    ///
    /// # Errors
    /// [`TrainError::Ranks`](crate::TrainError::Ranks) where a rank is gone or has gradients of other parameters.
    pub fn sum_over(&mut self, ranks: &dyn Ranks) -> Result<()> {
        if ranks.size() == 1 {
            return Ok(());
        }
        let count = |gradient: &Tensor<B, 1>| gradient.shape().num_elements();
        let own: Vec<String> = self.flat.iter().map(|(name, gradient)| format!("{name} {}", count(gradient))).collect();
        agree(ranks, &[("gradients", own.join(", "))])?;
        // One long list: a message for each small parameter would cost more than what it carries.
        let mut all: Vec<f32> = Vec::with_capacity(self.flat.values().map(count).sum());
        for gradient in self.flat.values() {
            all.extend(host_values(gradient.clone()));
        }
        ranks.sum(&mut all)?;
        let mut rest = all.as_slice();
        for gradient in self.flat.values_mut() {
            let (own, left) = rest.split_at(count(gradient));
            *gradient = Tensor::from_data(TensorData::from(own), &gradient.device());
            rest = left;
        }
        Ok(())
    }

    /// Forgets the gradients of parameters for which `keep` does not hold.
    pub fn retain(&mut self, keep: &dyn Fn(&str) -> bool) {
        self.flat.retain(|name, _| keep(name));
    }

    /// Multiplies all gradients, e.g. by one over the number of labelled tokens.
    pub fn scale(&mut self, factor: f64) {
        for gradient in self.flat.values_mut() {
            *gradient = gradient.clone() * factor;
        }
    }

    /// The Euclidean norm over all gradients together.
    pub fn norm(&self) -> f64 {
        let squares = self.flat.values().map(|gradient| gradient.clone().square().sum());
        match squares.reduce(|a, b| a + b) {
            // One number crosses from the device, not one for every parameter.
            Some(sum) => f64::from(host_values(sum)[0]).sqrt(),
            None => 0.0,
        }
    }

    /// The gradient of one parameter, flattened.
    pub fn get(&self, name: &str) -> Option<&Tensor<B, 1>> {
        self.flat.get(name)
    }
}

/// What gradients of the given norm must be multiplied with so that their norm is at most `max_norm`: PyTorch's
/// `clip_grad_norm_`, `min(1, max_norm / (norm + 1e-6))`.
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}
