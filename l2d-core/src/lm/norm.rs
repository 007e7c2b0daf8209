//! RMS normalisation.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor};

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
}

impl<B: Backend> RmsNorm<B> {
    /// A norm with the given weight, `[width]`.
    pub fn new(weight: Tensor<B, 1>, eps: f64) -> Self {
        Self { weight: Param::from_tensor(weight), eps }
    }

    /// `x: [rows, width]`, same shape out.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        rms_normalise(x, self.eps) * self.weight.val().unsqueeze()
    }
}
