//! Decoding kernels for the CPU: packed weights, matrix products over few rows, attention over a paged cache.
//!
//! burn's CPU backend is made for large tensors: a product of one row runs on one thread and below the memory's speed, and
//! its sum is ordered otherwise than that of the same row among others. These kernels are made for decoding:
//!
//! - A product reads each weight once, in the order it lies in memory, on all threads.
//! - Every number is a sum in one fixed order, whatever the number of rows, of threads, and the instruction set: a row's
//!   result is the same bits alone, in a batch, and on another computer with fused multiply-add.
//! - Quantised weights are decoded in registers to the same f32 the checkpoint reader gives, so they lose nothing that the
//!   file had not lost.
//!
//! Nothing here knows a model. Tensors enter and leave as host data, which burn's CPU backends hand over without a copy; a
//! model on a GPU has no packed weights and never comes here.

mod attention;
mod blocks;
mod elementwise;
mod lanes;
mod packed;
mod pages;
mod product;
mod threads;

pub use blocks::{BlockKind, Blocks};
pub use elementwise::softmax_weights;
pub(crate) use elementwise::{gated, normalised, rotated};
pub use packed::{LowRank, PackedFormat, PackedMatrix, WeightFormat};
pub use pages::{CacheFormat, PageShape, PagedSequence, Place, attend};

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

/// A tensor through a function of its values, row-major f32; the shape stays.
///
/// # Panics
/// If the tensor is not f32, which a model with packed weights never computes.
pub(crate) fn map<B: Backend, const D: usize>(x: Tensor<B, D>, f: impl FnOnce(&[f32]) -> Vec<f32>) -> Tensor<B, D> {
    let (device, shape, data) = (x.device(), x.dims(), x.into_data());
    let values = f(data.as_slice::<f32>().expect("packed models compute in f32"));
    Tensor::from_data(TensorData::new(values, shape), &device)
}

/// A tensor's values, row-major, as f32.
pub(crate) fn host_rows<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    crate::lm::host_values(tensor)
}
