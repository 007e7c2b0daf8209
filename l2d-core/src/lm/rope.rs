//! Rotary position embedding in the Hugging Face layout: pairs are `(i, i + head_dim / 2)`, not neighbours.

use std::f64::consts::PI;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::config::{LmConfig, RopeScaling};

/// The rotary frequencies of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// `head_dim / 2` inverse frequencies, after any scaling.
    pub inv_freq: Vec<f32>,
}

impl Rope {
    /// Inverse frequencies `theta^(-2i / head_dim)`, stretched as the config says.
    pub fn new(config: &LmConfig) -> Self {
        let half = config.head_dim / 2;
        let inv_freq = (0..half)
            .map(|i| {
                // The reference divides and raises in f32; the same roundings keep long positions in step with it.
                let exponent = (2 * i) as f32 / config.head_dim as f32;
                let freq = 1.0 / (config.rope_theta as f32).powf(exponent);
                match config.rope_scaling {
                    RopeScaling::None => freq,
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                        llama3_frequency(
                            freq as f64,
                            factor,
                            low_freq_factor,
                            high_freq_factor,
                            original_max_positions as f64,
                        ) as f32
                    }
                }
            })
            .collect();
        Self { inv_freq }
    }

    /// Cosines and sines of the angles at the given positions, `[positions, head_dim / 2]` each.
    pub fn angles(&self, positions: impl Iterator<Item = usize>) -> (Vec<f32>, Vec<f32>) {
        positions
            .flat_map(|position| self.inv_freq.iter().map(move |f| (position as f32 * f).sin_cos()))
            .map(|(sin, cos)| (cos, sin))
            .unzip()
    }

    /// The rotation of `heads` heads at the given positions, row-major `[batch][rows]`.
    pub fn table<B: Backend>(&self, positions: &[Vec<usize>], heads: usize, device: &B::Device) -> RopeTable<B> {
        let half = self.inv_freq.len();
        let (size, rows) = (2 * half, positions.iter().map(Vec::len).sum());
        let (mut cos, mut sin) = (Vec::with_capacity(rows * heads * size), Vec::with_capacity(rows * heads * size));
        for &position in positions.iter().flatten() {
            let (cosines, sines): (Vec<f32>, Vec<f32>) =
                self.inv_freq.iter().map(|f| (position as f32 * f).sin_cos()).map(|(sin, cos)| (cos, sin)).unzip();
            for _ in 0..2 * heads {
                cos.extend_from_slice(&cosines);
                sin.extend_from_slice(&sines);
            }
        }
        let mut swap = vec![0f32; size * size];
        for i in 0..half {
            swap[(half + i) * size + i] = -1.0;
            swap[i * size + half + i] = 1.0;
        }
        let tensor = |values, shape| Tensor::from_data(TensorData::new(values, shape), device);
        RopeTable {
            cos: tensor(cos, [rows, heads * size]),
            sin: tensor(sin, [rows, heads * size]),
            swap: tensor(swap, [size, size]),
        }
    }
}

/// Llama 3.1's frequency rule: wavelengths longer than `original / low` are stretched by `factor`, those shorter than
/// `original / high` kept, and those between interpolated linearly in `original / wavelength`.
fn llama3_frequency(freq: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let wavelength = 2.0 * PI / freq;
    if wavelength < original / high {
        freq
    } else if wavelength > original / low {
        freq / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * freq / factor + smooth * freq
    }
}

/// The rotation of a set of rows.
///
/// `(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)` is `x * cos + (x S) * sin` with `S` the matrix that swaps the halves of a
/// head and negates the second: all three products run over contiguous memory, which slices of halves do not, and
/// multiplying by 0 and 1 rounds nothing.
#[derive(Debug, Clone)]
pub struct RopeTable<B: Backend> {
    /// `[rows, heads * head_dim]`.
    pub cos: Tensor<B, 2>,
    /// `[rows, heads * head_dim]`.
    pub sin: Tensor<B, 2>,
    /// `S`, `[head_dim, head_dim]`.
    swap: Tensor<B, 2>,
}

impl<B: Backend> RopeTable<B> {
    /// Rotates `x: [rows, heads * head_dim]`, same shape out.
    pub fn rotate(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let ([rows, width], [size, _]) = (x.dims(), self.swap.dims());
        let swapped = x.clone().reshape([rows * width / size, size]).matmul(self.swap.clone()).reshape([rows, width]);
        x * self.cos.clone() + swapped * self.sin.clone()
    }

    /// The same rotation in another number format.
    pub fn cast(self, dtype: DType) -> Self {
        Self { cos: self.cos.cast(dtype), sin: self.sin.cast(dtype), swap: self.swap.cast(dtype) }
    }
}
