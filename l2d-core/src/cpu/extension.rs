//! burn's `Backend`, extended by the operations of a decoding CPU: where tensors meet the kernels.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::elementwise::{gated, normalised, rotated};
use super::packed::{LowRank, PackedMatrix};
use super::pages::{PagedSequence, Place, attend};

/// Operations on packed weights and paged caches.
///
/// Every backend has them: the trait is implemented for all, so that a model that may be packed needs no bound beyond
/// `Backend`, and no library names a backend. An operation takes its tensors' host data, which burn's CPU backends hand over
/// without a copy, and runs a kernel for the instructions this machine has. On a GPU it would copy there and back: a model
/// there is left dense (dequantised when it is read) and never asks.
///
/// # Panics
/// Every operation, for a tensor that is not f32, which a packed model never computes.
pub trait DecodeOps: Backend {
    /// `x W + (x A) scale B + bias` for `x: [rows, in]`: `[rows, out]`. `bias: [out]`.
    fn packed_linear(
        x: Tensor<Self, 2>,
        weight: &PackedMatrix,
        low_rank: Option<LowRank<'_>>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let (device, rows) = (x.device(), x.dims()[0]);
        let (x, bias) = (x.into_data(), bias.map(Tensor::into_data));
        let y = weight.multiply_adapted(numbers(&x), low_rank, bias.as_ref().map(numbers));
        Tensor::from_data(TensorData::new(y, [rows, weight.outputs()]), &device)
    }

    /// `RMS(x) * weight`, or with a modulation `RMS(x) * (weight + scale) + shift`. `x: [rows, width]`, same shape out;
    /// `weight: [width]`; `scale`, `shift`: `[rows, width]` or `[1, width]`.
    fn packed_rms_norm(
        x: Tensor<Self, 2>,
        weight: &[f32],
        eps: f64,
        modulation: Option<[Tensor<Self, 2>; 2]>,
    ) -> Tensor<Self, 2> {
        let modulation = modulation.map(|both| both.map(Tensor::into_data));
        let modulation = modulation.as_ref().map(|[scale, shift]| (numbers(scale), numbers(shift)));
        map(x, |x| normalised(x, weight, eps, modulation))
    }

    /// `SiLU(gate) * up`, all three of one shape.
    fn packed_gated(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let up = up.into_data();
        map(gate, |gate| gated(gate, numbers(&up)))
    }

    /// Queries or keys `[rows, heads * head_dim]`, rotated by the angles `cos` and `sin` of each row: `[rows, head_dim / 2]`.
    fn packed_rotate(x: Tensor<Self, 2>, cos: &[f32], sin: &[f32]) -> Tensor<Self, 2> {
        let rows = x.dims()[0];
        map(x, |x| rotated(x, cos, sin, rows, cos.len() / rows.max(1)))
    }

    /// Rotated queries `[rows, heads * head_dim]` at `places`, over one layer of paged sequences; same shape out. See
    /// [`attend`].
    fn paged_attention(
        queries: Tensor<Self, 2>,
        sequences: &[PagedSequence],
        layer: usize,
        places: &[Place],
    ) -> Tensor<Self, 2> {
        map(queries, |queries| attend(sequences, layer, places, queries))
    }

    /// Writes rotated keys and values `[rows, kv_heads * head_dim]` of one layer, sequence by sequence as `places` lists them,
    /// behind what the sequences hold.
    fn paged_append(
        keys: Tensor<Self, 2>,
        values: Tensor<Self, 2>,
        sequences: &mut [PagedSequence],
        layer: usize,
        places: &[Place],
    ) {
        let width = keys.dims()[1];
        let (keys, values) = (keys.into_data(), values.into_data());
        let (keys, values) = (numbers(&keys), numbers(&values));
        let mut start = 0;
        for (b, sequence) in sequences.iter_mut().enumerate() {
            let rows = places[start..].iter().take_while(|place| place.sequence == b).count();
            let part = start * width..(start + rows) * width;
            sequence.write(layer, &keys[part.clone()], &values[part]);
            start += rows;
        }
    }
}

impl<B: Backend> DecodeOps for B {}

/// A tensor through a function of its values, row-major; the shape stays.
fn map<B: Backend>(x: Tensor<B, 2>, f: impl FnOnce(&[f32]) -> Vec<f32>) -> Tensor<B, 2> {
    let (device, shape, data) = (x.device(), x.dims(), x.into_data());
    Tensor::from_data(TensorData::new(f(numbers(&data)), shape), &device)
}

fn numbers(data: &TensorData) -> &[f32] {
    data.as_slice::<f32>().expect("packed models compute in f32")
}
