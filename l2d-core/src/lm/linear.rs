//! A linear layer and its low-rank adaptation.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;

use crate::init;

/// `y = x W + b`, with `W` stored `[in, out]` and contiguous: the layout in which every backend multiplies few rows
/// fastest.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[in, out]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Low-rank adaptation of this layer, when the base LM itself is finetuned with LoRA.
    pub lora: Option<Lora<B>>,
}

impl<B: Backend> Linear<B> {
    /// A layer with the given weights, `weight: [in, out]`, `bias: [out]`.
    pub fn new(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Self {
        Self { weight: Param::from_tensor(weight), bias: bias.map(Param::from_tensor), lora: None }
    }

    /// Xavier-uniform weights and zero biases.
    pub fn xavier(inputs: usize, outputs: usize, rng: &mut ChaCha8Rng, device: &B::Device) -> Self {
        Self::new(init::xavier_uniform(inputs, outputs, rng, device), Some(Tensor::zeros([outputs], device)))
    }

    /// `x: [rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let adapted = self.lora.as_ref().map(|lora| lora.forward(x.clone()));
        let mut y = x.matmul(self.weight.val());
        if let Some(bias) = &self.bias {
            y = y + bias.val().unsqueeze();
        }
        match adapted {
            Some(delta) => y + delta,
            None => y,
        }
    }

    /// `[in, out]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.shape().dims()
    }
}

/// Low-rank adaptation: adds `(alpha / r) (x A) B` to a frozen layer's output. Contributes nothing while `B = 0`.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// `[in, r]`.
    pub a: Param<Tensor<B, 2>>,
    /// `[r, out]`.
    pub b: Param<Tensor<B, 2>>,
    /// `alpha / r`.
    pub scale: f64,
}

impl<B: Backend> Lora<B> {
    /// `A` from N(0, 1/r) (standard deviation `1/r`, as the reference does), `B = 0`.
    pub fn init(
        inputs: usize,
        outputs: usize,
        rank: usize,
        alpha: f64,
        rng: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Self {
        Self {
            a: Param::from_tensor(init::normal([inputs, rank], 1.0 / rank as f64, rng, device)),
            b: Param::from_tensor(Tensor::zeros([rank, outputs], device)),
            scale: alpha / rank as f64,
        }
    }

    /// The correction alone: `x: [rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        // Scaling the narrow middle costs rows * r instead of rows * out.
        (x.matmul(self.a.val()) * self.scale).matmul(self.b.val())
    }

    /// The dense correction `(alpha / r) A B`, `[in, out]`, for merging into a weight.
    pub fn delta(&self) -> Tensor<B, 2> {
        (self.a.val() * self.scale).matmul(self.b.val())
    }
}
