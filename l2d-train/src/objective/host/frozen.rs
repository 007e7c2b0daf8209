//! The frozen base on the host: its weights in the format they are kept in, one block's at a time as f32, and its main path.

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use l2d_core::config::LmConfig;
use l2d_core::cpu::PackedMatrix;
use l2d_core::cpu::dense::{Heads, Products, Right, Sequence, add, attend, norm, rotate, swiglu};
use l2d_core::lm::{Linear, Lm, host_values};

use super::buffers::Buffers;
use super::layers::Frozen;

/// What the objective needs of the base at any time: everything but the large matrices.
#[derive(Debug)]
pub(super) struct Base {
    blocks: Vec<Small>,
    /// `[H]`.
    pub(super) final_norm: Vec<f32>,
    pub(super) heads: Heads,
    /// The LM head `[H, V]`, and on its side.
    pub(super) head: [Right; 2],
    products: Products,
}

/// The small parameters of a block.
#[derive(Debug)]
struct Small {
    attention_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    /// Of query, key, value, output, gate, up, down.
    biases: [Option<Vec<f32>>; 7],
}

/// The large matrices of one block, ready for products: query, key, value, output, gate, up, down.
#[derive(Debug, Default)]
pub(super) struct Weights([Right; 7]);

/// Which way a block's matrices are to be multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Inputs to outputs, all of them.
    Forward,
    /// Inputs to outputs, in the layers that the diffusion path has versions of.
    ForwardDiffusion,
    /// Gradients of outputs to those of inputs, in all layers.
    Backward,
    /// The same in the layers that the diffusion path has versions of.
    BackwardDiffusion,
}

/// One frozen block.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrozenBlock<'a> {
    pub(super) attention_norm: &'a [f32],
    pub(super) mlp_norm: &'a [f32],
    pub(super) query: Frozen<'a>,
    pub(super) key: Frozen<'a>,
    pub(super) value: Frozen<'a>,
    pub(super) output: Frozen<'a>,
    pub(super) gate: Frozen<'a>,
    pub(super) up: Frozen<'a>,
    pub(super) down: Frozen<'a>,
}

fn linears<B: Backend>(lm: &Lm<B>, layer: usize) -> [&Linear<B>; 7] {
    let block = &lm.blocks[layer];
    let mlp = &block.mlp;
    [&block.query, &block.key, &block.value, &block.output, &mlp.gate, &mlp.up, &mlp.down]
}

impl Base {
    pub(super) fn of<B: Backend>(lm: &Lm<B>, products: Products) -> Self {
        let LmConfig { num_heads, num_kv_heads, head_dim, .. } = lm.config;
        let small = |layer: usize| Small {
            attention_norm: host_values(lm.blocks[layer].attention_norm.weight.val()),
            mlp_norm: host_values(lm.blocks[layer].mlp_norm.weight.val()),
            biases: linears(lm, layer).map(|linear| linear.bias.as_ref().map(|bias| host_values(bias.val()))),
        };
        let mut head = [Right::default(), Right::default()];
        let packed = packed(lm.head.as_ref().expect("a packed model has a head"));
        head[0].pack_weights(packed, products);
        head[1].pack_weights_transposed(packed, products);
        Self {
            blocks: (0..lm.blocks.len()).map(small).collect(),
            final_norm: host_values(lm.final_norm.weight.val()),
            heads: Heads { queries: num_heads, keys: num_kv_heads, size: head_dim },
            head,
            products,
        }
    }

    /// The layer's block, its large matrices packed into `weights` for one direction.
    pub(super) fn block<'a, B: Backend>(
        &'a self,
        lm: &Lm<B>,
        layer: usize,
        weights: &'a mut Weights,
        direction: Direction,
    ) -> FrozenBlock<'a> {
        let all = linears(lm, layer);
        for (i, linear) in all.iter().enumerate() {
            // The diffusion path uses the main path's keys and values.
            let main_only = i == 1 || i == 2;
            match direction {
                Direction::ForwardDiffusion | Direction::BackwardDiffusion if main_only => {}
                Direction::Forward | Direction::ForwardDiffusion => {
                    weights.0[i].pack_weights(packed(linear), self.products);
                }
                Direction::Backward | Direction::BackwardDiffusion => {
                    weights.0[i].pack_weights_transposed(packed(linear), self.products);
                }
            }
        }
        let small = &self.blocks[layer];
        let weights = &*weights;
        let frozen = |i: usize| {
            let [inputs, outputs] = all[i].shape();
            Frozen { weight: &weights.0[i], bias: small.biases[i].as_deref(), inputs, outputs }
        };
        FrozenBlock {
            attention_norm: &small.attention_norm,
            mlp_norm: &small.mlp_norm,
            query: frozen(0),
            key: frozen(1),
            value: frozen(2),
            output: frozen(3),
            gate: frozen(4),
            up: frozen(5),
            down: frozen(6),
        }
    }
}

fn packed<B: Backend>(linear: &Linear<B>) -> &PackedMatrix {
    linear.packed_weight().expect("the objective by hand is made for packed models")
}

/// Rows of the embedding: `[tokens, H]`.
pub(super) fn embed<B: Backend>(lm: &Lm<B>, tokens: &[u32]) -> Vec<f32> {
    let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    let count = ids.len();
    host_values(lm.embed(Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), &lm.device())))
}

/// Cosines and sines of rows' rotary angles, `[rows, half]` each.
#[derive(Debug)]
pub(super) struct Angles {
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    pub(super) half: usize,
}

impl FrozenBlock<'_> {
    /// One block of the main path over all tokens of all sequences: `x: [tokens, H]` becomes its output. Returns the
    /// rotated keys and the values, `[tokens, kv_heads * head_dim]` each. The last block's output is of no use but to the
    /// labelled positions.
    pub(super) fn main_forward(
        &self,
        x: &mut [f32],
        config: &LmConfig,
        heads: Heads,
        angles: &Angles,
        sequences: &[Sequence],
        buffers: &mut Buffers,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut u = buffers.take(x.len());
        norm(&mut u, x, self.attention_norm, config.rms_norm_eps, None);
        let mut queries = self.query.forward(&u, buffers);
        let mut keys = self.key.forward(&u, buffers);
        let values = self.value.forward(&u, buffers);
        rotate(&mut queries, &angles.cos, &angles.sin, angles.half, false);
        rotate(&mut keys, &angles.cos, &angles.sin, angles.half, false);
        let mut mixed = buffers.take(queries.len());
        attend(&mut mixed, &queries, &keys, &values, heads, sequences);
        let branch = self.output.forward(&mixed, buffers);
        add(x, &branch);
        [queries, mixed, branch].into_iter().for_each(|buffer| buffers.give(buffer));
        norm(&mut u, x, self.mlp_norm, config.rms_norm_eps, None);
        let (gate, up) = (self.gate.forward(&u, buffers), self.up.forward(&u, buffers));
        let mut hidden = buffers.take(gate.len());
        swiglu(&mut hidden, &gate, &up);
        let branch = self.down.forward(&hidden, buffers);
        add(x, &branch);
        [u, gate, up, hidden, branch].into_iter().for_each(|buffer| buffers.give(buffer));
        (keys, values)
    }
}
