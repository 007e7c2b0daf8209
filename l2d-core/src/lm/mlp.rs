//! The gated MLP of a block.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;

use super::linear::Linear;
use crate::cpu::{DecodeOps, WeightFormat};

/// `SiLU(gate) * up`, by the CPU's decoding kernel where the layers are `packed` for it.
pub(crate) fn gated<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>, packed: bool) -> Tensor<B, 2> {
    if !packed {
        return silu(gate) * up;
    }
    B::packed_gated(gate, up)
}

/// `Down( SiLU(Gate(x)) * Up(x) )`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `H -> F`.
    pub gate: Linear<B>,
    /// `H -> F`.
    pub up: Linear<B>,
    /// `F -> H`.
    pub down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    /// The same layers with their weights packed for the CPU's decoding kernels.
    pub fn packed(self, format: WeightFormat) -> Self {
        Self { gate: self.gate.packed(format), up: self.up.packed(format), down: self.down.packed(format) }
    }

    /// `x: [rows, H]`, same shape out.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.down.forward(gated(self.gate.forward(x.clone()), self.up.forward(x), self.gate.is_packed()))
    }
}
