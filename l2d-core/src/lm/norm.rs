//! RMS normalisation.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor};

use super::weights::host_values;
use crate::cpu::DecodeOps;

/// `RMS(x) = x / sqrt(mean(x^2) + eps)` over the last axis of `x: [rows, width]`, computed in f32 whatever the compute
/// type (half precision overflows in `x^2`).
pub fn rms_normalise<B: Backend>(x: Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let x = if half { x.cast(FloatDType::F32) } else { x };
    let rms = (x.clone().square().mean_dim(1) + eps).sqrt(); // [rows, 1]
    let y = x / rms;
    if half { y.cast(dtype) } else { y }
}

/// `RMS(x) * weight`.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[width]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    pub eps: f64,
    /// The weight on the host, where the CPU's decoding kernels compute the norm.
    #[module(skip)]
    host: Option<Vec<f32>>,
}

impl<B: Backend> RmsNorm<B> {
    /// A norm with the given weight, `[width]`.
    pub fn new(weight: Tensor<B, 1>, eps: f64) -> Self {
        Self { weight: Param::from_tensor(weight), eps, host: None }
    }

    /// The same norm, computed by the CPU's decoding kernels.
    pub fn packed(self) -> Self {
        let host = Some(self.host.unwrap_or_else(|| host_values(self.weight.val())));
        Self { host, ..self }
    }

    /// `RMS(x) * (weight + scale) + shift`. `x: [rows, width]` and the same out; `scale` and `shift` are `[rows, width]` or
    /// `[1, width]`.
    pub fn forward_modulated(&self, x: Tensor<B, 2>, scale: &Tensor<B, 2>, shift: &Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.host {
            None => {
                let weight = self.weight.val().unsqueeze() + scale.clone();
                rms_normalise(x, self.eps) * weight + shift.clone()
            }
            Some(weight) => B::packed_rms_norm(x, weight, self.eps, Some([scale.clone(), shift.clone()])),
        }
    }

    /// `x: [rows, width]`, same shape out.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.host {
            None => rms_normalise(x, self.eps) * self.weight.val().unsqueeze(),
            Some(weight) => B::packed_rms_norm(x, weight, self.eps, None),
        }
    }
}
