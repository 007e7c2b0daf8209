//! The rotary scaling of Llama 3.1 and later: GGUF files hold its result, a table of divisors, not its parameters.

use std::f64::consts::PI;
use std::path::Path;

use crate::config::RawRopeScaling;
use crate::error::{Error, Result};

/// Name of the tensor: one divisor per rotary frequency, `[head_dim / 2]`.
pub(super) const TENSOR: &str = "rope_freqs.weight";

/// What every released Llama 3.1, 3.2 and 3.3 uses; only the factor (8 or 32) differs.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_MAX_POSITIONS: usize = 8192;

/// Finds the parameters whose table this is. The slowest frequency is divided by the whole factor, so the last entry
/// proposes it and all the others must confirm it.
pub(super) fn recognise(path: &Path, table: &[f32], rope_theta: f64) -> Result<RawRopeScaling> {
    let factor = f64::from(table.last().copied().unwrap_or(f32::NAN));
    let expected = divisors(factor, rope_theta, table.len());
    let fits = |(&found, &wanted): (&f32, &f64)| (f64::from(found) - wanted).abs() <= 1e-4 * wanted;
    if factor.is_finite() && factor >= 1.0 && table.iter().zip(&expected).all(fits) {
        return Ok(RawRopeScaling {
            rope_type: Some("llama3".into()),
            factor: Some(factor),
            low_freq_factor: Some(LOW_FREQ_FACTOR),
            high_freq_factor: Some(HIGH_FREQ_FACTOR),
            original_max_position_embeddings: Some(ORIGINAL_MAX_POSITIONS),
            ..RawRopeScaling::default()
        });
    }
    Err(Error::Unsupported {
        path: path.to_path_buf(),
        what: TENSOR,
        found: format!("a table of {} divisors ending in {factor}", table.len()),
        supported: "the tables of Llama 3.1 and later",
    })
}

fn divisors(factor: f64, rope_theta: f64, len: usize) -> Vec<f64> {
    let original = ORIGINAL_MAX_POSITIONS as f64;
    let divisor = |i: usize| {
        let wavelength = 2.0 * PI * rope_theta.powf(i as f64 / len as f64);
        if wavelength < original / HIGH_FREQ_FACTOR {
            1.0
        } else if wavelength > original / LOW_FREQ_FACTOR {
            factor
        } else {
            let smooth = (original / wavelength - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..len).map(divisor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_released_tables_are_recognised_and_others_refused() {
        let path = Path::new("x.gguf");
        for factor in [8.0, 32.0] {
            let mut table: Vec<f32> = divisors(factor, 500_000.0, 32).into_iter().map(|x| x as f32).collect();
            assert_eq!(table[0], 1.0);
            let scaling = recognise(path, &table, 500_000.0).unwrap();
            assert_eq!((scaling.factor, scaling.high_freq_factor), (Some(factor), Some(4.0)));
            table[10] *= 1.1;
            assert!(matches!(recognise(path, &table, 500_000.0), Err(Error::Unsupported { .. })));
        }
        assert!(recognise(path, &[], 500_000.0).is_err());
        assert!(recognise(path, &[1.0, f32::NAN], 500_000.0).is_err());
    }
}
