//! A running mean of the trained weights (Polyak & Juditsky, 1992; as diffusion models are usually validated and used).

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use l2d_core::parameters::ParameterPath;

/// The exponential moving average of the trained parameters, flattened, by name.
#[derive(Debug, Clone)]
pub struct Ema<B: Backend> {
    decay: f64,
    mean: BTreeMap<String, Tensor<B, 1>>,
}

impl<B: Backend> Ema<B> {
    /// Starts at the present weights of the trained parameters for which `keep` holds.
    pub fn new<AB, M>(decay: f64, model: &M, keep: &dyn Fn(&str) -> bool) -> Self
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        Self { decay, mean: flat::<AB, M>(model, keep) }
    }

    /// Takes in the weights after the `n`-th update: `mean <- d mean + (1 - d) weights`, with `d = min(decay,
    /// (1 + n) / (10 + n))`, so that a short run is not ruled by its beginning.
    pub fn update<AB, M>(&mut self, model: &M, n: u64)
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        let decay = self.decay.min((1 + n) as f64 / (10 + n) as f64);
        for (name, weights) in flat::<AB, M>(model, &|name| self.mean.contains_key(name)) {
            if let Some(mean) = self.mean.get_mut(&name) {
                *mean = mean.clone() * decay + weights * (1.0 - decay);
            }
        }
    }

    /// The model with the mean in the place of its trained weights.
    pub fn applied<AB, M>(&self, model: M) -> M
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        struct Apply<'a, B: Backend> {
            mean: &'a BTreeMap<String, Tensor<B, 1>>,
            path: ParameterPath,
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
                let Some(mean) = self.mean.get(&self.path.name()) else {
                    return Param::from_mapped_value(id, tensor, mapper);
                };
                let new = Tensor::from_inner(mean.clone().reshape(tensor.dims())).require_grad();
                Param::from_mapped_value(id, new, mapper)
            }
        }
        model.map(&mut Apply { mean: &self.mean, path: ParameterPath::default() })
    }
}

/// The trained parameters for which `keep` holds, flattened.
fn flat<AB, M>(model: &M, keep: &dyn Fn(&str) -> bool) -> BTreeMap<String, Tensor<AB::InnerBackend, 1>>
where
    AB: AutodiffBackend,
    M: Module<AB>,
{
    struct Collect<'a, B: Backend> {
        keep: &'a dyn Fn(&str) -> bool,
        path: ParameterPath,
        found: BTreeMap<String, Tensor<B, 1>>,
    }
    impl<AB: AutodiffBackend> ModuleVisitor<AB> for Collect<'_, AB::InnerBackend> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AB, D>>) {
            let (name, tensor) = (self.path.name(), param.val());
            if tensor.is_require_grad() && (self.keep)(&name) {
                let count = tensor.shape().num_elements();
                self.found.insert(name, tensor.inner().reshape([count]));
            }
        }
    }
    let mut collect = Collect { keep, path: ParameterPath::default(), found: BTreeMap::new() };
    model.visit(&mut collect);
    collect.found
}

/// Names and numbers of elements of the parameters that can be trained.
pub fn trainable_sizes<AB, M>(model: &M) -> BTreeMap<String, usize>
where
    AB: AutodiffBackend,
    M: Module<AB>,
{
    flat::<AB, M>(model, &|_| true).into_iter().map(|(name, tensor)| (name, tensor.dims()[0])).collect()
}

#[cfg(test)]
mod tests {
    use l2d_core::lm::host_values;
    use l2d_testkit::{TestAutodiff as AB, TestBackend as B};

    use super::*;

    #[derive(Module, Debug)]
    struct Toy<B: Backend> {
        weight: Param<Tensor<B, 1>>,
        other: Param<Tensor<B, 1>>,
    }

    fn toy(weight: f32) -> Toy<AB> {
        let one = |value: f32| Param::from_tensor(Tensor::from_floats([value], &Default::default()));
        Toy { weight: one(weight), other: one(5.0) }
    }

    #[test]
    fn the_mean_follows_its_formula_and_leaves_the_rest() {
        let mut ema = Ema::<B>::new::<AB, _>(0.5, &toy(1.0), &|name| name == "weight");
        let (mut expected, mut weight) = (1.0f64, 1.0f64);
        for n in 1..=20 {
            weight += 0.5;
            let decay = 0.5f64.min((1 + n) as f64 / (10 + n) as f64);
            expected = decay * expected + (1.0 - decay) * weight;
            ema.update::<AB, _>(&toy(weight as f32), n);
        }
        let applied = ema.applied::<AB, _>(toy(100.0));
        assert!((f64::from(host_values(applied.weight.val())[0]) - expected).abs() < 1e-5);
        assert_eq!(host_values(applied.other.val()), [5.0]);
        assert!(applied.weight.val().is_require_grad(), "training can go on from it");
        assert_eq!(trainable_sizes::<AB, _>(&applied).into_iter().collect::<Vec<_>>().len(), 2);
    }
}
