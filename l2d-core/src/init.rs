//! Initial values of new layers, drawn on the host so that a seed means the same model on every backend.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Independent N(0, `std`^2) entries.
pub fn normal<B: Backend, const D: usize>(
    shape: [usize; D],
    std: f64,
    rng: &mut ChaCha8Rng,
    device: &B::Device,
) -> Tensor<B, D> {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            let z: f64 = StandardNormal.sample(rng);
            (z * std) as f32
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Xavier (Glorot) uniform: entries in `±sqrt(6 / (in + out))`, shape `[in, out]`.
pub fn xavier_uniform<B: Backend>(
    inputs: usize,
    outputs: usize,
    rng: &mut ChaCha8Rng,
    device: &B::Device,
) -> Tensor<B, 2> {
    let bound = (6.0 / (inputs + outputs) as f64).sqrt();
    let values: Vec<f32> = (0..inputs * outputs).map(|_| ((rng.random::<f64>() * 2.0 - 1.0) * bound) as f32).collect();
    Tensor::from_data(TensorData::new(values, [inputs, outputs]), device)
}
