//! Kernels for training on the CPU: products of large matrices, and what happens between them, forward and backward.
//!
//! burn's CPU backend reads and writes memory once for every elementary operation and keeps what its graph may need. These
//! kernels take whole steps of a block (a norm with its modulation, a gate, attention, the loss) in one pass over the data,
//! on all threads, and leave it to the caller what is kept for the way back. Every number is f32. The results follow from
//! the inputs alone: no sum depends on how the threads share the work.
//!
//! All matrices are row-major; `rows` are tokens, `width` their numbers.

mod attention;
mod kernel;
mod loss;
mod product;
mod right;
mod rows;

pub use attention::{Heads, Sequence, attend, attend_backward, attend_backward_all};
pub use kernel::{multiply_right, multiply_right_biased};
pub use loss::cross_entropy_in_place;
pub use product::{View, multiply};
pub use right::{Products, Right};
pub use rows::{
    Modulated, add, add_column_sums, add_norm_weight_gradient, gate_branch, gate_branch_backward, norm, norm_backward,
    rotate, silu, silu_backward, swiglu, swiglu_backward,
};

/// Defines a function whose body is compiled for every instruction set (see [`super::lanes::dispatch`]); plain loops in it
/// become vector instructions.
macro_rules! vectorised {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident<$life:lifetime>($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $visibility fn $name<$life>($($argument: $type),*) {
            struct Work<$life> {
                $($argument: $type,)*
                _life: std::marker::PhantomData<&$life ()>,
            }
            impl<$life> $crate::cpu::lanes::KernelOnce for Work<$life> {
                #[inline(always)]
                fn run(self) {
                    let Self { $($argument,)* _life } = self;
                    $body
                }
            }
            $crate::cpu::lanes::dispatch_once(Work { $($argument,)* _life: std::marker::PhantomData });
        }
    };
}
use vectorised;

/// Rows that one thread takes at a time, so that a piece is worth handing out and stays in its cache.
fn piece(width: usize) -> usize {
    (1usize << 14).div_ceil(width.max(1)).max(1)
}

/// `e^x` for x in [-87, 88]; beyond, the value at the nearer end; NaN for NaN. The same polynomial as
/// [`super::lanes::exp`], written so that compilers turn loops over it into vector instructions.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, coefficient);
    }
    let p = p.mul_add(r * r, r + 1.0);
    p * f32::from_bits((((n as i32) + 127) << 23) as u32)
}

/// The logistic function.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Sums sixteen at a time and those in a fixed order, so that a compiler may use vector registers.
#[inline(always)]
fn sum_of(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0f32; LANES];
    let whole = count / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    for (lane, sum) in sums.iter_mut().enumerate().take(count - whole) {
        *sum += term(whole + lane);
    }
    let mut lanes = LANES;
    while lanes > 1 {
        lanes /= 2;
        for lane in 0..lanes {
            sums[lane] += sums[lane + lanes];
        }
    }
    sums[0]
}

#[cfg(test)]
pub(super) mod tests {
    /// Numbers in `[-1, 1)` without structure.
    pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / 2f32.powi(31) - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Compares a gradient with central differences of `f` in double precision sums.
    pub(crate) fn check_gradient(x: &[f32], gradient: &[f32], f: impl Fn(&[f32]) -> f64) {
        let step = 1e-2f32;
        for i in (0..x.len()).step_by(x.len().div_ceil(23).max(1)) {
            let mut moved = x.to_vec();
            moved[i] = x[i] + step;
            let up = f(&moved);
            moved[i] = x[i] - step;
            let slope = (up - f(&moved)) / (2.0 * f64::from(step));
            let error = (slope - f64::from(gradient[i])).abs();
            assert!(error < 2e-3 * (1.0 + slope.abs()), "number {i}: {} against {slope}", gradient[i]);
        }
    }

    #[test]
    fn exponentials_are_the_libraries() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let (found, expected) = (f64::from(super::exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 3e-7, "e^{x}: {found}");
        }
        assert!(super::exp(f32::NAN).is_nan());
    }
}
