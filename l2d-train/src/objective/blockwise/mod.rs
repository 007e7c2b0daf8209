//! Automatic differentiation block by block, for [`Recompute::Blocks`](super::Recompute::Blocks): blocks run without a graph
//! on the way there and keep their input alone; on the way back each is computed again with a graph of its own.
//!
//! A block's graph is cut at attention, whose gradient is written out and computed some queries at a time
//! ([`Context::attend_backward`](l2d_core::lm::Context::attend_backward)). Each piece is differentiated from what its
//! results' derivatives are known to be: `(result * derivative).sum()` has the gradient of the loss.

mod l2d;
mod lm;

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

/// A tensor of the inner backend as the beginning of a graph.
fn leaf<AB: AutodiffBackend, const D: usize>(x: Tensor<AB::InnerBackend, D>) -> Tensor<AB, D> {
    Tensor::from_inner(x).require_grad()
}

/// What was found for a leaf that the differentiated sum depends on.
fn found<AB: AutodiffBackend, const D: usize>(
    leaf: &Tensor<AB, D>,
    gradients: &AB::Gradients,
) -> Tensor<AB::InnerBackend, D> {
    leaf.grad(gradients).expect("the sum depends on its leaves")
}

/// The sum whose gradient is that of the loss, where `dx` is the loss's derivative by `x`.
fn linear_in<AB: AutodiffBackend, const D: usize>(x: Tensor<AB, D>, dx: Tensor<AB::InnerBackend, D>) -> Tensor<AB, 1> {
    (x * Tensor::from_inner(dx)).sum()
}
