//! An exponential moving average of trained weights.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use l2d_core::parameters::ParameterPath;

/// `average <- decay * average + (1 - decay) * weights` after each update, beginning with the weights at the start.
#[derive(Debug, Clone)]
pub struct Ema<B: Backend> {
    decay: f64,
    /// Flat, by name.
    averages: BTreeMap<String, Tensor<B, 1>>,
}

impl<B: Backend> Ema<B> {
    /// An average that begins with a module's trained weights.
    pub fn new<AB, M>(decay: f64, module: &M) -> Self
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        Self { decay, averages: trained::<AB, M>(module) }
    }

    /// How much of the old average stays.
    pub fn decay(&self) -> f64 {
        self.decay
    }

    /// Takes in the weights after an update.
    pub fn update<AB, M>(&mut self, module: &M)
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        for (name, weights) in trained::<AB, M>(module) {
            if let Some(average) = self.averages.remove(&name) {
                let mixed = average * self.decay + weights * (1.0 - self.decay);
                self.averages.insert(name, mixed);
            }
        }
    }

    /// The module with the averages for its trained weights.
    pub fn apply<AB, M>(&self, module: M) -> M
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        struct Apply<'a, B: Backend> {
            path: ParameterPath,
            averages: &'a BTreeMap<String, Tensor<B, 1>>,
        }
        impl<AB: AutodiffBackend> ModuleMapper<AB> for Apply<'_, AB::InnerBackend> {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.path.enter(name, container_type);
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.exit();
            }
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<AB, D>>) -> Param<Tensor<AB, D>> {
                let (id, tensor, mapper) = param.consume();
                let new = match self.averages.get(&self.path.name()) {
                    Some(average) => Tensor::from_inner(average.clone().reshape(tensor.shape())).require_grad(),
                    None => tensor,
                };
                Param::from_mapped_value(id, new, mapper)
            }
        }
        module.map(&mut Apply { path: ParameterPath::default(), averages: &self.averages })
    }
}

fn trained<AB: AutodiffBackend, M: Module<AB>>(module: &M) -> BTreeMap<String, Tensor<AB::InnerBackend, 1>> {
    struct Collect<B: Backend> {
        path: ParameterPath,
        found: BTreeMap<String, Tensor<B, 1>>,
    }
    impl<AB: AutodiffBackend> ModuleVisitor<AB> for Collect<AB::InnerBackend> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AB, D>>) {
            let tensor = param.val();
            if tensor.is_require_grad() {
                let count = tensor.shape().num_elements();
                self.found.insert(self.path.name(), tensor.inner().reshape([count]));
            }
        }
    }
    let mut collect = Collect { path: ParameterPath::default(), found: BTreeMap::new() };
    module.visit(&mut collect);
    collect.found
}
