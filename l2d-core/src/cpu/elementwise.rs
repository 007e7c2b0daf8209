//! What happens to activations between products.

use super::lanes::{Kernel, LANES, Lanes, dispatch, exp};

/// `SiLU(gate) * up`, one number for each.
pub(crate) fn gated(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len());
    let mut out = vec![0f32; gate.len()];
    dispatch(&Gated { gate, up, out: super::threads::Shared::new(&mut out) });
    out
}

struct Gated<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: super::threads::Shared<f32>,
}

impl Kernel for Gated<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let gate_and_up = self.gate.chunks(LANES).zip(self.up.chunks(LANES));
        for (block, (gate, up)) in gate_and_up.enumerate() {
            // SAFETY: whole vectors are read and written in place, the last one through buffers.
            unsafe {
                let to = self.out.get().add(block * LANES);
                if gate.len() == LANES {
                    gated_vector::<L>(gate.as_ptr(), up.as_ptr(), to);
                } else {
                    let (mut a, mut b, mut y) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
                    a[..gate.len()].copy_from_slice(gate);
                    b[..up.len()].copy_from_slice(up);
                    gated_vector::<L>(a.as_ptr(), b.as_ptr(), y.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(y.as_ptr(), to, gate.len());
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn gated_vector<L: Lanes>(gate: *const f32, up: *const f32, to: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let x = L::load(gate);
        let one = L::splat(1.0);
        // `exp` clamps NaN away; the product with `x` brings it back.
        let sigmoid = one.div(one.add(exp(x.mul(L::splat(-1.0)))));
        x.mul(sigmoid).mul(L::load(up)).store(to);
    }
}

/// `RMS(x) * weight` for each row of `x: [rows, width]`, with `weight: [width]`, or `RMS(x) * (weight + scale) + shift` with
/// `scale` and `shift` of one row for all or of a row each.
pub(crate) fn normalised(x: &[f32], weight: &[f32], eps: f64, modulation: Option<(&[f32], &[f32])>) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0f32; x.len()];
    for (row, (x, y)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
        // Sixteen sums side by side, added up in a fixed order: what vector registers do, wherever there are any.
        let mut sums = [0f32; LANES];
        for x in x.chunks(LANES) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += x * x;
            }
        }
        let mut lanes = LANES;
        while lanes > 1 {
            lanes /= 2;
            for lane in 0..lanes {
                sums[lane] += sums[lane + lanes];
            }
        }
        let rms = (sums[0] / width as f32 + eps as f32).sqrt();
        match modulation {
            None => y.iter_mut().zip(x).zip(weight).for_each(|((y, x), w)| *y = x / rms * w),
            Some((scale, shift)) => {
                let at = if scale.len() == width { 0 } else { row * width };
                let (scale, shift) = (&scale[at..at + width], &shift[at..at + width]);
                for ((((y, x), w), scale), shift) in y.iter_mut().zip(x).zip(weight).zip(scale).zip(shift) {
                    *y = x / rms * (w + scale) + shift;
                }
            }
        }
    }
    out
}

/// Rotates pairs `(i, i + half)` of every head of `x: [rows, heads * 2 half]` by the row's angles, whose cosines and sines
/// are `[rows, half]`.
pub(crate) fn rotated(x: &[f32], cos: &[f32], sin: &[f32], rows: usize, half: usize) -> Vec<f32> {
    let width = x.len() / rows.max(1);
    let mut out = vec![0f32; x.len()];
    for row in 0..rows {
        let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
        let heads = x[row * width..(row + 1) * width].chunks_exact(2 * half);
        for (x, y) in heads.zip(out[row * width..(row + 1) * width].chunks_exact_mut(2 * half)) {
            let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
            for i in 0..half {
                y1[i] = x1[i] * cos[i] - x2[i] * sin[i];
                y2[i] = x2[i] * cos[i] + x1[i] * sin[i];
            }
        }
    }
    out
}

/// `e^((logit - largest) / temperature)` for every logit; 0 for minus infinity.
pub fn softmax_weights(logits: &[f32], largest: f32, temperature: f64) -> Vec<f32> {
    let mut out = vec![0f32; logits.len()];
    let inverse = (1.0 / temperature).min(f64::from(f32::MAX)) as f32;
    dispatch(&Weights { logits, largest, inverse, out: super::threads::Shared::new(&mut out) });
    out
}

struct Weights<'a> {
    logits: &'a [f32],
    largest: f32,
    inverse: f32,
    out: super::threads::Shared<f32>,
}

impl Kernel for Weights<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        for (block, logits) in self.logits.chunks(LANES).enumerate() {
            let mut buffer = [f32::NEG_INFINITY; LANES];
            buffer[..logits.len()].copy_from_slice(logits);
            // SAFETY: a whole vector in a buffer.
            unsafe {
                let shifted = L::load(buffer.as_ptr()).add(L::splat(-self.largest)).mul(L::splat(self.inverse));
                exp(shifted).store(buffer.as_mut_ptr());
            }
            for (lane, &logit) in logits.iter().enumerate() {
                // Too far below to count: `exp` ends at e^-87.
                let negligible = (logit - self.largest) * self.inverse < -86.0;
                // SAFETY: one number for each logit.
                unsafe { self.out.get().add(block * LANES + lane).write(if negligible { 0.0 } else { buffer[lane] }) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::for_each_instruction_set;
    use super::*;

    #[test]
    fn gates_and_weights_are_the_formula_on_every_machine() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) / 5.5).collect();
        let up: Vec<f32> = (0..1003).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for_each_instruction_set(|set| {
            let found = (gated(&x, &up), softmax_weights(&x, x[1002], 0.7));
            for i in 0..x.len() {
                let (x64, last) = (f64::from(x[i]), f64::from(x[1002]));
                let expected = x64 / (1.0 + (-x64).exp()) * f64::from(up[i]);
                assert!((f64::from(found.0[i]) - expected).abs() <= expected.abs() * 1e-6 + 1e-30, "{set:?} {}", x[i]);
                let expected = ((x64 - last) / 0.7).exp();
                assert!((f64::from(found.1[i]) - expected).abs() <= expected * 2e-5 + 1e-35, "{set:?} {}", x[i]);
            }
            assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{set:?}");
        });
        assert!(gated(&[f32::NAN], &[1.0])[0].is_nan());
        assert_eq!(softmax_weights(&[0.0, f32::NEG_INFINITY], 0.0, 1.0), [1.0, 0.0]);
    }

    #[test]
    fn a_norm_is_its_row_alone() {
        let x: Vec<f32> = (0..3 * 37).map(|i| ((i * 31 % 17) as f32 - 8.0) / 3.0).collect();
        let weight: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 37.0).collect();
        let (scale, shift) = (vec![0.5f32; 37], vec![-0.25f32; 37]);
        let plain = normalised(&x, &weight, 1e-5, None);
        let modulated = normalised(&x, &weight, 1e-5, Some((&scale, &shift)));
        for row in 0..3 {
            let part = row * 37..(row + 1) * 37;
            assert_eq!(plain[part.clone()], normalised(&x[part.clone()], &weight, 1e-5, None));
            let mean = x[part.clone()].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 37.0;
            for i in part {
                let unit = f64::from(x[i]) / (mean + 1e-5).sqrt();
                let w = f64::from(weight[i % 37]);
                assert!((f64::from(plain[i]) - unit * w).abs() < 1e-6);
                assert!((f64::from(modulated[i]) - (unit * (w + 0.5) - 0.25)).abs() < 1e-6);
            }
        }
    }
}
