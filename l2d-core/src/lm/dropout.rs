//! Dropout in front of a low-rank correction, the same on every backend.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

/// Which inputs of a correction are dropped, in training: each on its own with a given probability, for every row, layer and
/// channel; the others are divided by the probability that they stay (LoRA, section 5; PEFT's `lora_dropout`).
///
/// What is dropped follows from the row's seed, the layer and the channel alone: however rows are put into batches, and
/// when a block is computed a second time, it is the same.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// A channel whose 16 random bits are below this is dropped.
    threshold: u32,
    /// A seed for each row.
    rows: Arc<[u64]>,
    layer: u64,
}

impl Dropout {
    /// Dropout with a probability in [0, 1), which is rounded to a multiple of 2^-16, for rows with the given seeds.
    pub fn new(probability: f64, rows: impl Into<Arc<[u64]>>) -> Self {
        debug_assert!((0.0..1.0).contains(&probability));
        let threshold = ((probability * 65536.0).round() as u32).min(65535);
        Self { threshold, rows: rows.into(), layer: 0 }
    }

    /// The same rows in another layer: the `place`-th of block `block`.
    pub fn of_layer(&self, block: usize, place: usize) -> Self {
        Self { layer: 1 + 16 * block as u64 + place as u64, ..self.clone() }
    }

    /// What each input is multiplied with: 0, or 1 over the probability that it stays; `[rows, width]` row-major.
    pub fn factors(&self, width: usize) -> Vec<f32> {
        let mut all = vec![0.0; self.rows.len() * width];
        let kept = 65536.0 / (65536 - self.threshold) as f32;
        for (row, &seed) in all.chunks_exact_mut(width.max(1)).zip(self.rows.iter()) {
            let mut bits = SplitMix(mix(seed ^ mix(self.layer)));
            for four in row.chunks_mut(4) {
                let drawn = bits.next();
                for (i, factor) in four.iter_mut().enumerate() {
                    let lane = (drawn >> (16 * i)) as u32 & 0xffff;
                    *factor = if lane < self.threshold { 0.0 } else { kept };
                }
            }
        }
        all
    }

    /// The inputs `x: [rows, width]` that are left.
    pub fn apply<B: Backend>(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let shape: [usize; 2] = x.dims();
        let factors = TensorData::new(self.factors(shape[1]), shape);
        x.clone() * Tensor::from_data(factors, (&x.device(), x.dtype()))
    }

    /// The seed of a sequence's `row`-th row, from the sequence's own.
    pub fn row_seed(sequence: u64, row: usize) -> u64 {
        mix(sequence.wrapping_add(mix(row as u64)))
    }
}

/// Steele, Lea and Flood's SplitMix64 ("Fast splittable pseudorandom number generators", 2014): the few operations a
/// number that a mask of every layer and row can afford.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The first numbers of seed 1234567, from the reference implementation (prng.di.unimi.it/splitmix64.c).
        let mut generator = SplitMix(1234567);
        assert_eq!([generator.next(), generator.next()], [6457827717110365317, 3203168211198807973]);
    }

    #[test]
    fn as_many_are_dropped_as_asked_and_the_mean_stays() {
        let rows: Vec<u64> = (0..200).map(|row| Dropout::row_seed(7, row)).collect();
        for probability in [0.0, 0.05, 0.5] {
            let factors = Dropout::new(probability, rows.clone()).of_layer(3, 2).factors(577);
            let zeros = factors.iter().filter(|&&factor| factor == 0.0).count() as f64 / factors.len() as f64;
            let mean = factors.iter().map(|&factor| f64::from(factor)).sum::<f64>() / factors.len() as f64;
            assert!((zeros - probability).abs() < 0.006, "{zeros}");
            assert!((mean - 1.0).abs() < 0.01, "{mean}");
        }
    }

    #[test]
    fn rows_layers_and_channels_differ_and_nothing_else_matters() {
        let (a, b) = (Dropout::row_seed(1, 0), Dropout::row_seed(1, 1));
        let both = Dropout::new(0.5, vec![a, b]);
        let factors = both.factors(64);
        assert_ne!(factors[..64], factors[64..]);
        assert_eq!(Dropout::new(0.5, vec![b]).factors(64), factors[64..], "in whatever batch");
        assert_eq!(Dropout::new(0.5, vec![b]).factors(30), factors[64..94], "in whatever width");
        assert_ne!(both.of_layer(0, 0).factors(64), both.of_layer(0, 1).factors(64));
        assert_ne!(both.of_layer(0, 0).factors(64), both.of_layer(1, 0).factors(64));
    }
}
