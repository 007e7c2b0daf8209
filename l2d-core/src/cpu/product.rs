//! `y = x W` for packed `W`.

use super::blocks::{SUPER, bits_bytes};
use super::lanes::{Kernel, LANES, Lanes, dispatch};
use super::packed::{BLOCK, COLUMNS, LowRank, PackedFormat, PackedMatrix};
use super::threads::{self, Shared};

/// Multiply-adds below which a second thread is not worth its call.
const ONE_THREAD: usize = 1 << 15;

/// See [`PackedMatrix::multiply_adapted`].
pub(super) fn multiply(
    x: &[f32],
    weights: &PackedMatrix,
    low_rank: Option<LowRank<'_>>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let (inputs, outputs) = (weights.inputs(), weights.outputs());
    let rows = x.len().checked_div(inputs).unwrap_or(0);
    assert_eq!(x.len(), rows * inputs, "whole rows of {inputs} numbers");
    assert!(bias.is_none_or(|bias| bias.len() == outputs), "a bias for each output");
    let narrow = low_rank.map(|low_rank| {
        let LowRank { a, b, scale } = low_rank;
        assert!(a.inputs() == inputs && b.inputs() == a.outputs() && b.outputs() == outputs, "factors of {weights:?}");
        assert_eq!(b.format(), PackedFormat::F32);
        let mut narrow = multiply(x, a, None, None);
        narrow.iter_mut().for_each(|value| *value *= scale);
        (narrow, b)
    });
    let mut y = vec![0f32; rows * outputs];
    let panels = weights.panels();
    let piece = |panels: std::ops::Range<usize>, y: Shared<f32>| {
        dispatch(&Panels { x, rows, weights, panels, narrow: narrow.as_ref().map(|(x, b)| (&x[..], *b)), bias, y });
    };
    let shared = Shared::new(&mut y);
    let threads = threads::count();
    if threads == 1 || rows * inputs * outputs < ONE_THREAD || panels == 1 {
        piece(0..panels, shared);
    } else {
        // A few pieces a thread, so that one that was interrupted holds nobody up.
        let size = panels.div_ceil(4 * threads);
        threads::run(panels.div_ceil(size), |i| piece(i * size..((i + 1) * size).min(panels), shared));
    }
    y
}

/// The product for some panels of outputs.
struct Panels<'a> {
    x: &'a [f32],
    rows: usize,
    weights: &'a PackedMatrix,
    panels: std::ops::Range<usize>,
    /// `(x A) scale`, `[rows, r]`, and `B`.
    narrow: Option<(&'a [f32], &'a PackedMatrix)>,
    bias: Option<&'a [f32]>,
    /// `[rows, outputs]`; this kernel writes its panels' columns.
    y: Shared<f32>,
}

impl Kernel for Panels<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // Rows are spread evenly: 13 as 7 and 6, not as 12 and 1.
        let groups = self.rows.div_ceil(L::MAX_ROWS).max(1);
        for panel in self.panels.clone() {
            let mut row = 0;
            for group in 0..groups {
                let count = (self.rows - row).div_ceil(groups - group);
                // SAFETY: the caller's; `row + count <= rows`.
                unsafe {
                    match count {
                        1 => self.tile::<L, 1>(panel, row),
                        2 => self.tile::<L, 2>(panel, row),
                        3 => self.tile::<L, 3>(panel, row),
                        4 => self.tile::<L, 4>(panel, row),
                        5 => self.tile::<L, 5>(panel, row),
                        6 => self.tile::<L, 6>(panel, row),
                        7 => self.tile::<L, 7>(panel, row),
                        8 => self.tile::<L, 8>(panel, row),
                        9 => self.tile::<L, 9>(panel, row),
                        10 => self.tile::<L, 10>(panel, row),
                        11 => self.tile::<L, 11>(panel, row),
                        12 => self.tile::<L, 12>(panel, row),
                        _ => {}
                    }
                }
                row += count;
            }
        }
    }
}

impl Panels<'_> {
    /// One panel for `R` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const R: usize>(&self, panel: usize, row: usize) {
        if R > L::MAX_ROWS {
            return;
        }
        let (inputs, outputs) = (self.weights.inputs(), self.weights.outputs());
        // SAFETY: rows `row .. row + R` exist; a panel has the bytes its format says.
        unsafe {
            let x = self.x.as_ptr().add(row * inputs);
            let w = self.weights.panel(panel);
            let mut sums = Sums { sums: [[L::splat(0.0); 2]; R], x, stride: inputs };
            decode(&mut sums, self.weights.format(), inputs, w);
            if let Some((narrow, b)) = self.narrow {
                let rank = b.inputs();
                let mut more = Sums { x: narrow.as_ptr().add(row * rank), stride: rank, ..sums };
                decode_f32(&mut more, rank, b.panel(panel).cast());
                sums = more;
            }
            let first = panel * COLUMNS;
            let width = (outputs - first).min(COLUMNS);
            for (r, sum) in sums.sums.into_iter().enumerate() {
                let to = self.y.get().add((row + r) * outputs + first);
                if width == COLUMNS && self.bias.is_none() {
                    sum[0].store(to);
                    sum[1].store(to.add(LANES));
                } else {
                    let mut values = [0f32; COLUMNS];
                    sum[0].store(values.as_mut_ptr());
                    sum[1].store(values.as_mut_ptr().add(LANES));
                    for (column, value) in values[..width].iter().enumerate() {
                        to.add(column).write(*value + self.bias.map_or(0.0, |bias| bias[first + column]));
                    }
                }
            }
        }
    }
}

/// Takes a panel's weights, input by input.
trait Sink<L: Lanes>: Copy {
    /// The 32 weights of one input.
    ///
    /// # Safety
    /// As for [`Lanes`], and what the implementation's pointers ask for.
    unsafe fn take(&mut self, input: usize, weights: [L; 2]);
}

/// `sums += x[.., input] * weights`, the rows of `x` lying `stride` apart.
#[derive(Clone, Copy)]
struct Sums<L, const R: usize> {
    sums: [[L; 2]; R],
    x: *const f32,
    stride: usize,
}

impl<L: Lanes, const R: usize> Sink<L> for Sums<L, R> {
    #[inline(always)]
    unsafe fn take(&mut self, input: usize, weights: [L; 2]) {
        for (row, sum) in self.sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let x = L::splat(*self.x.add(row * self.stride + input));
                sum[0] = x.fma(weights[0], sum[0]);
                sum[1] = x.fma(weights[1], sum[1]);
            }
        }
    }
}

/// Writes the weights to rows of a dense matrix, `stride` apart.
#[derive(Clone, Copy)]
struct Store {
    to: *mut f32,
    stride: usize,
    /// Columns that there are; fewer than 32 in the last panel.
    width: usize,
}

impl<L: Lanes> Sink<L> for Store {
    #[inline(always)]
    unsafe fn take(&mut self, input: usize, weights: [L; 2]) {
        // SAFETY: the caller's.
        unsafe {
            let to = self.to.add(input * self.stride);
            if self.width == COLUMNS {
                weights[0].store(to);
                weights[1].store(to.add(LANES));
            } else {
                let mut values = [0f32; COLUMNS];
                weights[0].store(values.as_mut_ptr());
                weights[1].store(values.as_mut_ptr().add(LANES));
                std::ptr::copy_nonoverlapping(values.as_ptr(), to, self.width);
            }
        }
    }
}

/// Hands a panel of any format to a sink, each weight as the f32 that a decoder of the whole matrix would give.
#[inline(always)]
unsafe fn decode<L: Lanes>(sink: &mut impl Sink<L>, format: PackedFormat, inputs: usize, w: *const u8) {
    // SAFETY: the caller's: a panel has the bytes its format says.
    unsafe {
        match format {
            PackedFormat::F32 => decode_f32(sink, inputs, w.cast()),
            PackedFormat::Bf16 => decode_half(sink, inputs, w.cast(), |from| L::load_bf16(from)),
            PackedFormat::F16 => decode_half(sink, inputs, w.cast(), |from| L::load_f16(from)),
            PackedFormat::Q8_0 => decode_q8(sink, inputs, w),
            PackedFormat::Q4_1 => decode_blocks::<L, 0>(sink, inputs, w),
            PackedFormat::Q5_1 => decode_blocks::<L, 1>(sink, inputs, w),
            PackedFormat::Q4K => decode_super::<L, 0>(sink, inputs, w),
            PackedFormat::Q5K => decode_super::<L, 1>(sink, inputs, w),
            PackedFormat::Q6K => decode_q6(sink, inputs, w),
        }
    }
}

#[inline(always)]
unsafe fn decode_f32<L: Lanes>(sink: &mut impl Sink<L>, inputs: usize, w: *const f32) {
    let mut local = *sink;
    for input in 0..inputs {
        // SAFETY: the caller's.
        unsafe {
            let w = w.add(input * COLUMNS);
            local.take(input, [L::load(w), L::load(w.add(LANES))]);
        }
    }
    *sink = local;
}

#[inline(always)]
unsafe fn decode_half<L: Lanes>(sink: &mut impl Sink<L>, inputs: usize, w: *const u16, load: impl Fn(*const u16) -> L) {
    let mut local = *sink;
    for input in 0..inputs {
        // SAFETY: the caller's.
        unsafe {
            let w = w.add(input * COLUMNS);
            local.take(input, [load(w), load(w.add(LANES))]);
        }
    }
    *sink = local;
}

#[inline(always)]
unsafe fn decode_q8<L: Lanes>(sink: &mut impl Sink<L>, inputs: usize, w: *const u8) {
    let mut local = *sink;
    for block in 0..inputs / BLOCK {
        // SAFETY: the caller's.
        unsafe {
            let w = w.add(block * PackedFormat::Q8_0.block().1);
            let scales = load_halves(w);
            let quants = w.add(2 * COLUMNS).cast::<i8>();
            for input in 0..BLOCK {
                let quants = quants.add(input * COLUMNS);
                // Rounded as a decoder of the whole matrix rounds.
                let weights = [L::load_i8(quants).mul(scales[0]), L::load_i8(quants.add(LANES)).mul(scales[1])];
                local.take(block * BLOCK + input, weights);
            }
        }
    }
    *sink = local;
}

/// `scale * q + least` for the `count` inputs from `first` on, which share scales, with `q` of 4 bits and `PLANES` more, as
/// [`put_bits`](super::blocks::put_bits) lays them out. A decoder of the whole matrix rounds the product and the sum; the
/// product is exact in f32 (at most 24 bits), so fusing the two rounds alike.
#[inline(always)]
unsafe fn decode_bits<L: Lanes, const PLANES: usize>(
    sink: &mut impl Sink<L>,
    first: usize,
    bits: *const u8,
    count: usize,
    scales: [L; 2],
    least: [L; 2],
) {
    // SAFETY: the caller's.
    unsafe {
        let planes = bits.add(count * COLUMNS / 2).cast::<u32>();
        for input in 0..count {
            let (mut low, mut high) = L::load_nibbles(bits.add(input * COLUMNS / 2));
            for plane in 0..PLANES {
                let word = u32::from_le(planes.add(input * PLANES + plane).read_unaligned());
                let worth = (16 << plane) as f32;
                low = low.add_where(word as u16, worth);
                high = high.add_where((word >> 16) as u16, worth);
            }
            sink.take(first + input, [low.fma(scales[0], least[0]), high.fma(scales[1], least[1])]);
        }
    }
}

/// 32 half-precision numbers.
#[inline(always)]
unsafe fn load_halves<L: Lanes>(from: *const u8) -> [L; 2] {
    // SAFETY: the caller's.
    unsafe { [L::load_f16(from.cast()), L::load_f16(from.cast::<u16>().add(LANES))] }
}

/// 32 signed bytes, multiplied by `factors`.
#[inline(always)]
unsafe fn load_scaled<L: Lanes>(from: *const u8, factors: [L; 2]) -> [L; 2] {
    let from = from.cast::<i8>();
    // SAFETY: the caller's.
    unsafe { [L::load_i8(from).mul(factors[0]), L::load_i8(from.add(LANES)).mul(factors[1])] }
}

#[inline(always)]
unsafe fn decode_blocks<L: Lanes, const PLANES: usize>(sink: &mut impl Sink<L>, inputs: usize, w: *const u8) {
    let mut local = *sink;
    let size = 4 * COLUMNS + bits_bytes(BLOCK, PLANES);
    for block in 0..inputs / BLOCK {
        // SAFETY: the caller's.
        unsafe {
            let w = w.add(block * size);
            let (scales, least) = (load_halves(w), load_halves(w.add(2 * COLUMNS)));
            decode_bits::<L, PLANES>(&mut local, block * BLOCK, w.add(4 * COLUMNS), BLOCK, scales, least);
        }
    }
    *sink = local;
}

#[inline(always)]
unsafe fn decode_super<L: Lanes, const PLANES: usize>(sink: &mut impl Sink<L>, inputs: usize, w: *const u8) {
    let mut local = *sink;
    let group_size = 2 * COLUMNS + bits_bytes(BLOCK, PLANES);
    let groups = SUPER / BLOCK;
    for block in 0..inputs / SUPER {
        // SAFETY: the caller's.
        unsafe {
            let w = w.add(block * (4 * COLUMNS + groups * group_size));
            let minus = L::splat(-1.0);
            let (scale, least) = (load_halves::<L>(w), load_halves::<L>(w.add(2 * COLUMNS)));
            let least = [least[0].mul(minus), least[1].mul(minus)];
            for group in 0..groups {
                let w = w.add(4 * COLUMNS + group * group_size);
                let (scales, least) = (load_scaled(w, scale), load_scaled(w.add(COLUMNS), least));
                let first = block * SUPER + group * BLOCK;
                decode_bits::<L, PLANES>(&mut local, first, w.add(2 * COLUMNS), BLOCK, scales, least);
            }
        }
    }
    *sink = local;
}

#[inline(always)]
unsafe fn decode_q6<L: Lanes>(sink: &mut impl Sink<L>, inputs: usize, w: *const u8) {
    const GROUP: usize = 16;
    let mut local = *sink;
    let group_size = COLUMNS + bits_bytes(GROUP, 2);
    for block in 0..inputs / SUPER {
        // SAFETY: the caller's.
        unsafe {
            let w = w.add(block * PackedFormat::Q6K.block().1);
            let scale = load_halves::<L>(w);
            for group in 0..SUPER / GROUP {
                let w = w.add(2 * COLUMNS + group * group_size);
                let scales = load_scaled(w, scale);
                let centre = L::splat(-32.0);
                let least = [scales[0].mul(centre), scales[1].mul(centre)];
                let first = block * SUPER + group * GROUP;
                decode_bits::<L, 2>(&mut local, first, w.add(COLUMNS), GROUP, scales, least);
            }
        }
    }
    *sink = local;
}

/// One panel's weights as f32, to rows `stride` apart.
struct Unpack<'a> {
    weights: &'a PackedMatrix,
    panel: usize,
    /// The first column's place in the first row.
    to: Shared<f32>,
    stride: usize,
    /// Columns to write.
    width: usize,
}

impl Kernel for Unpack<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let mut store = Store { to: self.to.get(), stride: self.stride, width: self.width };
        // SAFETY: whoever made this has seen to it that there is room.
        unsafe {
            decode::<L>(&mut store, self.weights.format(), self.weights.inputs(), self.weights.panel(self.panel));
        }
    }
}

/// Writes all weights as f32 to `out: [inputs, outputs]`, on all threads. See [`PackedMatrix::unpack`].
pub(super) fn unpack(weights: &PackedMatrix, out: &mut [f32]) {
    let outputs = weights.outputs();
    assert_eq!(out.len(), weights.inputs() * outputs, "room for {weights:?}");
    let out = Shared::new(out);
    threads::run(weights.panels(), |panel| {
        let first = panel * COLUMNS;
        // SAFETY: within the matrix; no two panels share a column.
        let to = unsafe { out.at(first) };
        dispatch(&Unpack { weights, panel, to, stride: outputs, width: (outputs - first).min(COLUMNS) });
    });
}

/// Writes one panel's weights as f32 to `out: [inputs, 32]`, zeros where the matrix has no more columns.
pub(super) fn unpack_panel(weights: &PackedMatrix, panel: usize, out: &mut [f32]) {
    assert_eq!(out.len(), weights.inputs() * COLUMNS, "room for a panel of {weights:?}");
    dispatch(&Unpack { weights, panel, to: Shared::new(out), stride: COLUMNS, width: COLUMNS });
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{BlockKind, Blocks};
    use super::super::lanes::for_each_instruction_set;
    use super::super::packed::WeightFormat;
    use super::*;

    /// Numbers in `[-1, 1)` without structure.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / 2f32.powi(31) - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// The definition: fused sums over the inputs in order, then those of the correction, then the bias.
    fn reference(x: &[f32], dense: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
        let mut y = Vec::new();
        for row in x.chunks_exact(inputs) {
            y.extend((0..outputs).map(|column| {
                row.iter().enumerate().fold(0f32, |sum, (i, &x)| x.mul_add(dense[i * outputs + column], sum))
            }));
        }
        y
    }

    #[test]
    fn products_are_the_same_bits_for_any_number_of_rows_threads_and_instructions() {
        for (inputs, outputs) in [(32, 1), (64, 32), (96, 33), (576, 200), (7, 65)] {
            let dense = numbers(inputs * outputs, 1);
            let x = numbers(27 * inputs, 2);
            for format in WeightFormat::ALL {
                let packed = PackedMatrix::from_columns(&dense, inputs, outputs, format);
                let kept = packed.dense();
                let tolerance = match packed.format() {
                    PackedFormat::F32 => 0.0,
                    PackedFormat::Bf16 => 4e-3,
                    PackedFormat::F16 => 5e-4,
                    PackedFormat::Q8_0 => 5e-3,
                    PackedFormat::Q4_1 => 7e-2,
                    other => panic!("nothing is rounded to {other}"),
                };
                assert!(dense.iter().zip(&kept).all(|(a, b)| (a - b).abs() <= tolerance), "{packed:?}");
                let expected = reference(&x, &kept, inputs, outputs);
                for_each_instruction_set(|set| {
                    for rows in (1..=27).step_by(2) {
                        let y = packed.multiply(&x[..rows * inputs]);
                        assert_eq!(y, expected[..rows * outputs], "{packed:?}, {rows} rows, {set:?}");
                    }
                });
            }
        }
    }

    #[test]
    fn a_weight_that_is_no_number_stays_none_in_every_format() {
        for format in WeightFormat::ALL {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut dense = numbers(64 * 33, 1);
                dense[40 * 33 + 32] = bad;
                let packed = PackedMatrix::from_columns(&dense, 64, 33, format);
                let y = packed.multiply(&[1.0; 64]);
                assert!(!y[32].is_finite() && y[..32].iter().all(|x| x.is_finite()), "{format} {bad}");
            }
        }
    }

    #[test]
    fn corrections_and_biases_are_added() {
        let (inputs, outputs, rank, rows) = (64, 70, 5, 3);
        let (dense, a, b) = (numbers(inputs * outputs, 1), numbers(inputs * rank, 2), numbers(rank * outputs, 3));
        let (x, bias) = (numbers(rows * inputs, 4), numbers(outputs, 5));
        let pack =
            |values: &[f32], inputs, outputs| PackedMatrix::from_columns(values, inputs, outputs, WeightFormat::F32);
        let (w, a_packed, b_packed) = (pack(&dense, inputs, outputs), pack(&a, inputs, rank), pack(&b, rank, outputs));
        let low_rank = LowRank { a: &a_packed, b: &b_packed, scale: 0.5 };
        let y = w.multiply_adapted(&x, Some(low_rank), Some(&bias));
        let narrow: Vec<f32> = reference(&x, &a, inputs, rank).iter().map(|x| x * 0.5).collect();
        for row in 0..rows {
            for column in 0..outputs {
                let all: f64 = (0..inputs)
                    .map(|i| f64::from(x[row * inputs + i]) * f64::from(dense[i * outputs + column]))
                    .chain((0..rank).map(|i| f64::from(narrow[row * rank + i]) * f64::from(b[i * outputs + column])))
                    .sum::<f64>()
                    + f64::from(bias[column]);
                assert!((f64::from(y[row * outputs + column]) - all).abs() < 1e-5);
            }
        }
    }

    /// Blocks of `kind` with bytes without structure, but for scales and minima that are finite numbers.
    fn some_blocks(kind: BlockKind, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = numbers(count * kind.bytes(), 9).iter().map(|x| (x * 127.0) as i8 as u8).collect();
        let halves: &[usize] = match kind {
            BlockKind::Q4_0 | BlockKind::Q5_0 | BlockKind::Q8_0 => &[0],
            BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4K | BlockKind::Q5K => &[0, 2],
            BlockKind::Q6K => &[208],
        };
        for block in bytes.chunks_exact_mut(kind.bytes()) {
            for &at in halves {
                block[at + 1] = 0x2c | (block[at + 1] & 0x83);
            }
        }
        bytes
    }

    #[test]
    fn blocks_of_a_file_are_kept_to_the_bit() {
        use anamnesis::remember::gguf::dequantize_gguf_blocks;
        use anamnesis::{F32Out, GgufType};

        let kinds = [
            (BlockKind::Q4_0, GgufType::Q4_0),
            (BlockKind::Q4_1, GgufType::Q4_1),
            (BlockKind::Q5_0, GgufType::Q5_0),
            (BlockKind::Q5_1, GgufType::Q5_1),
            (BlockKind::Q8_0, GgufType::Q8_0),
            (BlockKind::Q4K, GgufType::Q4_K),
            (BlockKind::Q5K, GgufType::Q5_K),
            (BlockKind::Q6K, GgufType::Q6_K),
        ];
        for (kind, stored) in kinds {
            let (inputs, outputs) = (512, 40);
            let bytes = some_blocks(kind, outputs * inputs / kind.numbers());
            let mut expected = Vec::new();
            dequantize_gguf_blocks::<F32Out, _>(&bytes, stored, outputs * inputs, |block| {
                expected.extend(block.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)));
                Ok(())
            })
            .unwrap();
            let packed = PackedMatrix::from_blocks(&Blocks { kind, bytes }, outputs, inputs).unwrap();
            let dense = packed.dense();
            for output in 0..outputs {
                for input in 0..inputs {
                    assert_eq!(
                        dense[input * outputs + output],
                        expected[output * inputs + input],
                        "{kind:?} {output} {input}"
                    );
                }
            }
            let x = numbers(13 * inputs, 3);
            let expected = reference(&x, &dense, inputs, outputs);
            for_each_instruction_set(|set| {
                for rows in [1, 2, 5, 13] {
                    let y = packed.multiply(&x[..rows * inputs]);
                    assert_eq!(y, expected[..rows * outputs], "{packed:?}, {rows} rows, {set:?}");
                }
            });
        }
    }

    #[test]
    fn blocks_beyond_half_precision_are_not_packed() {
        for (kind, largest) in [(BlockKind::Q4_0, 8188.0), (BlockKind::Q5_0, 4094.0)] {
            for (scale, fits) in [(largest, true), (-largest, true), (2.0 * largest, false), (f32::INFINITY, false)] {
                let mut bytes = some_blocks(kind, 2);
                bytes[kind.bytes()..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                let packed = PackedMatrix::from_blocks(&Blocks { kind, bytes }, 1, 64);
                assert_eq!(packed.is_some(), fits, "{kind:?} {scale}");
            }
        }
    }
}
