//! The quantised blocks of a GGUF file, put in the order in which a product reads them.
//!
//! Nothing is rounded: a packed number is decoded to the very f32 that a decoder of the whole matrix gives. Each format is
//! brought to `scale * q + least` with an unsigned `q` of 4, 5 or 6 bits (Q8_0: a signed byte without `least`); products of
//! a scale and a `q` have at most 24 bits, so an f32 holds them exactly and only the sum with `least` rounds.

use super::packed::{BLOCK, COLUMNS, PackedFormat};

/// Inputs of a super-block of the `K` formats.
pub(super) const SUPER: usize = 256;

/// A block format of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// A half-precision scale `d` and 16 bytes; a number `q` means `d (q - 8)`.
    Q4_0,
    /// A half-precision scale `d`, a minimum `m` and 16 bytes; a number `q` means `d q + m`.
    Q4_1,
    /// As `Q4_0` with a fifth bit: `d (q - 16)`.
    Q5_0,
    /// As `Q4_1` with a fifth bit.
    Q5_1,
    /// A half-precision scale `d` and 32 signed bytes.
    Q8_0,
    /// 256 numbers of 4 bits; each 32 have a scale and a minimum of 6 bits, multiplied by two half-precision numbers.
    Q4K,
    /// As `Q4K` with a fifth bit.
    Q5K,
    /// 256 numbers of 6 bits; each 16 have a scale of 8 bits, multiplied by a half-precision number: `d s (q - 32)`.
    Q6K,
}

/// Rows of blocks as GGUF stores them, one row for each output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// What they are.
    pub kind: BlockKind,
    /// The blocks of all rows.
    pub bytes: Vec<u8>,
}

impl BlockKind {
    /// Numbers of a block; a row must be whole blocks.
    pub fn numbers(self) -> usize {
        match self {
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER,
            _ => BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The format that holds its numbers.
    pub(super) fn format(self) -> PackedFormat {
        match self {
            Self::Q4_0 | Self::Q4_1 => PackedFormat::Q4_1,
            Self::Q5_0 | Self::Q5_1 => PackedFormat::Q5_1,
            Self::Q8_0 => PackedFormat::Q8_0,
            Self::Q4K => PackedFormat::Q4K,
            Self::Q5K => PackedFormat::Q5K,
            Self::Q6K => PackedFormat::Q6K,
        }
    }

    /// Whether the packed format holds this block's numbers. Those of `Q4_0` and `Q5_0` need a minimum of -8 and -16 scales,
    /// which half precision does not reach for the largest scales; no trained model has any.
    pub(super) fn fits(self, block: &[u8]) -> bool {
        self.centre().is_none_or(|centre| (half_at(block, 0).to_f32() * centre).abs() <= half::f16::MAX.to_f32())
    }

    /// The `q` that means zero, for formats whose minimum follows from the scale.
    fn centre(self) -> Option<f32> {
        match self {
            Self::Q4_0 => Some(8.0),
            Self::Q5_0 => Some(16.0),
            _ => None,
        }
    }

    /// Puts a block of the file into `to`, the bytes of all columns for these inputs, as number `column`. Bits are added to
    /// what is there: `to` begins as zeros.
    pub(super) fn put(self, from: &[u8], to: &mut [u8], column: usize) {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => {
                let scale = half_at(from, 0);
                let (least, rest) = match self.centre() {
                    Some(centre) => (half::f16::from_f32(-centre * scale.to_f32()), &from[2..]),
                    None => (half_at(from, 2), &from[4..]),
                };
                put_half(to, column, scale);
                put_half(&mut to[2 * COLUMNS..], column, least);
                let to = &mut to[4 * COLUMNS..];
                match self {
                    Self::Q4_0 | Self::Q4_1 => put_bits(to, column, &halves(rest), 0),
                    _ => {
                        let high = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
                        let low: [u8; BLOCK] = halves(&rest[4..]);
                        let quants: [u8; BLOCK] = std::array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4);
                        put_bits(to, column, &quants, 1);
                    }
                }
            }
            Self::Q8_0 => {
                let quants: [i8; BLOCK] = std::array::from_fn(|i| from[2 + i] as i8);
                put_q8(to, column, half_at(from, 0), quants);
            }
            Self::Q4K | Self::Q5K => {
                put_half(to, column, half_at(from, 0));
                put_half(&mut to[2 * COLUMNS..], column, half_at(from, 2));
                let scales = &from[4..16];
                let (high, low) = if self == Self::Q5K { from[16..].split_at(32) } else { from[16..].split_at(0) };
                let planes = high.len() / 32;
                let groups = to[4 * COLUMNS..].chunks_exact_mut(2 * COLUMNS + bits_bytes(BLOCK, planes));
                for (group, to) in groups.enumerate() {
                    let (scale, least) = six_bits(scales, group);
                    (to[column], to[COLUMNS + column]) = (scale, least);
                    // Two groups share 32 bytes, the first in the low halves; all share the 32 bytes of fifth bits.
                    let low = &low[group / 2 * 32..][..32];
                    let quants: [u8; BLOCK] = std::array::from_fn(|i| {
                        let fifth = high.get(i).map_or(0, |byte| byte >> group & 1);
                        (low[i] >> (group % 2 * 4) & 15) | fifth << 4
                    });
                    put_bits(&mut to[2 * COLUMNS..], column, &quants, planes);
                }
            }
            Self::Q6K => {
                let (low, rest) = from.split_at(128);
                let (high, rest) = rest.split_at(64);
                put_half(to, column, half_at(rest, 16));
                let groups = to[2 * COLUMNS..].chunks_exact_mut(COLUMNS + bits_bytes(16, 2));
                for (group, to) in groups.enumerate() {
                    to[column] = rest[group];
                    let quants: [u8; 16] = std::array::from_fn(|i| {
                        // Number `n` of a half of 128: four quarters of 32 share the bytes, two of them the low ones.
                        let (half, n) = (group / 8, group % 8 * 16 + i);
                        let (quarter, byte) = (n / 32, n % 32);
                        let low = low[half * 64 + quarter % 2 * 32 + byte] >> (quarter / 2 * 4) & 15;
                        low | (high[half * 32 + byte] >> (2 * quarter) & 3) << 4
                    });
                    put_bits(&mut to[COLUMNS..], column, &quants, 2);
                }
            }
        }
    }
}

/// Bytes of `inputs` inputs of all columns: 4 bits each, then `planes` further bits each.
pub(super) const fn bits_bytes(inputs: usize, planes: usize) -> usize {
    inputs * COLUMNS / 2 + inputs * planes * COLUMNS / 8
}

/// The low 4 bits of `quants` for each input side by side with those of the other columns (columns 0 to 15 in the low
/// halves of 16 bytes, 16 to 31 in the high ones), then the further bits: for each input and plane a word with a bit for
/// each column.
pub(super) fn put_bits(to: &mut [u8], column: usize, quants: &[u8], planes: usize) {
    let (low, high) = to.split_at_mut(quants.len() * COLUMNS / 2);
    for (input, quant) in quants.iter().enumerate() {
        low[input * COLUMNS / 2 + column % 16] |= (quant & 15) << (column / 16 * 4);
        for plane in 0..planes {
            let word = (input * planes + plane) * COLUMNS / 8;
            // Little-endian, as the kernel reads it.
            high[word + column / 8] |= (quant >> (4 + plane) & 1) << (column % 8);
        }
    }
}

/// A column of a block of 32 scales and 32 signed bytes for each input.
pub(super) fn put_q8(to: &mut [u8], column: usize, scale: half::f16, quants: [i8; BLOCK]) {
    put_half(to, column, scale);
    for (input, quant) in quants.into_iter().enumerate() {
        to[2 * COLUMNS + input * COLUMNS + column] = quant as u8;
    }
}

/// Number `at` of an array of halves, in the machine's byte order.
pub(super) fn put_half(to: &mut [u8], at: usize, value: half::f16) {
    to[2 * at..2 * at + 2].copy_from_slice(&value.to_bits().to_ne_bytes());
}

fn half_at(bytes: &[u8], at: usize) -> half::f16 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// ggml puts number `i` of 32 in the low half of byte `i` and number `i + 16` in its high half.
fn halves(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// Scale and minimum of group `group` of 8, in ggml's packing of sixteen 6-bit numbers into 12 bytes.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let low = packed[group + 4];
    ((low & 15) | (packed[group - 4] >> 6) << 4, low >> 4 | (packed[group] >> 6) << 4)
}
