//! Products with a packed right operand: tiles of up to 12 rows and 32 columns whose sums stay in registers.

use rayon::prelude::*;

use super::super::lanes::{Kernel, LANES, Lanes, dispatch};
use super::super::packed::COLUMNS;
use super::super::threads::Shared;
use super::right::{Right, Word, left_rows};

/// Steps of depth that are gone through at a time: twelve rows of the left operand then stay in the first cache.
const DEPTH: usize = 512;
/// Panels that are gone through for each twelve rows: so many stay in the second cache.
const PANELS: usize = 8;
/// Rows of one piece of work.
const ROWS: usize = 240;

/// `out = factor * x b`, or `out += factor * x b` where `accumulate`, for `x: [rows, depth]` and `out: [rows, columns]`. The
/// sum over the depth is in order, whatever the threads.
///
/// # Panics
/// If the sizes do not fit.
pub fn multiply_right(out: &mut [f32], x: &[f32], b: &Right, factor: f32, accumulate: bool) {
    multiply_blocks(out, x, b, None, factor, accumulate);
}

/// `out = x b + bias`, with `bias: [columns]`.
///
/// # Panics
/// As [`multiply_right`].
pub fn multiply_right_biased(out: &mut [f32], x: &[f32], b: &Right, bias: &[f32]) {
    assert_eq!(bias.len(), b.columns, "a bias for each column");
    multiply_blocks(out, x, b, Some(bias), 1.0, false);
}

fn multiply_blocks(out: &mut [f32], x: &[f32], b: &Right, bias: Option<&[f32]>, factor: f32, accumulate: bool) {
    let rows = x.len().checked_div(b.depth).unwrap_or(0);
    assert!(x.len() == rows * b.depth && out.len() == rows * b.columns, "[{} numbers] times {b:?}", x.len());
    let steps = b.word.steps(b.depth);
    let mut rounded = Vec::new();
    let left = if b.word == Word::F32 {
        x.as_ptr().cast::<u32>()
    } else {
        rounded.resize(rows * steps, 0u32);
        let piece = super::piece(b.depth);
        rounded
            .par_chunks_mut(piece * steps)
            .zip(x.par_chunks(piece * b.depth))
            .for_each(|(words, x)| left_rows(words, x, b.depth, b.word));
        rounded.as_ptr()
    };
    let (panels, left) = (b.columns.div_ceil(COLUMNS), Shared::new_from(left.cast_mut()));
    let out = Shared::new(out);
    // Several pieces for each thread, so that one which was interrupted holds nobody up.
    let group = PANELS.min(panels.div_ceil(2 * rayon::current_num_threads())).max(1);
    let row_chunk = rows.div_ceil(rows.div_ceil(ROWS).max(1)).next_multiple_of(12).max(12);
    let pieces: Vec<(usize, usize)> = (0..panels)
        .step_by(group)
        .flat_map(|panel| (0..rows).step_by(row_chunk).map(move |row| (panel, row)))
        .collect();
    let work = |&(panel, row): &(usize, usize)| {
        let product = Product {
            left: left.get(),
            b,
            out,
            steps,
            panels: panel..panels.min(panel + group),
            rows: row..rows.min(row + row_chunk),
            bias,
            factor,
            accumulate,
        };
        if b.word == Word::Pair { product.run_bf16() } else { dispatch(&product) }
    };
    if rows * steps * b.columns < 1 << 16 {
        pieces.iter().for_each(work);
    } else {
        pieces.par_iter().for_each(work);
    }
}

/// The product for some panels and rows.
struct Product<'a> {
    /// `[rows, steps]` words.
    left: *const u32,
    b: &'a Right,
    out: Shared<f32>,
    steps: usize,
    panels: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
    bias: Option<&'a [f32]>,
    factor: f32,
    accumulate: bool,
}

/// One tile's place.
#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    panel: usize,
    first_step: usize,
    steps: usize,
}

/// Calls the method `$tile` for a number of rows, 1 to 12.
macro_rules! by_rows {
    ($count:expr, $self:ident, $tile:ident, [$($generic:ty)?], $place:expr) => {
        match $count {
            1 => $self.$tile::<$($generic,)? 1>($place),
            2 => $self.$tile::<$($generic,)? 2>($place),
            3 => $self.$tile::<$($generic,)? 3>($place),
            4 => $self.$tile::<$($generic,)? 4>($place),
            5 => $self.$tile::<$($generic,)? 5>($place),
            6 => $self.$tile::<$($generic,)? 6>($place),
            7 => $self.$tile::<$($generic,)? 7>($place),
            8 => $self.$tile::<$($generic,)? 8>($place),
            9 => $self.$tile::<$($generic,)? 9>($place),
            10 => $self.$tile::<$($generic,)? 10>($place),
            11 => $self.$tile::<$($generic,)? 11>($place),
            _ => $self.$tile::<$($generic,)? 12>($place),
        }
    };
}

/// Goes through the tiles of a product, of at most `$most` rows. A macro, because a closure would not be compiled for the
/// instructions of the function it stands in.
macro_rules! for_tiles {
    ($product:expr, $most:expr, |$tile:ident, $count:ident| $body:expr) => {
        let product = $product;
        for first_step in (0..product.steps).step_by(DEPTH) {
            let steps = DEPTH.min(product.steps - first_step);
            let mut row = product.rows.start;
            let groups = product.rows.len().div_ceil($most);
            for group in 0..groups {
                // Rows are spread evenly: 13 as 7 and 6, not as 12 and 1.
                let $count = (product.rows.end - row).div_ceil(groups - group);
                for panel in product.panels.clone() {
                    let $tile = Tile { row, panel, first_step, steps };
                    $body;
                }
                row += $count;
            }
        }
    };
}

impl Product<'_> {
    /// The first words of a tile's left and right operand.
    #[inline(always)]
    unsafe fn operands(&self, tile: Tile) -> (*const u32, *const u32) {
        let right = self.b.panels().as_ptr();
        // SAFETY: the tile's row, panel and step exist.
        unsafe {
            let left = self.left.add(tile.row * self.steps + tile.first_step);
            (left, right.add(tile.panel * self.b.panel_words() + tile.first_step * COLUMNS))
        }
    }

    /// Puts a tile's sums in their places.
    #[inline(always)]
    unsafe fn store<const R: usize>(&self, tile: Tile, sums: &[[f32; COLUMNS]; R]) {
        let first = tile.panel * COLUMNS;
        let width = COLUMNS.min(self.b.columns - first);
        let add = self.accumulate || tile.first_step > 0;
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: the rows and columns of this piece, which no other writes.
            let to = unsafe {
                std::slice::from_raw_parts_mut(self.out.get().add((tile.row + r) * self.b.columns + first), width)
            };
            if let (Some(bias), false) = (self.bias, add) {
                to.iter_mut().zip(sums).zip(&bias[first..]).for_each(|((y, sum), bias)| *y = sum + bias);
                continue;
            }
            match (add, self.factor == 1.0) {
                (false, true) => to.copy_from_slice(&sums[..width]),
                (false, false) => to.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum * self.factor),
                (true, true) => to.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
                (true, false) => to.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum * self.factor),
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_f32<L: Lanes, const R: usize>(&self, tile: Tile) {
        if R > L::MAX_ROWS {
            return;
        }
        // SAFETY: `R` rows from the tile's on, its panel and its steps exist.
        unsafe {
            let (left, right) = self.operands(tile);
            let (left, right) = (left.cast::<f32>(), right.cast::<f32>());
            let mut sums = [[L::splat(0.0); 2]; R];
            for step in 0..tile.steps {
                let w = right.add(step * COLUMNS);
                let w = [L::load(w), L::load(w.add(LANES))];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = L::splat(*left.add(r * self.steps + step));
                    sum[0] = x.fma(w[0], sum[0]);
                    sum[1] = x.fma(w[1], sum[1]);
                }
            }
            let mut values = [[0f32; COLUMNS]; R];
            for (values, sum) in values.iter_mut().zip(sums) {
                sum[0].store(values.as_mut_ptr());
                sum[1].store(values.as_mut_ptr().add(LANES));
            }
            self.store(tile, &values);
        }
    }
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: the caller's; tiles lie within the operands.
        unsafe {
            for_tiles!(self, L::MAX_ROWS, |tile, count| by_rows!(count, self, tile_f32, [L], tile));
        }
    }
}

/// Whether this machine multiplies pairs of bfloat16.
pub(super) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
impl Product<'_> {
    fn run_bf16(&self) {
        // SAFETY: pairs are only made where the processor has the instructions.
        unsafe { self.run_avx512() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run_avx512(&self) {
        // SAFETY: tiles lie within the operands; the instructions are there.
        unsafe {
            for_tiles!(self, 12, |tile, count| by_rows!(count, self, tile_bf16, [], tile));
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile_bf16<const R: usize>(&self, tile: Tile) {
        use core::arch::x86_64::{
            __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
            _mm512_storeu_ps,
        };
        // SAFETY: `R` rows from the tile's on, its panel and its steps exist.
        unsafe {
            let pairs = |words: __m512i| -> __m512bh { std::mem::transmute(words) };
            let (left, right) = self.operands(tile);
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            for step in 0..tile.steps {
                let w = right.add(step * COLUMNS);
                let w = [pairs(_mm512_loadu_si512(w.cast())), pairs(_mm512_loadu_si512(w.add(LANES).cast()))];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = pairs(_mm512_set1_epi32(*left.add(r * self.steps + step) as i32));
                    sum[0] = _mm512_dpbf16_ps(sum[0], x, w[0]);
                    sum[1] = _mm512_dpbf16_ps(sum[1], x, w[1]);
                }
            }
            let mut values = [[0f32; COLUMNS]; R];
            for (values, sum) in values.iter_mut().zip(sums) {
                _mm512_storeu_ps(values.as_mut_ptr(), sum[0]);
                _mm512_storeu_ps(values.as_mut_ptr().add(LANES), sum[1]);
            }
            self.store(tile, &values);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Product<'_> {
    fn run_bf16(&self) {
        unreachable!("pairs are only made where the processor has the instructions")
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::lanes::for_each_instruction_set;
    use super::super::super::packed::{PackedMatrix, WeightFormat};
    use super::super::tests::numbers;
    use super::super::{Products, View};
    use super::*;

    fn reference(x: &[f32], b: &[f32], depth: usize, columns: usize) -> Vec<f64> {
        let mut y = Vec::new();
        for row in x.chunks_exact(depth) {
            y.extend((0..columns).map(|c| -> f64 {
                row.iter().enumerate().map(|(k, x)| f64::from(*x) * f64::from(b[k * columns + c])).sum()
            }));
        }
        y
    }

    #[test]
    fn products_are_the_definition_for_any_size_and_layout() {
        for (rows, depth, columns) in [(1, 7, 5), (13, 64, 32), (31, 1100, 70), (500, 33, 65), (25, 576, 600)] {
            let (x, b) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
            let transposed: Vec<f32> =
                (0..columns).flat_map(|c| (0..depth).map(move |k| (k, c))).map(|(k, c)| b[k * columns + c]).collect();
            let weights = PackedMatrix::from_columns(&b, depth, columns, WeightFormat::F32);
            let on_side = PackedMatrix::from_columns(&transposed, columns, depth, WeightFormat::F32);
            let expected = reference(&x, &b, depth, columns);
            for (products, tolerance) in [(Products::F32, 2e-6), (Products::Bf16, 8e-3)] {
                let mut first: Option<Vec<f32>> = None;
                let mut right = Right::default();
                let mut check = |right: &Right, layout: &str| {
                    let mut y = vec![1.0; rows * columns];
                    multiply_right(&mut y, &x, right, 2.0, true);
                    for (found, expected) in y.iter().zip(&expected) {
                        let error = (f64::from(*found) - 1.0 - 2.0 * expected).abs();
                        assert!(error < tolerance * (depth as f64).sqrt().max(4.0), "{layout} {right:?}: {error}");
                    }
                    assert_eq!(first.get_or_insert_with(|| y.clone()), &y, "{layout} {right:?}");
                    let bias = numbers(columns, 3);
                    multiply_right_biased(&mut y, &x, right, &bias);
                    y.iter_mut().enumerate().for_each(|(i, y)| *y -= bias[i % columns]);
                    assert!((f64::from(y[0]) - expected[0]).abs() < tolerance * (depth as f64).sqrt().max(4.0));
                };
                right.pack(View::new(&b, columns), products);
                check(&right, "rows");
                right.pack(View::new(&transposed, depth).t(), products);
                check(&right, "columns");
                right.pack_weights(&weights, products);
                check(&right, "weights");
                right.pack_weights_transposed(&on_side, products);
                check(&right, "weights on their side");
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (x, b) = (numbers(29 * 77, 1), numbers(77 * 40, 2));
        let mut right = Right::default();
        right.pack(View::new(&b, 40), Products::F32);
        let mut all = Vec::new();
        for_each_instruction_set(|_| {
            let mut y = vec![0.0; 29 * 40];
            // Small enough to stay on this thread, whose choice of instructions counts.
            multiply_right(&mut y[..7 * 40], &x[..7 * 77], &right, 1.0, false);
            all.push(y);
        });
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn a_number_that_is_none_shows() {
        for products in [Products::F32, Products::Bf16] {
            let mut b = numbers(64 * 32, 2);
            b[5 * 32 + 3] = f32::NAN;
            let mut right = Right::default();
            right.pack(View::new(&b, 32), products);
            let mut y = vec![0.0; 32];
            multiply_right(&mut y, &numbers(64, 1), &right, 1.0, false);
            assert!(y[3].is_nan() && y[4].is_finite(), "{products:?}");
        }
    }
}
