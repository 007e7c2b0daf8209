//! Attention of a few query rows over one head of one paged sequence.
//!
//! A long context is computed in chunks, each with a softmax of its own, and these are merged in order: a model with few
//! key/value heads then has work for all threads even where a single row is decoded. What a chunk is follows from the
//! positions alone, so the bits of a result depend neither on the threads nor on the other rows.

use std::ops::Range;

use super::lanes::{Kernel, LANES, Lanes, dispatch, exp, prefetch, sum};
use super::pages::{CacheFormat, PAGE, PagedSequence, Place, Stored};
use super::threads::Shared;

/// Rows that share one piece of work, at most.
pub(super) const RUN: usize = 16;

/// Query vectors whose scores are computed side by side, where the registers hold them.
const WIDE: usize = 6;

/// Vectors of a value that are summed side by side.
const VALUE_VECTORS: usize = 4;

/// Pages of a chunk: 512 positions.
const CHUNK: usize = 16;

/// Chunks of the context of a row at `position`.
pub(super) fn chunks(position: usize) -> usize {
    (position / PAGE + 1).div_ceil(CHUNK)
}

/// What a chunk leaves for the merging: the largest score, the sum of the weights, and the weighted sum of the values.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    /// `[vectors, chunks, 2 + padded]`.
    numbers: Shared<f32>,
    chunks: usize,
    /// `2 + padded`.
    width: usize,
}

impl Parts {
    /// Numbers for that many query vectors.
    pub(super) fn len(vectors: usize, chunks: usize, padded: usize) -> usize {
        vectors * chunks * (2 + padded)
    }

    pub(super) fn new(numbers: Shared<f32>, chunks: usize, padded: usize) -> Self {
        Self { numbers, chunks, width: 2 + padded }
    }

    /// Where the numbers of a vector and a chunk lie.
    fn at(self, vector: usize, chunk: usize) -> *mut f32 {
        // SAFETY: within the allocation, by `len`.
        unsafe { self.numbers.get().add((vector * self.chunks + chunk) * self.width) }
    }
}

/// Merges the chunks of one query vector that sees the positions up to `position` into `out`.
pub(super) fn merge(parts: Parts, vector: usize, position: usize, out: &mut [f32]) {
    dispatch(&Merge { parts, vector, chunks: chunks(position), out: Shared::new(out), count: out.len() });
}

struct Merge {
    parts: Parts,
    vector: usize,
    chunks: usize,
    out: Shared<f32>,
    count: usize,
}

impl Kernel for Merge {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        // SAFETY: every chunk that the vector sees was written; `out` holds `count` numbers.
        unsafe {
            let mut largest = f32::NEG_INFINITY;
            for chunk in 0..self.chunks {
                largest = largest.max(*self.parts.at(self.vector, chunk));
            }
            let out = std::slice::from_raw_parts_mut(self.out.get(), self.count);
            let mut total = 0f32;
            for chunk in 0..self.chunks {
                let part = self.parts.at(self.vector, chunk);
                let mut factor = [0f32; LANES];
                exp(L::splat(*part - largest)).store(factor.as_mut_ptr());
                total += factor[0] * *part.add(1);
                let sums = std::slice::from_raw_parts(part.add(2), self.count);
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out += factor[0] * sum;
                }
            }
            out.iter_mut().for_each(|out| *out /= total);
        }
    }
}

/// The rows `rows` (of one sequence) with key/value head `head`. Writes its query heads' part of `out`, or where there are
/// `parts` what chunk `chunk` leaves there.
pub(super) fn attend_run(
    sequences: &[PagedSequence],
    layer: usize,
    head: usize,
    places: &[Place],
    rows: Range<usize>,
    queries: &[f32],
    width: usize,
    out: Shared<f32>,
    parts: Option<(Parts, usize)>,
) {
    let sequence = &sequences[places[rows.start].sequence];
    let shape = sequence.shape();
    let group = width / shape.head_dim / shape.heads;
    let scale = (1.0 / (shape.head_dim as f64).sqrt()) as f32;
    // One vector for each row and query head of this key/value head.
    let vectors: Vec<Query> = rows
        .flat_map(|row| (0..group).map(move |i| (row, row * width + (head * group + i) * shape.head_dim)))
        .map(|(row, at)| Query { at, visible: places[row].position + 1 })
        .collect();
    let scaled: Vec<f32> = vectors
        .iter()
        .flat_map(|query| queries[query.at..query.at + shape.head_dim].iter().map(|x| x * scale))
        .collect();
    dispatch(&Attention { sequence, layer, head, vectors: &vectors, scaled: &scaled, out, parts });
}

#[derive(Debug, Clone, Copy)]
struct Query {
    /// Where it begins, in the queries and in the result.
    at: usize,
    /// Positions it sees.
    visible: usize,
}

struct Attention<'a> {
    sequence: &'a PagedSequence,
    layer: usize,
    head: usize,
    vectors: &'a [Query],
    /// The vectors, scaled, one after the other.
    scaled: &'a [f32],
    out: Shared<f32>,
    /// Where a chunk goes, and its number.
    parts: Option<(Parts, usize)>,
}

impl Kernel for Attention<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self) {
        let visible = self.vectors.iter().map(|query| query.visible).max().unwrap_or(0);
        let pages = visible.div_ceil(PAGE);
        let pages = match self.parts {
            None => 0..pages,
            Some((_, chunk)) => (chunk * CHUNK).min(pages)..((chunk + 1) * CHUNK).min(pages),
        };
        if pages.is_empty() {
            return;
        }
        // SAFETY: the caller's; the sequence stores numbers of its format.
        unsafe {
            match self.sequence.shape().format {
                CacheFormat::F32 => self.tiles::<L, f32>(&pages),
                CacheFormat::F16 => self.tiles::<L, half::f16>(&pages),
            }
        }
    }
}

impl Attention<'_> {
    /// All vectors, a few at a time.
    #[inline(always)]
    unsafe fn tiles<L: Lanes, N: Stored>(&self, pages: &Range<usize>) {
        let mut weights = vec![0f32; WIDE.min(self.vectors.len()) * pages.len() * PAGE];
        let at_once = WIDE.min(L::MAX_ROWS);
        let mut first = 0;
        while first < self.vectors.len() {
            let count = at_once.min(self.vectors.len() - first);
            // SAFETY: the caller's; `first + count` vectors exist.
            unsafe {
                match count {
                    1 => self.tile::<L, N, 1>(first, pages, &mut weights),
                    2 => self.tile::<L, N, 2>(first, pages, &mut weights),
                    3 => self.tile::<L, N, 3>(first, pages, &mut weights),
                    4 => self.tile::<L, N, 4>(first, pages, &mut weights),
                    5 => self.tile::<L, N, 5>(first, pages, &mut weights),
                    _ => self.tile::<L, N, 6>(first, pages, &mut weights),
                }
            }
            first += count;
        }
    }

    #[inline(always)]
    unsafe fn tile<L: Lanes, N: Stored, const Q: usize>(
        &self,
        first: usize,
        pages: &Range<usize>,
        weights: &mut [f32],
    ) {
        let shape = self.sequence.shape();
        let (dim, slots) = (shape.head_dim, pages.len() * PAGE);
        let weights = weights.as_mut_ptr();
        // SAFETY: `weights` holds Q rows of `slots`; pages hold what their shape says; `Q <= count` vectors from `first`.
        unsafe {
            let queries = self.scaled.as_ptr().add(first * dim);
            for page in pages.clone() {
                let (keys, _) = self.sequence.head::<N>(page, self.layer, self.head);
                // Pages lie anywhere: the processor's own prefetcher starts anew at each. After the last keys come values.
                let next = match page + 1 < pages.end {
                    true => self.sequence.head::<N>(page + 1, self.layer, self.head).0,
                    false => self.sequence.head::<N>(pages.start, self.layer, self.head).1,
                };
                let mut scores = [[L::splat(0.0); 2]; Q];
                for i in 0..dim {
                    prefetch(next.wrapping_add(i * PAGE), PAGE * size_of::<N>());
                    let keys = keys.add(i * PAGE);
                    let keys: [L; 2] = [N::load(keys), N::load(keys.add(LANES))];
                    for (q, score) in scores.iter_mut().enumerate() {
                        let x = L::splat(*queries.add(q * dim + i));
                        score[0] = x.fma(keys[0], score[0]);
                        score[1] = x.fma(keys[1], score[1]);
                    }
                }
                for (q, score) in scores.into_iter().enumerate() {
                    let to = weights.add(q * slots + (page - pages.start) * PAGE);
                    score[0].store(to);
                    score[1].store(to.add(LANES));
                }
            }
            let mut totals = [0f32; Q];
            for (q, total) in totals.iter_mut().enumerate() {
                let row = std::slice::from_raw_parts_mut(weights.add(q * slots), slots);
                let visible = self.vectors[first + q].visible.saturating_sub(pages.start * PAGE).min(slots);
                let (largest, sum) = softmax_weights::<L>(row, visible);
                *total = sum;
                if let Some((parts, chunk)) = self.parts {
                    let part = parts.at(self.vectors[first + q].at / dim, chunk);
                    (*part, *part.add(1)) = (largest, sum);
                }
            }
            for part in (0..shape.padded() / LANES).step_by(VALUE_VECTORS) {
                if part + VALUE_VECTORS <= shape.padded() / LANES {
                    self.mix::<L, N, Q, VALUE_VECTORS>(first, pages, part, weights, &totals);
                } else {
                    for part in part..shape.padded() / LANES {
                        self.mix::<L, N, Q, 1>(first, pages, part, weights, &totals);
                    }
                }
            }
        }
    }

    /// `sum_slot weight V[slot]` for `V` vectors of the value from number `part` on.
    #[inline(always)]
    unsafe fn mix<L: Lanes, N: Stored, const Q: usize, const V: usize>(
        &self,
        first: usize,
        pages: &Range<usize>,
        part: usize,
        weights: *const f32,
        totals: &[f32; Q],
    ) {
        let shape = self.sequence.shape();
        let slots = pages.len() * PAGE;
        // SAFETY: as in `tile`.
        unsafe {
            let mut sums = [[L::splat(0.0); V]; Q];
            let tile = &self.vectors[first..first + Q];
            let least = tile.iter().map(|query| query.visible).min().unwrap_or(0);
            for page in pages.clone() {
                let (_, values) = self.sequence.head::<N>(page, self.layer, self.head);
                let (_, next) = self.sequence.head::<N>((page + 1).min(pages.end - 1), self.layer, self.head);
                // Here some vector does not see some slot. What is not seen is not multiplied: it may be no number.
                let edge = (page + 1) * PAGE > least;
                for slot in 0..PAGE {
                    let at = slot * shape.padded() + part * LANES;
                    prefetch(next.wrapping_add(at), V * LANES * size_of::<N>());
                    let from = values.add(at);
                    let mut value = [L::splat(0.0); V];
                    for (v, value) in value.iter_mut().enumerate() {
                        *value = N::load(from.add(v * LANES));
                    }
                    for (q, sums) in sums.iter_mut().enumerate() {
                        let weight = *weights.add(q * slots + (page - pages.start) * PAGE + slot);
                        if edge && weight == 0.0 {
                            continue;
                        }
                        let weight = L::splat(weight);
                        for (sum, value) in sums.iter_mut().zip(value) {
                            *sum = weight.fma(value, *sum);
                        }
                    }
                }
            }
            for (q, sums) in sums.into_iter().enumerate() {
                if let Some((parts, chunk)) = self.parts {
                    let to = parts.at(self.vectors[first + q].at / shape.head_dim, chunk).add(2 + part * LANES);
                    for (v, sum) in sums.into_iter().enumerate() {
                        sum.store(to.add(v * LANES));
                    }
                    continue;
                }
                let total = L::splat(totals[q]);
                for (v, sum) in sums.into_iter().enumerate() {
                    let mut numbers = [0f32; LANES];
                    sum.div(total).store(numbers.as_mut_ptr());
                    let from = (part + v) * LANES;
                    let count = LANES.min(shape.head_dim.saturating_sub(from));
                    let to = self.out.get().add(self.vectors[first + q].at + from);
                    std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, count);
                }
            }
        }
    }
}

/// Turns scores into `exp(score - largest)`, zero from `visible` on, and returns the largest and the sum.
#[inline(always)]
unsafe fn softmax_weights<L: Lanes>(scores: &mut [f32], visible: usize) -> (f32, f32) {
    // What is not seen counts for nothing, whatever it is.
    scores[visible..].fill(f32::NEG_INFINITY);
    // NaN passes through `max` and `exp` unseen: bring it back at the end.
    let mut poisoned = false;
    // SAFETY: the caller's; vectors of the slice.
    let largest = unsafe {
        let mut largest = L::splat(f32::NEG_INFINITY);
        for scores in scores.chunks_exact(LANES) {
            let scores = L::load(scores.as_ptr());
            poisoned |= scores.any_nan();
            largest = scores.max(largest);
        }
        let mut lanes = [0f32; LANES];
        largest.store(lanes.as_mut_ptr());
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    };
    // SAFETY: the caller's; vectors of the slice.
    let total = unsafe {
        let shift = L::splat(-largest);
        let mut total = L::splat(0.0);
        for (block, scores) in scores.chunks_exact_mut(LANES).enumerate() {
            let weights = exp(L::load(scores.as_ptr()).add(shift));
            weights.store(scores.as_mut_ptr());
            let seen = visible.saturating_sub(block * LANES).min(LANES);
            scores[seen..].fill(0.0);
            total = total.add(L::load(scores.as_ptr()));
        }
        sum(total)
    };
    // So does an infinite score: the difference to itself is NaN.
    (largest, if poisoned || !largest.is_finite() { f32::NAN } else { total })
}

#[cfg(test)]
mod tests {
    use super::super::lanes::for_each_instruction_set;
    use super::super::pages::{PageShape, attend};
    use super::*;

    const FORMATS: [CacheFormat; 2] = [CacheFormat::F32, CacheFormat::F16];

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0) * 1.5).collect()
    }

    /// A sequence, and the keys and values as it stores them.
    fn filled(shape: PageShape, len: usize, seed: usize) -> (PagedSequence, Vec<f32>, Vec<f32>) {
        let width = shape.heads * shape.head_dim;
        let (keys, values) = (numbers(len * width, seed), numbers(len * width, seed + 1));
        let mut sequence = PagedSequence::new(shape);
        // In steps of uneven sizes, as a prompt and tokens are.
        let mut start = 0;
        for step in [5, 40, 1, 1].into_iter().chain(std::iter::repeat(17)) {
            let end = (start + step).min(len);
            sequence.reserve(end - start);
            for layer in 0..shape.layers {
                sequence.write(layer, &keys[start * width..end * width], &values[start * width..end * width]);
            }
            sequence.advance(end - start);
            start = end;
            if start == len {
                break;
            }
        }
        let stored = |x: &f32| match shape.format {
            CacheFormat::F32 => *x,
            CacheFormat::F16 => half::f16::from_f32(*x).to_f32(),
        };
        (sequence, keys.iter().map(stored).collect(), values.iter().map(stored).collect())
    }

    /// One query head by the formula, in f64.
    fn reference(query: &[f32], keys: &[f32], values: &[f32], width: usize, head: usize, visible: usize) -> Vec<f64> {
        let dim = query.len();
        let at = |x: &[f32], slot: usize, i: usize| f64::from(x[slot * width + head * dim + i]);
        let scores: Vec<f64> = (0..visible)
            .map(|slot| (0..dim).map(|i| f64::from(query[i]) * at(keys, slot, i)).sum::<f64>() / (dim as f64).sqrt())
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..dim).map(|i| weights.iter().enumerate().map(|(s, w)| w * at(values, s, i)).sum::<f64>() / total).collect()
    }

    #[test]
    fn attention_is_the_formula_and_does_not_depend_on_company() {
        let sizes = [(64, 3, 3), (16, 2, 2), (20, 1, 4), (128, 2, 4)];
        let shapes = sizes.into_iter().flat_map(|sizes| FORMATS.map(|format| (sizes, format)));
        for ((head_dim, heads, group), format) in shapes {
            let shape = PageShape { layers: 2, heads, head_dim, format };
            let width = heads * head_dim;
            let (long, keys, values) = filled(shape, 101, 1);
            let (short, ..) = filled(shape, 7, 5);
            let sequences = [long, short];
            let places: Vec<Place> = [(0, 100), (0, 99), (0, 31), (0, 32), (0, 0), (1, 6), (1, 6), (0, 63)]
                .map(|(sequence, position)| Place { sequence, position })
                .to_vec();
            let row = width * group;
            let queries = numbers(places.len() * row, 11);
            let mut first: Option<Vec<f32>> = None;
            for_each_instruction_set(|set| {
                let together = attend(&sequences, 1, &places, &queries);
                assert_eq!(first.get_or_insert_with(|| together.clone()), &together, "{set:?}");
                for (i, &place) in places.iter().enumerate() {
                    let alone = attend(&sequences, 1, &[place], &queries[i * row..(i + 1) * row]);
                    assert_eq!(alone, together[i * row..(i + 1) * row], "{set:?} {place:?}");
                    if place.sequence == 0 {
                        for head in 0..heads * group {
                            let query = &queries[i * row + head * head_dim..][..head_dim];
                            let expected = reference(query, &keys, &values, width, head / group, place.position + 1);
                            let found = &alone[head * head_dim..][..head_dim];
                            let apart = expected.iter().zip(found).map(|(a, &b)| (a - f64::from(b)).abs());
                            let worst = apart.fold(0.0, f64::max);
                            // Other numbers, other roundings of the same sums.
                            let bound = if format == CacheFormat::F32 { 3e-6 } else { 4e-6 };
                            assert!(worst < bound, "{shape:?} {set:?} {place:?} {head}: {worst:e}");
                        }
                    }
                }
            });
        }
    }

    #[test]
    fn a_long_context_is_merged_from_chunks() {
        for format in FORMATS {
            long_context(PageShape { layers: 1, heads: 2, head_dim: 20, format });
        }
    }

    fn long_context(shape: PageShape) {
        let (sequence, keys, values) = filled(shape, 1400, 1);
        let sequences = [sequence];
        let places: Vec<Place> =
            [1399, 5, 511, 512, 1023, 1024].map(|position| Place { sequence: 0, position }).to_vec();
        let row = 2 * 20 * 2;
        let queries: Vec<f32> = numbers(places.len() * row, 11).iter().map(|x| x * 4.0).collect();
        let mut first: Option<Vec<f32>> = None;
        for_each_instruction_set(|set| {
            let together = attend(&sequences, 0, &places, &queries);
            assert_eq!(first.get_or_insert_with(|| together.clone()), &together, "{set:?}");
            for (i, &place) in places.iter().enumerate() {
                // Alone, a short one is computed in one piece.
                let alone = attend(&sequences, 0, &[place], &queries[i * row..(i + 1) * row]);
                assert_eq!(alone, together[i * row..(i + 1) * row], "{set:?} {place:?}");
                for head in 0..4 {
                    let query = &queries[i * row + head * 20..][..20];
                    let expected = reference(query, &keys, &values, 40, head / 2, place.position + 1);
                    let close = expected.iter().zip(&alone[head * 20..]).all(|(a, &b)| (a - f64::from(b)).abs() < 1e-5);
                    assert!(close, "{set:?} {place:?} {head}");
                }
            }
        });
    }

    #[test]
    fn a_fork_shares_its_past_and_nothing_else() {
        let shape = PageShape { layers: 1, heads: 1, head_dim: 16, format: CacheFormat::F32 };
        let (original, ..) = filled(shape, 40, 1);
        let mut fork = original.clone();
        fork.truncate(35);
        let query = numbers(16, 3);
        let at = |sequence: &PagedSequence, position| {
            attend(std::slice::from_ref(sequence), 0, &[Place { sequence: 0, position }], &query)
        };
        let (before, past) = (at(&original, 39), at(&original, 34));
        assert_eq!(at(&fork, 34), past);
        fork.reserve(1);
        fork.write(0, &[9.0; 16], &[9.0; 16]);
        fork.advance(1);
        assert_eq!((fork.len(), original.len()), (36, 40));
        assert_eq!(at(&original, 39), before);
        assert_eq!(at(&fork, 34), past);
        assert_ne!(at(&fork, 35), at(&original, 35));
    }

    #[test]
    fn a_poisoned_key_poisons_the_result() {
        let shape = PageShape { layers: 1, heads: 1, head_dim: 16, format: CacheFormat::F32 };
        let (mut sequence, ..) = filled(shape, 3, 1);
        sequence.reserve(1);
        sequence.write(0, &[f32::NAN; 16], &[1.0; 16]);
        sequence.advance(1);
        let query = numbers(16, 3);
        let at = |position| attend(std::slice::from_ref(&sequence), 0, &[Place { sequence: 0, position }], &query);
        assert!(at(2).iter().all(|x| x.is_finite()));
        assert!(at(3).iter().all(|x| x.is_nan()));
        for (key, value) in [(1.0, f32::NAN), (1.0, f32::INFINITY), (f32::INFINITY, 1.0)] {
            let (mut sequence, ..) = filled(shape, 3, 1);
            sequence.reserve(1);
            sequence.write(0, &[key; 16], &[value; 16]);
            sequence.advance(1);
            let places = [2, 3].map(|position| Place { sequence: 0, position });
            let queries = [1.0; 32];
            let found = attend(std::slice::from_ref(&sequence), 0, &places, &queries);
            let (before, after) = found.split_at(16);
            assert!(before.iter().all(|x| x.is_finite()), "what is not seen does not matter: {key} {value}");
            assert!(after.iter().all(|x| !x.is_finite()), "{key} {value}");
        }
    }
}
