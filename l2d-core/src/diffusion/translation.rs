//! From a noisy diffusion token into the base LM's hidden space (METHOD section 4).

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;

use super::config::DiffusionConfig;
use crate::cpu::WeightFormat;
use crate::lm::Linear;

/// `Linear(d -> d), SiLU, Linear(d -> H)`.
#[derive(Module, Debug)]
pub struct Translation<B: Backend> {
    /// First layer.
    pub inner: Linear<B>,
    /// Second layer, into the LM's width.
    pub outer: Linear<B>,
}

impl<B: Backend> Translation<B> {
    /// Xavier-uniform.
    pub fn init(hidden: usize, config: &DiffusionConfig, rng: &mut ChaCha8Rng, device: &B::Device) -> Self {
        Self {
            inner: Linear::xavier(config.dim, config.translation_hidden, rng, device),
            outer: Linear::xavier(config.translation_hidden, hidden, rng, device),
        }
    }

    /// The same layers with their weights packed for the CPU's decoding kernels.
    pub fn packed(self) -> Self {
        Self { inner: self.inner.packed(WeightFormat::F32), outer: self.outer.packed(WeightFormat::F32) }
    }

    /// `x_t` rescaled to unit variance, `[rows, d]`, to `[rows, H]`.
    pub fn forward(&self, scaled: Tensor<B, 2>) -> Tensor<B, 2> {
        self.outer.forward(silu(self.inner.forward(scaled)))
    }
}
