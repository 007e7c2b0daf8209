//! Rotary position embedding in the Hugging Face layout: pairs are `(i, i + head_dim / 2)`, not neighbours.

use std::f64::consts::PI;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

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

    /// Cosines and sines at the given positions, row-major `[batch, rows]`.
    pub fn table<B: Backend>(&self, positions: &[Vec<usize>], device: &B::Device) -> RopeTable<B> {
        let (batch, rows, half) = (positions.len(), positions.first().map_or(0, Vec::len), self.inv_freq.len());
        let angles = positions.iter().flatten().flat_map(|&p| self.inv_freq.iter().map(move |f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos(), a.sin())).unzip();
        let tensor = |values| Tensor::from_data(TensorData::new(values, [batch, 1, rows, half]), device);
        RopeTable { cos: tensor(cos), sin: tensor(sin) }
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

/// Rotation angles of a set of rows.
#[derive(Debug, Clone)]
pub struct RopeTable<B: Backend> {
    /// `[batch, 1, rows, head_dim / 2]`.
    pub cos: Tensor<B, 4>,
    /// `[batch, 1, rows, head_dim / 2]`.
    pub sin: Tensor<B, 4>,
}

impl<B: Backend> RopeTable<B> {
    /// Rotates `x: [batch, heads, rows, head_dim]`, same shape out.
    pub fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let half = x.dims()[3] / 2;
        let low = x.clone().narrow(3, 0, half);
        let high = x.narrow(3, half, half);
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let rotated_low = low.clone() * cos.clone() - high.clone() * sin.clone();
        let rotated_high = high * cos + low * sin;
        Tensor::cat(vec![rotated_low, rotated_high], 3)
    }
}
