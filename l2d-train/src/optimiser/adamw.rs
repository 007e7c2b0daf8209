//! AdamW (Loshchilov & Hutter, 2019, algorithm 2) with PyTorch's semantics.
//!
//! burn's own has other defaults, hides its moments behind parameter ids, and its clipping is per tensor; here the moments
//! carry the parameters' names, so that a resumed run goes on bit for bit.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use l2d_core::lm::{HostTensor, host_values};
use l2d_core::parameters::ParameterPath;
use serde::{Deserialize, Serialize};

use super::gradients::NamedGradients;
use super::groups::Groups;

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
    groups: Groups,
    updates: u64,
    moments: BTreeMap<String, Moments<B>>,
}

impl<B: Backend> AdamW<B> {
    /// A fresh optimiser.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, groups: Groups::default(), updates: 0, moments: BTreeMap::new() }
    }

    /// The same under rules by parameter name.
    pub fn with_groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One update of every parameter that has a gradient and is not frozen by its group.
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
        let usual = if is_bias && !decay_biases { 0.0 } else { weight_decay };
        let rule = self.groups.rule(name);
        let (decay, learning_rate) = (rule.weight_decay.unwrap_or(usual), learning_rate * rule.learning_rate_scale);
        let new = weights * (1.0 - learning_rate * decay) - (first.clone() / root) * (learning_rate / correction1);
        self.moments.insert(name.to_string(), Moments { first, second });
        new
    }

    /// The first parameter of which there are moments but that `module` has not, or has of another size.
    pub fn misfit<AB, M>(&self, module: &M) -> Option<String>
    where
        AB: AutodiffBackend<InnerBackend = B>,
        M: Module<AB>,
    {
        #[derive(Default)]
        struct Sizes {
            path: ParameterPath,
            sizes: BTreeMap<String, usize>,
        }
        impl<AB: AutodiffBackend> ModuleVisitor<AB> for Sizes {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.path.enter(name, container_type);
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.exit();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AB, D>>) {
                self.sizes.insert(self.path.name(), param.val().shape().num_elements());
            }
        }
        let mut sizes = Sizes::default();
        module.visit(&mut sizes);
        let fits = |(name, moments): &(&String, &Moments<B>)| {
            let count = [moments.first.dims()[0], moments.second.dims()[0]];
            sizes.sizes.get(*name).is_some_and(|&size| count == [size; 2])
        };
        self.moments.iter().find(|entry| !fits(entry)).map(|(name, _)| name.clone())
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
        Some(Self { config, groups: Groups::default(), updates, moments: moments.collect() })
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
        let Some(gradient) = self.gradients.get(&name).filter(|_| self.optimiser.groups.trains(&name)) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let shape = tensor.dims();
        let count = shape.iter().product::<usize>();
        let flat = tensor.inner().reshape([count]);
        let new = self.optimiser.update(&name, flat, gradient.clone(), self.learning_rate);
        Param::from_mapped_value(id, Tensor::from_inner(new.reshape(shape)).require_grad(), mapper)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::ElementConversion;
    use l2d_testkit::{TestAutodiff as AB, TestBackend as B};

    use super::*;

    #[derive(Module, Debug)]
    struct Toy<B: Backend> {
        weight: Param<Tensor<B, 2>>,
        bias: Param<Tensor<B, 1>>,
        unused: Param<Tensor<B, 1>>,
    }

    fn toy() -> Toy<AB> {
        let device = Default::default();
        Toy {
            weight: Param::from_tensor(Tensor::from_floats([[1.0, -2.0]], &device)),
            bias: Param::from_tensor(Tensor::from_floats([1.0], &device)),
            unused: Param::from_tensor(Tensor::from_floats([5.0], &device)),
        }
    }

    /// The gradient of `weight . [a, b] + a bias` is `[a, b]` and `a`, whatever the parameters.
    fn gradients(toy: &Toy<AB>, [a, b]: [f32; 2]) -> NamedGradients<B> {
        let slope = Tensor::<AB, 2>::from_floats([[a, b]], &Default::default());
        let loss = (toy.weight.val() * slope).sum() + toy.bias.val().sum() * a;
        NamedGradients::collect::<AB, _>(toy, &loss.backward())
    }

    const SLOPES: [[f32; 2]; 3] = [[0.1, -0.5], [0.3, 0.2], [-2.0, 1e-9]];

    fn three_updates(config: AdamWConfig) -> Vec<[f32; 3]> {
        let mut optimiser = AdamW::<B>::new(config);
        let mut toy = toy();
        SLOPES
            .map(|slope| {
                let gradients = gradients(&toy, slope);
                toy = optimiser.step::<AB, _>(toy.clone(), &gradients, 0.1);
                assert_eq!(toy.unused.val().into_scalar().elem::<f32>(), 5.0, "no gradient, no update, no decay");
                let weights = host_values(toy.weight.val());
                [weights[0], weights[1], toy.bias.val().into_scalar().elem()]
            })
            .to_vec()
    }

    /// Three updates of torch.optim.AdamW's rule, computed in double precision: `p *= 1 - lr wd`,
    /// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `p -= lr / (1 - b1^n) m / (sqrt(v) / sqrt(1 - b2^n) + eps)`.
    const WEIGHTS: [[f32; 2]; 3] = [[0.899, -1.898], [0.806_322_9, -1.861_541_4], [0.857_541_17, -1.832_964_4]];
    const UNDECAYED: [f32; 3] = [0.900_000_01, 0.808_221_9, 0.860_246_5];

    #[test]
    fn updates_are_pytorchs_and_biases_do_not_decay() {
        for (found, (weights, bias)) in three_updates(AdamWConfig::default()).iter().zip(WEIGHTS.iter().zip(UNDECAYED))
        {
            for (a, b) in found.iter().zip([weights[0], weights[1], bias]) {
                assert!((a - b).abs() < 2e-6, "{found:?} against {weights:?}, {bias}");
            }
        }
    }

    #[test]
    fn biases_decay_when_asked_to() {
        for (found, weights) in
            three_updates(AdamWConfig { decay_biases: true, ..Default::default() }).iter().zip(WEIGHTS)
        {
            assert!((found[2] - weights[0]).abs() < 2e-6, "{found:?} against {weights:?}");
        }
    }

    #[test]
    fn groups_scale_the_rate_and_set_the_decay() {
        use crate::optimiser::GroupConfig;
        let group = |pattern: &str, learning_rate_scale, weight_decay| GroupConfig {
            pattern: pattern.into(),
            learning_rate_scale,
            weight_decay,
        };
        let one_update = |groups: &[GroupConfig], learning_rate: f64| {
            let groups = Groups::new(&[], &[], groups).expect("globs");
            let mut optimiser = AdamW::<B>::new(AdamWConfig::default()).with_groups(groups);
            let toy = optimiser.step::<AB, _>(toy(), &gradients(&toy(), SLOPES[0]), learning_rate);
            let moments = optimiser.export().len();
            (host_values(toy.weight.val()), host_values(toy.bias.val()), moments)
        };
        let plain = one_update(&[], 0.05);
        let halved = one_update(&[group("weight", 0.5, None)], 0.1);
        assert_eq!(halved.0, plain.0, "half the rate of 0.1 is 0.05, decay included");
        assert_eq!(halved.1, one_update(&[], 0.1).1, "another parameter keeps its rate");
        let frozen = one_update(&[group("weight", 0.0, None)], 0.1);
        assert_eq!((frozen.0, frozen.2), (host_values(toy().weight.val()), 2), "no update, no moments");
        // 0.1 of weight decay at a rate of 0.1: a hundredth of the bias, 1, less than without.
        let decayed = one_update(&[group("bias", 1.0, Some(0.1))], 0.1);
        assert!((one_update(&[], 0.1).1[0] - decayed.1[0] - 0.01).abs() < 1e-6);
    }

    #[test]
    fn moments_survive_the_way_out_and_in_bit_for_bit() {
        let (mut toy, config) = (toy(), AdamWConfig::default());
        let mut optimiser = AdamW::<B>::new(config);
        toy = optimiser.step::<AB, _>(toy.clone(), &gradients(&toy, SLOPES[0]), 0.1);
        let restored = AdamW::<B>::import(config, optimiser.updates(), optimiser.export(), &Default::default());
        let mut restored = restored.expect("pairs");
        let (slope, again) = (gradients(&toy, SLOPES[1]), gradients(&toy, SLOPES[1]));
        let a = optimiser.step::<AB, _>(toy.clone(), &slope, 0.1);
        let b = restored.step::<AB, _>(toy.clone(), &again, 0.1);
        assert_eq!(host_values(a.weight.val()), host_values(b.weight.val()));
        assert_eq!(restored.misfit::<AB, _>(&toy), None);

        let mut lonely = optimiser.export();
        lonely.pop();
        assert!(AdamW::<B>::import(config, 1, lonely, &Default::default()).is_none());
        let renamed = optimiser
            .export()
            .into_iter()
            .map(|tensor| HostTensor { name: tensor.name.replace("weight", "weigth"), ..tensor });
        let renamed = AdamW::<B>::import(config, 1, renamed.collect(), &Default::default()).expect("pairs");
        assert_eq!(renamed.misfit::<AB, _>(&toy).as_deref(), Some("weigth"));
    }

    #[test]
    fn clipping_bounds_the_norm_over_all_parameters() {
        let toy = toy();
        // The norm of [3, 4] and the bias's 3.
        let mut all = gradients(&toy, [3.0, 4.0]);
        assert!((all.norm() - 34f64.sqrt()).abs() < 1e-6);
        all.scale(crate::optimiser::clip_coefficient(all.norm(), 1.0));
        assert!((all.norm() - 1.0).abs() < 1e-6);
        assert_eq!(crate::optimiser::clip_coefficient(0.5, 1.0), 1.0);
    }
}
