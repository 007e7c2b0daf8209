//! A weight matrix in the order in which a product reads it.

use std::fmt;
use std::sync::Arc;

use super::blocks::{Blocks, SUPER, bits_bytes, put_bits, put_half, put_q8};
use super::product;
use super::threads::{self, Shared};

/// Output columns of a panel.
pub(super) const COLUMNS: usize = 32;

/// Inputs that share a scale in a quantised format.
pub(super) const BLOCK: usize = 32;

/// How the numbers of a packed matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32 bits a weight.
    F32,
    /// 16 bits a weight, bfloat16.
    Bf16,
    /// 16 bits a weight, IEEE half precision.
    F16,
    /// 8.5 bits: blocks of 32 signed bytes with a half-precision scale, GGUF's `Q8_0`.
    Q8_0,
    /// 5 bits: blocks of 32 four-bit numbers with a half-precision scale and minimum, GGUF's `Q4_1` (and `Q4_0`, whose
    /// minimum is -8 scales).
    Q4_1,
}

impl WeightFormat {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_1];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_1 => "q4_1",
        }
    }

    /// Whether inputs come in blocks of 32.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_1)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the numbers of a packed matrix lie in memory: one of the formats that weights can be rounded to, or what holds the
/// blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackedFormat {
    /// See [`WeightFormat::F32`].
    F32,
    /// See [`WeightFormat::Bf16`].
    Bf16,
    /// See [`WeightFormat::F16`].
    F16,
    /// See [`WeightFormat::Q8_0`].
    Q8_0,
    /// See [`WeightFormat::Q4_1`].
    Q4_1,
    /// 6 bits: as `Q4_1` with a fifth bit. Holds GGUF's `Q5_0` as well.
    Q5_1,
    /// 4.6 bits: GGUF's `Q4_K`.
    Q4K,
    /// 5.6 bits: GGUF's `Q5_K`.
    Q5K,
    /// 6.6 bits: GGUF's `Q6_K`.
    Q6K,
}

impl From<WeightFormat> for PackedFormat {
    fn from(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => Self::F32,
            WeightFormat::Bf16 => Self::Bf16,
            WeightFormat::F16 => Self::F16,
            WeightFormat::Q8_0 => Self::Q8_0,
            WeightFormat::Q4_1 => Self::Q4_1,
        }
    }
}

impl PackedFormat {
    /// Inputs that are laid out together, and the bytes they take for all columns of a panel (a multiple of 64 but for
    /// plain numbers, where a panel has a multiple of 64 as well).
    pub(super) const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, COLUMNS * 4),
            Self::Bf16 | Self::F16 => (1, COLUMNS * 2),
            // 32 half-precision scales, then for each input 32 signed bytes.
            Self::Q8_0 => (BLOCK, 2 * COLUMNS + BLOCK * COLUMNS),
            // 32 scales, 32 minima, the bits.
            Self::Q4_1 => (BLOCK, 4 * COLUMNS + bits_bytes(BLOCK, 0)),
            Self::Q5_1 => (BLOCK, 4 * COLUMNS + bits_bytes(BLOCK, 1)),
            // 32 scales of scales, 32 scales of minima, then for each 32 inputs 32 scales, 32 minima, the bits.
            Self::Q4K => (SUPER, 4 * COLUMNS + 8 * (2 * COLUMNS + bits_bytes(BLOCK, 0))),
            Self::Q5K => (SUPER, 4 * COLUMNS + 8 * (2 * COLUMNS + bits_bytes(BLOCK, 1))),
            // 32 scales of scales, then for each 16 inputs 32 scales, the bits.
            Self::Q6K => (SUPER, 2 * COLUMNS + 16 * (COLUMNS + bits_bytes(16, 2))),
        }
    }

    /// Bytes of a panel for `inputs` inputs; a multiple of 64.
    pub(super) fn panel_bytes(self, inputs: usize) -> usize {
        let (numbers, bytes) = self.block();
        inputs / numbers * bytes
    }
}

impl fmt::Display for PackedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_1 => "q5_1",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        })
    }
}

/// One cache line, so that no vector load straddles two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// A matrix `[inputs, outputs]`, read-only and cheap to clone.
///
/// Stored in panels of 32 outputs: for each input the panel's 32 weights lie side by side, so that a product streams through
/// memory and keeps 32 sums a row in registers. The last panel is filled up with zeros.
#[derive(Clone)]
pub struct PackedMatrix {
    inputs: usize,
    outputs: usize,
    format: PackedFormat,
    lines: Arc<[Line]>,
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix([{}, {}] {})", self.inputs, self.outputs, self.format)
    }
}

impl PackedMatrix {
    /// Packs weights given row by row for each output (`[outputs, inputs]`, a checkpoint's layout). Formats of fewer bits
    /// round; a quantised format takes numbers of inputs divisible by 32, and others are kept in F16 instead.
    ///
    /// # Panics
    /// Unless there are `outputs * inputs` values.
    pub fn from_rows(values: &[f32], outputs: usize, inputs: usize, format: WeightFormat) -> Self {
        assert_eq!(Some(values.len()), outputs.checked_mul(inputs), "as many values as the sizes say");
        Self::pack(|output, input| values[output * inputs + input], outputs, inputs, format)
    }

    /// Packs weights given column by column (`[inputs, outputs]`, this crate's dense layout); otherwise as
    /// [`PackedMatrix::from_rows`].
    ///
    /// # Panics
    /// Unless there are `inputs * outputs` values.
    pub fn from_columns(values: &[f32], inputs: usize, outputs: usize, format: WeightFormat) -> Self {
        assert_eq!(Some(values.len()), outputs.checked_mul(inputs), "as many values as the sizes say");
        Self::pack(|output, input| values[input * outputs + output], outputs, inputs, format)
    }

    fn pack(weight: impl Fn(usize, usize) -> f32 + Sync, outputs: usize, inputs: usize, format: WeightFormat) -> Self {
        let whole_blocks = !format.is_quantised() || inputs.is_multiple_of(BLOCK);
        if !whole_blocks {
            tracing::warn!("a matrix of {inputs} inputs is kept in f16: blocks of {format} need a multiple of {BLOCK}");
        }
        let format = if whole_blocks { format } else { WeightFormat::F16 };
        let at = |output: usize, input: usize| if output < outputs { weight(output, input) } else { 0.0 };
        Self::build(inputs, outputs, format.into(), |first, panel| match format {
            WeightFormat::F32 => {
                for (input, row) in panel.chunks_exact_mut(COLUMNS * 4).enumerate() {
                    for (column, bytes) in row.chunks_exact_mut(4).enumerate() {
                        bytes.copy_from_slice(&at(first + column, input).to_ne_bytes());
                    }
                }
            }
            WeightFormat::Bf16 => {
                for (input, row) in panel.chunks_exact_mut(COLUMNS * 2).enumerate() {
                    for (column, bytes) in row.chunks_exact_mut(2).enumerate() {
                        bytes.copy_from_slice(&half::bf16::from_f32(at(first + column, input)).to_ne_bytes());
                    }
                }
            }
            WeightFormat::F16 => {
                for (input, row) in panel.chunks_exact_mut(COLUMNS * 2).enumerate() {
                    for column in 0..COLUMNS {
                        put_half(row, column, half::f16::from_f32(at(first + column, input)));
                    }
                }
            }
            WeightFormat::Q8_0 => {
                for (block, bytes) in panel.chunks_exact_mut(PackedFormat::Q8_0.block().1).enumerate() {
                    for column in 0..COLUMNS {
                        let values: [f32; BLOCK] = std::array::from_fn(|i| at(first + column, block * BLOCK + i));
                        let largest = values.iter().fold(0f32, |a, x| a.max(x.abs()));
                        // The scale as it is stored decides the rounding, as in ggml's reference quantiser.
                        let scale = scale_of(&values, largest / 127.0);
                        let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
                        put_q8(bytes, column, scale, values.map(|x| (x * inverse).round().clamp(-127.0, 127.0) as i8));
                    }
                }
            }
            WeightFormat::Q4_1 => {
                for (block, bytes) in panel.chunks_exact_mut(PackedFormat::Q4_1.block().1).enumerate() {
                    for column in 0..COLUMNS {
                        let values: [f32; BLOCK] = std::array::from_fn(|i| at(first + column, block * BLOCK + i));
                        let (low, high) =
                            values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
                        let (scale, least) = (scale_of(&values, (high - low) / 15.0), half::f16::from_f32(low));
                        let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
                        let quant = |x: f32| ((x - least.to_f32()) * inverse).round().clamp(0.0, 15.0) as u8;
                        put_half(bytes, column, scale);
                        put_half(&mut bytes[2 * COLUMNS..], column, least);
                        put_bits(&mut bytes[4 * COLUMNS..], column, &values.map(quant), 0);
                    }
                }
            }
        })
    }

    /// Packs GGUF blocks as they are: nothing is rounded. `blocks` holds the rows of all outputs. `None` where a block's
    /// numbers are beyond what the packed format holds (see `Q4_0`): such a matrix is to be read as f32.
    ///
    /// # Panics
    /// If the bytes are not those of `outputs` rows of `inputs` numbers, which the reader of the file has checked.
    pub fn from_blocks(blocks: &Blocks, outputs: usize, inputs: usize) -> Option<Self> {
        let Blocks { kind, bytes } = blocks;
        let (numbers, size) = (kind.numbers(), kind.bytes());
        let per_row = inputs / numbers;
        let whole = outputs.checked_mul(per_row).and_then(|blocks| blocks.checked_mul(size));
        assert!(inputs.is_multiple_of(numbers) && Some(bytes.len()) == whole, "rows of whole blocks");
        if !bytes.chunks_exact(size).all(|block| kind.fits(block)) {
            return None;
        }
        let (format, columns) = (kind.format(), |first: usize| 0..COLUMNS.min(outputs - first));
        Some(Self::build(inputs, outputs, format, |first, panel| {
            for (block, to) in panel.chunks_exact_mut(format.block().1).enumerate() {
                for column in columns(first) {
                    kind.put(&bytes[((first + column) * per_row + block) * size..][..size], to, column);
                }
            }
        }))
    }

    /// Fills the panels, several at once; `fill(first, bytes)` writes the panel whose first output is `first`.
    fn build(inputs: usize, outputs: usize, format: PackedFormat, fill: impl Fn(usize, &mut [u8]) + Sync) -> Self {
        let (panels, size) = (outputs.div_ceil(COLUMNS), format.panel_bytes(inputs));
        let mut lines: Arc<[Line]> = std::iter::repeat_n(Line([0; 64]), panels * size / 64).collect();
        let memory = Arc::get_mut(&mut lines).expect("made just above");
        let memory = Shared::new(memory);
        threads::run(panels, |panel| {
            // SAFETY: panels lie one after the other, each of `size` bytes, within the lines; each is written by one call.
            let bytes = unsafe { std::slice::from_raw_parts_mut(memory.get().cast::<u8>().add(panel * size), size) };
            fill(panel * COLUMNS, bytes);
        });
        Self { inputs, outputs, format, lines }
    }

    /// Numbers a row of input has.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Numbers a row of output has.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// How the weights are stored; F16 where a quantised format was asked for and the inputs do not fit its blocks.
    pub fn format(&self) -> PackedFormat {
        self.format
    }

    /// Memory of the weights.
    pub fn bytes(&self) -> usize {
        self.lines.len() * 64
    }

    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(COLUMNS)
    }

    /// The first byte of a panel; `format.panel_bytes(inputs)` of them belong to it.
    pub(super) fn panel(&self, panel: usize) -> *const u8 {
        let size = self.format.panel_bytes(self.inputs);
        assert!((panel + 1) * size <= self.lines.len() * 64, "panel {panel} of {}", self.panels());
        // SAFETY: within the lines.
        unsafe { self.lines.as_ptr().cast::<u8>().add(panel * size) }
    }

    /// `y = x W` for `x: [rows, inputs]`, `y: [rows, outputs]`. Each number is summed over the inputs in order by fused
    /// multiply-add, whatever `rows` is.
    pub fn multiply(&self, x: &[f32]) -> Vec<f32> {
        product::multiply(x, self, None, None)
    }

    /// `y = x W + (x A) scale B + bias`: the product of an adapted layer in one pass. `A: [inputs, r]`, `B: [r, outputs]`.
    pub fn multiply_adapted(&self, x: &[f32], low_rank: Option<LowRank<'_>>, bias: Option<&[f32]>) -> Vec<f32> {
        product::multiply(x, self, low_rank, bias)
    }

    /// All weights as f32, `[inputs, outputs]`.
    pub fn dense(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.inputs * self.outputs];
        self.unpack(&mut out);
        out
    }

    /// Writes all weights as f32 to `out: [inputs, outputs]`.
    ///
    /// # Panics
    /// If `out` has another size.
    pub fn unpack(&self, out: &mut [f32]) {
        product::unpack(self, out);
    }

    /// Writes the weights of panel `panel` as f32 to `out: [inputs, 32]`.
    pub(super) fn unpack_panel(&self, panel: usize, out: &mut [f32]) {
        product::unpack_panel(self, panel, out);
    }

    /// The weights of the first inputs as f32, `[count, outputs]`.
    pub fn first_rows(&self, count: usize) -> Vec<f32> {
        let mut one_hot = vec![0.0; self.inputs];
        let mut values = Vec::with_capacity(count * self.outputs);
        for input in 0..count.min(self.inputs) {
            one_hot[input] = 1.0;
            values.extend(self.multiply(&one_hot));
            one_hot[input] = 0.0;
        }
        values
    }
}

/// The scale of a block as it is stored: no number where one of the weights is none, so that the loss shows.
fn scale_of(values: &[f32; BLOCK], scale: f32) -> half::f16 {
    if values.iter().all(|x| x.is_finite()) { half::f16::from_f32(scale) } else { half::f16::NAN }
}

/// A low-rank correction of a packed matrix.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[inputs, r]`.
    pub a: &'a PackedMatrix,
    /// `[r, outputs]`, F32.
    pub b: &'a PackedMatrix,
    /// Multiplies `x A`.
    pub scale: f32,
}
