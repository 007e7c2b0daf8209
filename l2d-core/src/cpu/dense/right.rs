//! The right operand of a product, laid out for the kernel: panels of 32 columns, in each of which the 32 numbers of a step
//! lie side by side. A step is one number of depth, or two where they are rounded to 16 bits.

use rayon::prelude::*;

use super::super::packed::{COLUMNS, Line, PackedMatrix};
use super::super::threads::Shared;
use super::{View, vectorised};

/// How products are computed. Sums are f32 always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// Of f32 numbers.
    #[default]
    F32,
    /// Of numbers rounded to bfloat16, twice as fast where the processor has instructions for it (AVX512-BF16).
    Bf16,
}

/// What a 32-bit word of an operand holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Word {
    /// An f32.
    #[default]
    F32,
    /// An f32 that was rounded to bfloat16: for processors without the instructions.
    Rounded,
    /// Two bfloat16 that follow one another in depth, the first in the lower half.
    Pair,
}

impl Word {
    fn of(products: Products) -> Self {
        match products {
            Products::F32 => Self::F32,
            Products::Bf16 if super::kernel::has_bf16() => Self::Pair,
            Products::Bf16 => Self::Rounded,
        }
    }

    /// Words for `depth` numbers.
    pub(super) fn steps(self, depth: usize) -> usize {
        if self == Self::Pair { depth.div_ceil(2) } else { depth }
    }
}

/// A matrix `[depth, columns]` ready to be multiplied from the left, in memory that is used again when it is packed anew.
#[derive(Default)]
pub struct Right {
    lines: Vec<Line>,
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) word: Word,
}

impl std::fmt::Debug for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Right([{}, {}] {:?})", self.depth, self.columns, self.word)
    }
}

impl Right {
    /// Packs a matrix.
    ///
    /// # Panics
    /// Unless one of its strides is 1.
    pub fn pack(&mut self, matrix: View<'_>, products: Products) {
        let (row_stride, column_stride) = matrix.strides();
        assert!(row_stride == 1 || column_stride == 1, "rows or columns in one piece");
        self.reset(matrix.height(), matrix.width(), products);
        let (depth, columns, word) = (self.depth, self.columns, self.word);
        let data = matrix.data();
        self.fill(|first, words| {
            let width = COLUMNS.min(columns - first);
            if column_stride == 1 {
                from_rows(words, &data[first..], row_stride, depth, width, word);
            } else {
                from_columns(words, &data[first * column_stride..], column_stride, 0..depth, 0..width, word);
            }
        });
    }

    /// Packs a layer's weights `[in, out]`.
    pub fn pack_weights(&mut self, weights: &PackedMatrix, products: Products) {
        self.reset(weights.inputs(), weights.outputs(), products);
        let (depth, word) = (self.depth, self.word);
        self.fill(|first, words| {
            if word == Word::F32 {
                weights.unpack_panel(first / COLUMNS, as_numbers(words));
                return;
            }
            with_panel(weights, first / COLUMNS, |panel| from_rows(words, panel, COLUMNS, depth, COLUMNS, word));
        });
    }

    /// Packs a layer's weights on their side, `[out, in]`: for gradients on their way back through the layer.
    pub fn pack_weights_transposed(&mut self, weights: &PackedMatrix, products: Products) {
        let (inputs, outputs) = (weights.inputs(), weights.outputs());
        self.reset(outputs, inputs, products);
        let (word, size) = (self.word, self.panel_words());
        let words = Shared::new(self.words());
        // By panels of the weights: each is a band of depth in all panels here.
        (0..outputs.div_ceil(COLUMNS)).into_par_iter().for_each(|panel| {
            let band = panel * COLUMNS..outputs.min((panel + 1) * COLUMNS);
            with_panel(weights, panel, |values| {
                for first in (0..inputs).step_by(COLUMNS) {
                    let width = COLUMNS.min(inputs - first);
                    // SAFETY: a panel of this matrix; each call writes the words of its own band of depth, which no other
                    // touches: a band begins at a multiple of 32, so that pairs do not straddle two.
                    let to = unsafe { std::slice::from_raw_parts_mut(words.get().add(first / COLUMNS * size), size) };
                    from_columns_at(to, &values[first * COLUMNS..], COLUMNS, band.clone(), width, word);
                }
            });
        });
    }

    fn reset(&mut self, depth: usize, columns: usize, products: Products) {
        (self.depth, self.columns, self.word) = (depth, columns, Word::of(products));
        let lines = columns.div_ceil(COLUMNS) * self.panel_words() / 16;
        self.lines.resize(lines, Line([0; 64]));
    }

    /// Words of a panel.
    pub(super) fn panel_words(&self) -> usize {
        self.word.steps(self.depth) * COLUMNS
    }

    fn words(&mut self) -> &mut [u32] {
        let count = self.lines.len() * 16;
        // SAFETY: lines are bytes, aligned for words, sixteen words each.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), count) }
    }

    /// The words of all panels, one panel after the other.
    pub(super) fn panels(&self) -> &[u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }

    /// Fills panels, several at once; `fill(first, words)` writes the one whose first column is `first`.
    fn fill(&mut self, fill: impl Fn(usize, &mut [u32]) + Sync) {
        let size = self.panel_words();
        if size > 0 {
            self.words().par_chunks_mut(size).enumerate().for_each(|(panel, words)| fill(panel * COLUMNS, words));
        }
    }
}

/// Calls `f` with a panel of weights as f32, `[in, 32]`, in memory of this thread.
fn with_panel(weights: &PackedMatrix, panel: usize, f: impl FnOnce(&[f32])) {
    thread_local!(static PANEL: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) });
    PANEL.with_borrow_mut(|buffer| {
        buffer.resize(weights.inputs() * COLUMNS, 0.0);
        weights.unpack_panel(panel, buffer);
        f(buffer);
    });
}

fn as_numbers(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: every word is an f32 and the other way round.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// The 16 bits of a bfloat16, rounded to nearest even; NaN stays NaN.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { (bits >> 16) | 0x40 } else { rounded }
}

vectorised! {
    /// `width` columns of a matrix whose rows of depth lie `stride` apart, into a panel.
    fn from_rows<'a>(words: &'a mut [u32], data: &'a [f32], stride: usize, depth: usize, width: usize, word: Word) {
        let row = |k: usize| &data[k * stride..][..width];
        match word {
            Word::F32 | Word::Rounded => {
                for (k, step) in words.chunks_exact_mut(COLUMNS).enumerate() {
                    if word == Word::F32 {
                        step.iter_mut().zip(row(k)).for_each(|(word, x)| *word = x.to_bits());
                    } else {
                        step.iter_mut().zip(row(k)).for_each(|(word, x)| *word = bf16_bits(*x) << 16);
                    }
                    step[width..].fill(0);
                }
            }
            Word::Pair => {
                for (i, step) in words.chunks_exact_mut(COLUMNS).enumerate() {
                    let low = row(2 * i);
                    if 2 * i + 1 < depth {
                        let high = row(2 * i + 1);
                        let pairs = step.iter_mut().zip(low).zip(high);
                        pairs.for_each(|((word, a), b)| *word = bf16_bits(*a) | bf16_bits(*b) << 16);
                    } else {
                        step.iter_mut().zip(low).for_each(|(word, a)| *word = bf16_bits(*a));
                    }
                    step[width..].fill(0);
                }
            }
        }
    }
}

/// `columns` of a matrix whose columns lie `stride` apart, each in one piece, into a panel: numbers `depth` of each.
fn from_columns(
    words: &mut [u32],
    data: &[f32],
    stride: usize,
    depth: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    word: Word,
) {
    // Blocks of depth that stay in the first cache while all columns are written to them.
    const BAND: usize = 32;
    for start in depth.clone().step_by(BAND) {
        let band = start..depth.end.min(start + BAND);
        from_columns_at(words, &data[start..], stride, band, columns.len(), word);
    }
}

vectorised! {
    /// Writes the steps of `band` to a whole panel; `data` begins at the band's first number of the first column.
    fn from_columns_at<'a>(
        words: &'a mut [u32],
        data: &'a [f32],
        stride: usize,
        band: std::ops::Range<usize>,
        width: usize,
        word: Word,
    ) {
        let first = if word == Word::Pair { band.start / 2 } else { band.start };
        let steps = word.steps(band.len());
        let words = &mut words[first * COLUMNS..][..steps * COLUMNS];
        for column in 0..COLUMNS {
            if column >= width {
                (0..steps).for_each(|i| words[i * COLUMNS + column] = 0);
                continue;
            }
            let numbers = &data[column * stride..][..band.len()];
            match word {
                Word::F32 => (0..steps).for_each(|i| words[i * COLUMNS + column] = numbers[i].to_bits()),
                Word::Rounded => (0..steps).for_each(|i| words[i * COLUMNS + column] = bf16_bits(numbers[i]) << 16),
                Word::Pair => (0..steps).for_each(|i| {
                    let high = numbers.get(2 * i + 1).map_or(0, |x| bf16_bits(*x) << 16);
                    words[i * COLUMNS + column] = bf16_bits(numbers[2 * i]) | high;
                }),
            }
        }
    }
}

vectorised! {
    /// Rows of a left operand `[rows, depth]` as words `[rows, steps]`; not for f32, which are what they are.
    pub(super) fn left_rows<'a>(words: &'a mut [u32], x: &'a [f32], depth: usize, word: Word) {
        let steps = word.steps(depth);
        for (to, from) in words.chunks_exact_mut(steps).zip(x.chunks_exact(depth)) {
            if word == Word::Pair {
                let (pairs, rest) = from.as_chunks::<2>();
                to.iter_mut().zip(pairs).for_each(|(word, [a, b])| *word = bf16_bits(*a) | bf16_bits(*b) << 16);
                if let [last] = rest {
                    to[steps - 1] = bf16_bits(*last);
                }
            } else {
                to.iter_mut().zip(from).for_each(|(word, x)| *word = bf16_bits(*x) << 16);
            }
        }
    }
}
