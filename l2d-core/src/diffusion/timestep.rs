//! Diffusion time as a vector (METHOD section 5).

use burn::module::Module;
use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use super::config::DiffusionConfig;
use crate::cpu::WeightFormat;
use crate::init;
use crate::lm::Linear;

/// Sinusoidal features of diffusion times in [0, 1], `[rows, size]` row-major: frequencies `10000^(-i / (size / 2))`, cosines
/// first.
pub fn time_features(timesteps: &[f32], size: usize) -> Vec<f32> {
    let half = size / 2;
    // f32 throughout, as the reference computes them.
    let frequencies: Vec<f32> = (0..half).map(|i| (-(10000f32.ln()) * i as f32 / half as f32).exp()).collect();
    let mut values = Vec::with_capacity(timesteps.len() * size);
    for &t in timesteps {
        values.extend(frequencies.iter().map(|f| (t * f).cos()));
        values.extend(frequencies.iter().map(|f| (t * f).sin()));
    }
    values
}

/// `tau(t) = Linear(c -> c)(SiLU(Linear(c_f -> c)(features(t))))`.
#[derive(Module, Debug)]
pub struct TimestepEmbedding<B: Backend> {
    /// `c_f -> c`.
    pub inner: Linear<B>,
    /// `c -> c`.
    pub outer: Linear<B>,
}

impl<B: Backend> TimestepEmbedding<B> {
    /// Both layers N(0, 0.02), zero biases.
    pub fn init(config: &DiffusionConfig, rng: &mut ChaCha8Rng, device: &B::Device) -> Self {
        let mut linear = |inputs, outputs| {
            Linear::new(init::normal([inputs, outputs], 0.02, rng, device), Some(Tensor::zeros([outputs], device)))
        };
        Self {
            inner: linear(config.time_features, config.conditioning),
            outer: linear(config.conditioning, config.conditioning),
        }
    }

    /// The same embedding packed for the CPU's decoding kernels ([`crate::cpu`]), in f32.
    pub fn packed(self) -> Self {
        Self { inner: self.inner.packed(WeightFormat::F32), outer: self.outer.packed(WeightFormat::F32) }
    }

    /// [`time_features`] as a tensor, `[rows, c_f]`.
    pub fn features(&self, timesteps: &[f32]) -> Tensor<B, 2> {
        let [size, _] = self.inner.shape();
        let values = time_features(timesteps, size);
        let weight = self.inner.weight.val();
        Tensor::<B, 2>::from_data(TensorData::new(values, [timesteps.len(), size]), &weight.device())
            .cast(weight.dtype())
    }

    /// `tau(t)` without any class: `[rows, c]`.
    pub fn forward(&self, timesteps: &[f32]) -> Tensor<B, 2> {
        self.outer.forward(silu(self.inner.forward(self.features(timesteps))))
    }
}
