//! Norms, gates and activations of rows, forward and backward.

use rayon::prelude::*;

use super::{exp, piece, sigmoid, sum_of, vectorised};

/// Scale and shift of each row's norm, which lie among the other modulations of a block.
#[derive(Debug, Clone, Copy)]
pub struct Modulated<'a> {
    /// `[rows, stride]`.
    pub values: &'a [f32],
    /// Numbers of a row of `values`.
    pub stride: usize,
    /// Where in a row the scale begins.
    pub scale: usize,
    /// Where in a row the shift begins.
    pub shift: usize,
}

/// `out = RMS(x) * weight`, or with a modulation `RMS(x) * (weight + scale) + shift`, for `x, out: [rows, width]` and
/// `weight: [width]`. Returns `1 / sqrt(mean(x^2) + eps)` of each row.
///
/// # Panics
/// If the sizes do not fit.
pub fn norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f64, modulation: Option<Modulated<'_>>) -> Vec<f32> {
    let width = weight.len();
    assert!(out.len() == x.len() && x.len().is_multiple_of(width));
    let rows = piece(width);
    let mut inverse = vec![0.0; x.len() / width];
    out.par_chunks_mut(rows * width)
        .zip(x.par_chunks(rows * width))
        .zip(inverse.par_chunks_mut(rows))
        .enumerate()
        .for_each(|(i, ((out, x), inverse))| norm_rows(out, x, inverse, weight, eps as f32, modulation, i * rows));
    inverse
}

vectorised! {
    fn norm_rows<'a>(
        out: &'a mut [f32],
        x: &'a [f32],
        inverse: &'a mut [f32],
        weight: &'a [f32],
        eps: f32,
        modulation: Option<Modulated<'a>>,
        first: usize,
    ) {
        let width = weight.len();
        for (i, ((y, x), inverse)) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(inverse).enumerate() {
            let r = 1.0 / (sum_of(width, |k| x[k] * x[k]) / width as f32 + eps).sqrt();
            *inverse = r;
            match modulation {
                None => (0..width).for_each(|k| y[k] = x[k] * r * weight[k]),
                Some(Modulated { values, stride, scale, shift }) => {
                    let row = &values[(first + i) * stride..][..stride];
                    let (scale, shift) = (&row[scale..][..width], &row[shift..][..width]);
                    (0..width).for_each(|k| y[k] = (x[k] * r).mul_add(weight[k] + scale[k], shift[k]));
                }
            }
        }
    }
}

/// The way back through [`norm`]: adds `dL/dx` to `dx` and, with a modulation, writes `dL/dscale` and `dL/dshift` to their
/// places in `dmodulation: [rows, stride]`. `dy` is `dL/dout`; `inverse` is what [`norm`] returned.
///
/// # Panics
/// If the sizes do not fit.
pub fn norm_backward(
    dx: &mut [f32],
    dmodulation: &mut [f32],
    dy: &[f32],
    x: &[f32],
    inverse: &[f32],
    weight: &[f32],
    modulation: Option<Modulated<'_>>,
) {
    let width = weight.len();
    assert!(dx.len() == x.len() && dy.len() == x.len() && x.len() == inverse.len() * width);
    let (rows, stride) = (piece(width), modulation.map_or(1, |modulation| modulation.stride));
    let inputs = |i: usize, count: usize| (&dy[i * rows * width..][..count], &x[i * rows * width..][..count]);
    let piece = |i: usize, dx: &mut [f32], dmodulation: &mut [f32]| {
        let (dy, x) = inputs(i, dx.len());
        norm_rows_backward(dx, dmodulation, dy, x, &inverse[i * rows..], weight, modulation, i * rows);
    };
    if modulation.is_none() {
        dx.par_chunks_mut(rows * width).enumerate().for_each(|(i, dx)| piece(i, dx, &mut []));
        return;
    }
    assert_eq!(dmodulation.len(), inverse.len() * stride);
    dx.par_chunks_mut(rows * width)
        .zip(dmodulation.par_chunks_mut(rows * stride))
        .enumerate()
        .for_each(|(i, (dx, dmodulation))| piece(i, dx, dmodulation));
}

vectorised! {
    fn norm_rows_backward<'a>(
        dx: &'a mut [f32],
        dmodulation: &'a mut [f32],
        dy: &'a [f32],
        x: &'a [f32],
        inverse: &'a [f32],
        weight: &'a [f32],
        modulation: Option<Modulated<'a>>,
        first: usize,
    ) {
        let width = weight.len();
        for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
            let (dy, x, r) = (&dy[i * width..][..width], &x[i * width..][..width], inverse[i]);
            match modulation {
                None => {
                    let mean = sum_of(width, |k| dy[k] * weight[k] * x[k]) * r * r / width as f32;
                    (0..width).for_each(|k| dx[k] += r * (dy[k] * weight[k] - x[k] * mean));
                }
                Some(Modulated { values, stride, scale, shift }) => {
                    let gain = &values[(first + i) * stride + scale..][..width];
                    let mean = sum_of(width, |k| dy[k] * (weight[k] + gain[k]) * x[k]) * r * r / width as f32;
                    (0..width).for_each(|k| dx[k] += r * (dy[k] * (weight[k] + gain[k]) - x[k] * mean));
                    let row = &mut dmodulation[i * stride..][..stride];
                    (0..width).for_each(|k| row[scale + k] = dy[k] * x[k] * r);
                    row[shift..][..width].copy_from_slice(dy);
                }
            }
        }
    }
}

/// Adds to `dweight: [width]` what a plain [`norm`]'s weight learns from `dy: [rows, width]`.
///
/// # Panics
/// If the sizes do not fit.
pub fn add_norm_weight_gradient(dweight: &mut [f32], dy: &[f32], x: &[f32], inverse: &[f32]) {
    let width = dweight.len();
    assert!(dy.len() == x.len() && x.len() == inverse.len() * width);
    // Each thread takes some of the columns.
    const COLUMNS: usize = 64;
    dweight.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, dweight)| {
        norm_weight_columns(dweight, dy, x, inverse, width, i * COLUMNS);
    });
}

vectorised! {
    fn norm_weight_columns<'a>(
        dweight: &'a mut [f32],
        dy: &'a [f32],
        x: &'a [f32],
        inverse: &'a [f32],
        width: usize,
        first: usize,
    ) {
        for (row, r) in inverse.iter().enumerate() {
            let at = row * width + first;
            dweight.iter_mut().zip(&dy[at..]).zip(&x[at..]).for_each(|((sum, dy), x)| *sum += dy * x * r);
        }
    }
}

/// `out = z + gate * branch` for `[rows, width]`, the gate lying from column `at` on in `modulation: [rows, stride]`.
///
/// # Panics
/// If the sizes do not fit.
pub fn gate_branch(out: &mut [f32], z: &[f32], branch: &[f32], modulation: &[f32], stride: usize, at: usize) {
    let rows = modulation.len() / stride;
    let width = z.len().checked_div(rows).unwrap_or(0);
    assert!(out.len() == z.len() && branch.len() == z.len() && z.len() == rows * width && at + width <= stride);
    out.par_chunks_mut(width).enumerate().with_min_len(piece(width)).for_each(|(row, out)| {
        let gate = &modulation[row * stride + at..][..width];
        gate_row(out, &z[row * width..][..width], &branch[row * width..][..width], gate);
    });
}

vectorised! {
    fn gate_row<'a>(out: &'a mut [f32], z: &'a [f32], branch: &'a [f32], gate: &'a [f32]) {
        for (((y, z), b), g) in out.iter_mut().zip(z).zip(branch).zip(gate) {
            *y = g.mul_add(*b, *z);
        }
    }
}

/// The way back through [`gate_branch`]: `branch` becomes `dL/dbranch = dz * gate`, and `dz * branch` goes to the gate's
/// place in `dmodulation`. (`dL/dz` is `dz` itself.)
///
/// # Panics
/// If the sizes do not fit.
pub fn gate_branch_backward(
    branch: &mut [f32],
    dmodulation: &mut [f32],
    dz: &[f32],
    modulation: &[f32],
    stride: usize,
    at: usize,
) {
    let rows = modulation.len() / stride;
    let width = dz.len().checked_div(rows).unwrap_or(0);
    assert!(branch.len() == dz.len() && dz.len() == rows * width && dmodulation.len() == modulation.len());
    branch
        .par_chunks_mut(width)
        .zip(dmodulation.par_chunks_mut(stride))
        .enumerate()
        .with_min_len(piece(width))
        .for_each(|(row, (branch, dmodulation))| {
            let gate = &modulation[row * stride + at..][..width];
            gate_row_backward(branch, &mut dmodulation[at..][..width], &dz[row * width..][..width], gate);
        });
}

vectorised! {
    fn gate_row_backward<'a>(branch: &'a mut [f32], dgate: &'a mut [f32], dz: &'a [f32], gate: &'a [f32]) {
        for (((b, dg), dz), g) in branch.iter_mut().zip(dgate).zip(dz).zip(gate) {
            *dg = dz * *b;
            *b = dz * g;
        }
    }
}

/// `out = SiLU(gate) * up`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert!(out.len() == gate.len() && gate.len() == up.len());
    let size = piece(1);
    out.par_chunks_mut(size)
        .zip(gate.par_chunks(size))
        .zip(up.par_chunks(size))
        .for_each(|((out, gate), up)| swiglu_piece(out, gate, up));
}

vectorised! {
    fn swiglu_piece<'a>(out: &'a mut [f32], gate: &'a [f32], up: &'a [f32]) {
        for ((y, g), u) in out.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid(*g) * u;
        }
    }
}

/// The way back through [`swiglu`]: with `dh = dL/dout`, `gate` becomes `dL/dgate` and `up` becomes `dL/dup`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu_backward(gate: &mut [f32], up: &mut [f32], dh: &[f32]) {
    assert!(dh.len() == gate.len() && gate.len() == up.len());
    let size = piece(1);
    gate.par_chunks_mut(size)
        .zip(up.par_chunks_mut(size))
        .zip(dh.par_chunks(size))
        .for_each(|((gate, up), dh)| swiglu_piece_backward(gate, up, dh));
}

vectorised! {
    fn swiglu_piece_backward<'a>(gate: &'a mut [f32], up: &'a mut [f32], dh: &'a [f32]) {
        for ((g, u), dh) in gate.iter_mut().zip(up).zip(dh) {
            let (x, s) = (*g, sigmoid(*g));
            *g = dh * *u * s * (1.0 + x * (1.0 - s));
            *u = dh * x * s;
        }
    }
}

/// `out = SiLU(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn silu(out: &mut [f32], x: &[f32]) {
    assert_eq!(out.len(), x.len());
    let size = piece(1);
    out.par_chunks_mut(size).zip(x.par_chunks(size)).for_each(|(out, x)| silu_piece(out, x));
}

vectorised! {
    fn silu_piece<'a>(out: &'a mut [f32], x: &'a [f32]) {
        for (y, x) in out.iter_mut().zip(x) {
            *y = x * sigmoid(*x);
        }
    }
}

/// The way back through [`silu`]: `dy`, which is `dL/dout`, becomes `dL/dx`.
///
/// # Panics
/// If the lengths differ.
pub fn silu_backward(dy: &mut [f32], x: &[f32]) {
    assert_eq!(dy.len(), x.len());
    let size = piece(1);
    dy.par_chunks_mut(size).zip(x.par_chunks(size)).for_each(|(dy, x)| silu_piece_backward(dy, x));
}

vectorised! {
    fn silu_piece_backward<'a>(dy: &'a mut [f32], x: &'a [f32]) {
        for (dy, x) in dy.iter_mut().zip(x) {
            let s = sigmoid(*x);
            *dy *= s * (1.0 + x * (1.0 - s));
        }
    }
}

/// `out += x`.
///
/// # Panics
/// If the lengths differ.
pub fn add(out: &mut [f32], x: &[f32]) {
    assert_eq!(out.len(), x.len());
    let size = piece(1);
    out.par_chunks_mut(size).zip(x.par_chunks(size)).for_each(|(out, x)| add_piece(out, x));
}

vectorised! {
    fn add_piece<'a>(out: &'a mut [f32], x: &'a [f32]) {
        out.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}

/// Adds the sum of all rows of `x: [rows, width]` to `sums: [width]`, in the rows' order.
///
/// # Panics
/// Unless `x` is whole rows.
pub fn add_column_sums(sums: &mut [f32], x: &[f32]) {
    let width = sums.len();
    assert!(x.len().is_multiple_of(width));
    // Each thread takes some of the columns.
    const COLUMNS: usize = 128;
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| column_sums(sums, x, width, i * COLUMNS));
}

vectorised! {
    fn column_sums<'a>(sums: &'a mut [f32], x: &'a [f32], width: usize, first: usize) {
        for row in x.chunks_exact(width) {
            sums.iter_mut().zip(&row[first..]).for_each(|(sum, x)| *sum += x);
        }
    }
}

/// Rotates pairs `(i, i + half)` of every head of `x: [rows, heads * 2 half]` by the row's angles, whose cosines and sines
/// are `[rows, half]`; backwards where `inverse`, which is the gradient's way back.
///
/// # Panics
/// If the sizes do not fit.
pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], half: usize, inverse: bool) {
    let rows = cos.len() / half;
    if rows == 0 {
        return;
    }
    let width = x.len() / rows;
    assert!(cos.len() == sin.len() && x.len() == rows * width && width.is_multiple_of(2 * half));
    x.par_chunks_mut(width).enumerate().with_min_len(piece(width)).for_each(|(row, x)| {
        let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
        rotate_row(x, cos, sin, if inverse { -1.0 } else { 1.0 });
    });
}

vectorised! {
    fn rotate_row<'a>(x: &'a mut [f32], cos: &'a [f32], sin: &'a [f32], sign: f32) {
        let half = cos.len();
        for head in x.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b, sin) = (first[i], second[i], sign * sin[i]);
                first[i] = a * cos[i] - b * sin;
                second[i] = b * cos[i] + a * sin;
            }
        }
    }
}

/// `e^(x - shift)` of every number; their sum.
#[inline(always)]
pub(super) fn exponentials(x: &mut [f32], shift: f32) -> f32 {
    x.iter_mut().for_each(|x| *x = exp(*x - shift));
    sum_of(x.len(), |k| x[k])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_gradient, numbers};
    use super::*;

    const WIDTH: usize = 37;
    const ROWS: usize = 1000;

    /// A loss whose gradient is `slopes`.
    fn loss(y: &[f32], slopes: &[f32]) -> f64 {
        y.iter().zip(slopes).map(|(y, s)| f64::from(*y) * f64::from(*s)).sum()
    }

    #[test]
    fn a_modulated_norms_gradients_are_its_slopes() {
        let (x, weight, slopes) = (numbers(ROWS * WIDTH, 1), numbers(WIDTH, 2), numbers(ROWS * WIDTH, 3));
        let stride = 6 * WIDTH;
        let values = numbers(ROWS * stride, 4);
        let forward = |x: &[f32], values: &[f32]| {
            let mut out = vec![0.0; x.len()];
            let modulation = Modulated { values, stride, scale: WIDTH, shift: 4 * WIDTH };
            let inverse = norm(&mut out, x, &weight, 1e-5, Some(modulation));
            (out, inverse)
        };
        let (_, inverse) = forward(&x, &values);
        let (mut dx, mut dvalues) = (vec![0.0; x.len()], vec![0.0; values.len()]);
        let modulation = Modulated { values: &values, stride, scale: WIDTH, shift: 4 * WIDTH };
        norm_backward(&mut dx, &mut dvalues, &slopes, &x, &inverse, &weight, Some(modulation));
        check_gradient(&x, &dx, |x| loss(&forward(x, &values).0, &slopes));
        check_gradient(&values, &dvalues, |values| loss(&forward(&x, values).0, &slopes));
    }

    #[test]
    fn a_plain_norms_gradient_is_its_slope() {
        let (x, weight, slopes) = (numbers(ROWS * WIDTH, 1), numbers(WIDTH, 2), numbers(ROWS * WIDTH, 3));
        let forward = |x: &[f32]| {
            let mut out = vec![0.0; x.len()];
            let inverse = norm(&mut out, x, &weight, 1e-5, None);
            (out, inverse)
        };
        let mut dx = vec![1.0; x.len()];
        norm_backward(&mut dx, &mut [], &slopes, &x, &forward(&x).1, &weight, None);
        dx.iter_mut().for_each(|dx| *dx -= 1.0);
        check_gradient(&x, &dx, |x| loss(&forward(x).0, &slopes));

        let mut dweight = vec![0.0; WIDTH];
        add_norm_weight_gradient(&mut dweight, &slopes, &x, &forward(&x).1);
        check_gradient(&weight, &dweight, |weight| {
            let mut out = vec![0.0; x.len()];
            norm(&mut out, &x, weight, 1e-5, None);
            loss(&out, &slopes)
        });
    }

    #[test]
    fn gates_and_activations_have_the_gradients_of_their_formulas() {
        let count = ROWS * WIDTH;
        let (z, branch, slopes) = (numbers(count, 1), numbers(count, 2), numbers(count, 3));
        let modulation = numbers(ROWS * 3 * WIDTH, 4);
        let forward = |branch: &[f32], modulation: &[f32]| {
            let mut out = vec![0.0; count];
            gate_branch(&mut out, &z, branch, modulation, 3 * WIDTH, WIDTH);
            loss(&out, &slopes)
        };
        let (mut dbranch, mut dmodulation) = (branch.clone(), vec![0.0; modulation.len()]);
        gate_branch_backward(&mut dbranch, &mut dmodulation, &slopes, &modulation, 3 * WIDTH, WIDTH);
        check_gradient(&branch, &dbranch, |branch| forward(branch, &modulation));
        check_gradient(&modulation, &dmodulation, |modulation| forward(&branch, modulation));

        let gated = |gate: &[f32], up: &[f32]| {
            let mut out = vec![0.0; count];
            swiglu(&mut out, gate, up);
            loss(&out, &slopes)
        };
        let (mut dgate, mut dup) = (z.clone(), branch.clone());
        swiglu_backward(&mut dgate, &mut dup, &slopes);
        check_gradient(&z, &dgate, |gate| gated(gate, &branch));
        check_gradient(&branch, &dup, |up| gated(&z, up));

        let mut dx = slopes.clone();
        silu_backward(&mut dx, &z);
        check_gradient(&z, &dx, |x| {
            let mut out = vec![0.0; count];
            silu(&mut out, x);
            loss(&out, &slopes)
        });
    }

    #[test]
    fn a_rotation_is_undone_by_its_inverse_and_keeps_lengths() {
        let (half, heads) = (4, 3);
        let x = numbers(ROWS * heads * 2 * half, 1);
        let angles = numbers(ROWS * half, 2);
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| a.sin_cos()).unzip();
        let mut y = x.clone();
        rotate(&mut y, &cos, &sin, half, false);
        assert!((y[0] - (x[0] * cos[0] - x[half] * sin[0])).abs() < 1e-6);
        assert!((y[half] - (x[half] * cos[0] + x[0] * sin[0])).abs() < 1e-6);
        rotate(&mut y, &cos, &sin, half, true);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn sums_reach_every_column() {
        let width = 300;
        let x = numbers(11 * width, 1);
        let mut sums = vec![1.0; width];
        add_column_sums(&mut sums, &x);
        let expected: f32 = (0..11).map(|row| x[row * width + 299]).sum();
        assert!((sums[299] - 1.0 - expected).abs() < 1e-5);
        let (mut z, y) = (x.clone(), numbers(x.len(), 2));
        add(&mut z, &y);
        assert_eq!(z[5], x[5] + y[5]);
    }
}
