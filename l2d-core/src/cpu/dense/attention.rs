//! Causal grouped-query attention of some rows over a sequence's keys and values, and its way back to the queries.
//!
//! Scores exist for a few rows of one head at a time only. What the way back needs of them is made anew from the queries
//! and one number a row, the logarithm of its softmax's denominator.

use gemm::Parallelism;
use rayon::prelude::*;

use super::super::threads::Shared;
use super::product::{View, multiply_into};
use super::rows::exponentials;
use super::{sum_of, vectorised};

/// Rows whose scores are made together. Scores of 64 rows over 2,048 positions are half a mebibyte: they stay in a core's
/// second cache.
const BLOCK: usize = 64;

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Numbers of a head.
    pub size: usize,
}

/// Rows of one sequence, and where its keys and values are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// First of the sequence's rows among the keys and values.
    pub start: usize,
    /// First of its rows among the queries.
    pub first_row: usize,
    /// The position of each query row, in ascending order; it sees keys `start ..= start + position`.
    pub positions: Vec<usize>,
}

/// Rows `from .. from + count` of a sequence for one query head.
#[derive(Clone, Copy)]
struct Item<'a> {
    sequence: &'a Sequence,
    from: usize,
    count: usize,
    head: usize,
}

impl Item<'_> {
    /// Positions that the last, and so any, of the rows sees.
    fn seen(&self) -> usize {
        self.sequence.positions[self.from + self.count - 1] + 1
    }

    fn row(&self) -> usize {
        self.sequence.first_row + self.from
    }
}

fn items<'a>(heads: Heads, sequences: &'a [Sequence]) -> Vec<Item<'a>> {
    let mut all = Vec::new();
    for sequence in sequences {
        let rows = sequence.positions.len();
        for head in 0..heads.queries {
            for from in (0..rows).step_by(BLOCK) {
                all.push(Item { sequence, from, count: BLOCK.min(rows - from), head });
            }
        }
    }
    // The largest first, so that no thread is left with one at the end.
    all.sort_by_key(|item| std::cmp::Reverse(item.seen() * item.count));
    all
}

fn check(heads: Heads, queries: &[f32], keys: &[f32], values: &[f32], sequences: &[Sequence]) {
    let (width, kv_width) = (heads.queries * heads.size, heads.keys * heads.size);
    assert!(heads.queries.is_multiple_of(heads.keys) && keys.len() == values.len());
    let mut next = 0;
    for sequence in sequences {
        assert_eq!(sequence.first_row, next, "rows of sequences follow one another");
        next += sequence.positions.len();
        assert!(sequence.positions.is_sorted(), "positions ascend");
        let last = sequence.positions.last().map_or(0, |&last| sequence.start + last + 1);
        assert!(last * kv_width <= keys.len(), "keys up to the last position");
    }
    assert_eq!(queries.len(), next * width, "a query for each row");
}

/// `softmax(Q K^T / sqrt(size)) V` for rotated `queries: [rows, queries * size]` over `keys, values: [positions, keys *
/// size]`: the result is written to `out`, of the queries' shape. Returns, for each row and query head, the logarithm of the
/// sum of exponentials of its scores, `[rows, queries]`, which [`attend_backward`] takes.
///
/// # Panics
/// If the sizes do not fit.
pub fn attend(
    out: &mut [f32],
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    heads: Heads,
    sequences: &[Sequence],
) -> Vec<f32> {
    check(heads, queries, keys, values, sequences);
    assert_eq!(out.len(), queries.len());
    let width = heads.queries * heads.size;
    let mut log_sums = vec![0.0; queries.len() / heads.size];
    let (shared, logs) = (Shared::new(out), Shared::new(&mut log_sums));
    items(heads, sequences).into_par_iter().for_each_init(Vec::new, |scores, item| {
        let (seen, row) = (item.seen(), item.row());
        let [query, key, value] = parts(&item, heads, [queries, keys, values]);
        scores.resize(item.count * seen, 0.0);
        let mut sums = [0f32; BLOCK];
        // SAFETY: the scores are this item's own.
        unsafe { scores_of(scores, query, key, heads.size) };
        softmax(scores, seen, &item.sequence.positions[item.from..][..item.count], &mut sums);
        // SAFETY: the item's rows and head of the output, which no other item writes.
        unsafe {
            let to = Shared::at(shared, row * width + item.head * heads.size);
            multiply_into(to, width, View::new(scores, seen), value, 1.0, false, Parallelism::None);
            for (i, sum) in sums[..item.count].iter().enumerate() {
                logs.get().add((row + i) * heads.queries + item.head).write(*sum);
            }
        }
    });
    log_sums
}

/// The way back through [`attend`] to the queries: `dq = dL/dqueries` from `dout = dL/dout`. Keys and values take no
/// gradient: the main path is frozen. `log_sums` is what [`attend`] returned, `out` what it wrote.
///
/// # Panics
/// If the sizes do not fit.
pub fn attend_backward(
    dq: &mut [f32],
    dout: &[f32],
    out: &[f32],
    log_sums: &[f32],
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    heads: Heads,
    sequences: &[Sequence],
) {
    check(heads, queries, keys, values, sequences);
    assert!(dq.len() == queries.len() && dout.len() == queries.len() && out.len() == queries.len());
    let (width, size) = (heads.queries * heads.size, heads.size);
    let shared = Shared::new(dq);
    items(heads, sequences).into_par_iter().for_each_init(
        Default::default,
        |buffers: &mut (Vec<f32>, Vec<f32>), item| {
            let (scores, slopes) = buffers;
            let (seen, row) = (item.seen(), item.row());
            let [query, key, value] = parts(&item, heads, [queries, keys, values]);
            scores.resize(item.count * seen, 0.0);
            slopes.resize(item.count * seen, 0.0);
            let upstream = View::new(dout, width).columns(item.head * size, size).rows(row, item.count);
            // SAFETY: both buffers are this item's own.
            unsafe {
                scores_of(scores, query, key, size);
                multiply_into(Shared::new(slopes), seen, upstream, value.t(), 1.0, false, Parallelism::None);
            }
            for i in 0..item.count {
                let at = (row + i) * width + item.head * size;
                let row_scores = &mut scores[i * seen..][..seen];
                let log_sum = log_sums[(row + i) * heads.queries + item.head];
                probabilities(row_scores, log_sum, item.sequence.positions[item.from + i] + 1);
                let (out, dout) = (&out[at..][..size], &dout[at..][..size]);
                slopes_of_products(row_scores, &slopes[i * seen..][..seen], out, dout, 1.0 / (size as f32).sqrt());
            }
            // SAFETY: the item's rows and head of the output, which no other item writes.
            unsafe {
                let to = Shared::at(shared, row * width + item.head * size);
                multiply_into(to, width, View::new(scores, seen), key, 1.0, false, Parallelism::None);
            }
        },
    );
}

/// The way back through [`attend`] to queries, keys and values, which are trained: writes `dq`, and adds to `dkeys` and
/// `dvalues`, `[positions, keys * size]`. Otherwise as [`attend_backward`].
///
/// # Panics
/// If the sizes do not fit.
pub fn attend_backward_all(
    [dq, dkeys, dvalues]: [&mut [f32]; 3],
    dout: &[f32],
    out: &[f32],
    log_sums: &[f32],
    [queries, keys, values]: [&[f32]; 3],
    heads: Heads,
    sequences: &[Sequence],
) {
    check(heads, queries, keys, values, sequences);
    assert!(dq.len() == queries.len() && dout.len() == queries.len() && out.len() == queries.len());
    assert!(dkeys.len() == keys.len() && dvalues.len() == keys.len());
    let (width, kv_width, size) = (heads.queries * heads.size, heads.keys * heads.size, heads.size);
    let group = heads.queries / heads.keys;
    let [dq, dkeys, dvalues] = [dq, dkeys, dvalues].map(Shared::new);
    // One thread for all rows and heads that read a key: their gradients are added up in order.
    let pieces: Vec<(&Sequence, usize)> =
        sequences.iter().flat_map(|sequence| (0..heads.keys).map(move |head| (sequence, head))).collect();
    pieces.into_par_iter().for_each_init(
        Default::default,
        |buffers: &mut (Vec<f32>, Vec<f32>), (sequence, kv_head)| {
            let (scores, slopes) = buffers;
            for from in (0..sequence.positions.len()).step_by(BLOCK) {
                for head in kv_head * group..(kv_head + 1) * group {
                    let count = BLOCK.min(sequence.positions.len() - from);
                    let item = Item { sequence, from, count, head };
                    let (seen, row) = (item.seen(), item.row());
                    let [query, key, value] = parts(&item, heads, [queries, keys, values]);
                    scores.resize(count * seen, 0.0);
                    slopes.resize(count * seen, 0.0);
                    let upstream = View::new(dout, width).columns(head * size, size).rows(row, count);
                    // SAFETY: both buffers are this piece's own.
                    unsafe {
                        scores_of(scores, query, key, size);
                        multiply_into(Shared::new(slopes), seen, upstream, value.t(), 1.0, false, Parallelism::None);
                    }
                    for i in 0..count {
                        let visible = sequence.positions[from + i] + 1;
                        let log_sum = log_sums[(row + i) * heads.queries + head];
                        probabilities(&mut scores[i * seen..][..seen], log_sum, visible);
                    }
                    let first = sequence.start * kv_width + kv_head * size;
                    // SAFETY: values of this sequence and head, which no other piece writes.
                    unsafe {
                        let weights = View::new(scores, seen).t();
                        multiply_into(dvalues.at(first), kv_width, weights, upstream, 1.0, true, Parallelism::None);
                    }
                    for i in 0..count {
                        let at = (row + i) * width + head * size;
                        let (out, dout) = (&out[at..][..size], &dout[at..][..size]);
                        let row_scores = &mut scores[i * seen..][..seen];
                        slopes_of_products(
                            row_scores,
                            &slopes[i * seen..][..seen],
                            out,
                            dout,
                            1.0 / (size as f32).sqrt(),
                        );
                    }
                    // SAFETY: the item's rows and head, and the piece's keys, which no other writes.
                    unsafe {
                        let (to, slopes) = (dq.at(row * width + head * size), View::new(scores, seen));
                        multiply_into(to, width, slopes, key, 1.0, false, Parallelism::None);
                        multiply_into(dkeys.at(first), kv_width, slopes.t(), query, 1.0, true, Parallelism::None);
                    }
                }
            }
        },
    );
}

vectorised! {
    /// One row of scores to its softmax, 0 where it does not look.
    fn probabilities<'a>(scores: &'a mut [f32], log_sum: f32, visible: usize) {
        let (seen, hidden) = scores.split_at_mut(visible);
        seen.iter_mut().for_each(|score| *score = super::exp(*score - log_sum));
        hidden.fill(0.0);
    }
}

vectorised! {
    /// One row of probabilities `p` to the gradient of the raw products `q k`: `p (dp - sum(dout * out)) / sqrt(size)`.
    fn slopes_of_products<'a>(p: &'a mut [f32], slopes: &'a [f32], out: &'a [f32], dout: &'a [f32], scale: f32) {
        let offset = sum_of(out.len(), |k| out[k] * dout[k]);
        p.iter_mut().zip(slopes).for_each(|(p, slope)| *p *= (slope - offset) * scale);
    }
}

/// The item's queries, keys and values.
fn parts<'a>(item: &Item<'_>, heads: Heads, [queries, keys, values]: [&'a [f32]; 3]) -> [View<'a>; 3] {
    let (width, kv_width) = (heads.queries * heads.size, heads.keys * heads.size);
    let kv_head = item.head / (heads.queries / heads.keys);
    let cached =
        |x| View::new(x, kv_width).columns(kv_head * heads.size, heads.size).rows(item.sequence.start, item.seen());
    let query = View::new(queries, width).columns(item.head * heads.size, heads.size).rows(item.row(), item.count);
    [query, cached(keys), cached(values)]
}

/// Writes `Q K^T / sqrt(size)` to `scores`.
///
/// # Safety
/// `scores` must have room for a row of every query.
unsafe fn scores_of(scores: &mut [f32], query: View<'_>, key: View<'_>, size: usize) {
    let (seen, scale) = (key.height(), 1.0 / (size as f32).sqrt());
    // SAFETY: the caller's.
    unsafe { multiply_into(Shared::new(scores), seen, query, key.t(), scale, false, Parallelism::None) };
}

vectorised! {
    /// Each row of scores to its softmax over the positions it sees, 0 beyond; the logarithms of the denominators.
    fn softmax<'a>(scores: &'a mut [f32], seen: usize, positions: &'a [usize], log_sums: &'a mut [f32]) {
        for ((row, &position), log_sum) in scores.chunks_exact_mut(seen).zip(positions).zip(log_sums) {
            let (visible, hidden) = row.split_at_mut(position + 1);
            let mut largest = [f32::NEG_INFINITY; 16];
            for part in visible.chunks(16) {
                largest.iter_mut().zip(part).for_each(|(a, b)| *a = if *b > *a { *b } else { *a });
            }
            let largest = largest.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum = exponentials(visible, largest);
            let inverse = 1.0 / sum;
            visible.iter_mut().for_each(|x| *x *= inverse);
            hidden.fill(0.0);
            *log_sum = sum.ln() + largest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_gradient, numbers};
    use super::*;

    const HEADS: Heads = Heads { queries: 4, keys: 2, size: 8 };

    fn sequences() -> Vec<Sequence> {
        let rows = |count: usize| (0..count).map(|i| i * 2).collect::<Vec<_>>();
        vec![
            Sequence { start: 0, first_row: 0, positions: rows(70) },
            Sequence { start: 140, first_row: 70, positions: vec![3, 3, 5] },
        ]
    }

    /// The definition, in double precision.
    fn reference(queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
        let Heads { queries: q, keys: kv, size } = HEADS;
        let mut out = Vec::new();
        for sequence in sequences() {
            for (i, &position) in sequence.positions.iter().enumerate() {
                for head in 0..q {
                    let row = &queries[((sequence.first_row + i) * q + head) * size..][..size];
                    let at = |x: usize| ((sequence.start + x) * kv + head / (q / kv)) * size;
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                    };
                    let scores: Vec<f64> = (0..=position)
                        .map(|x| (dot(row, &keys[at(x)..][..size]) / (size as f64).sqrt()).exp())
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    out.extend((0..size).map(|k| {
                        scores.iter().enumerate().map(|(x, s)| s / sum * f64::from(values[at(x) + k])).sum::<f64>()
                    }));
                }
            }
        }
        out
    }

    #[test]
    fn attention_and_its_gradient_are_the_definitions() {
        let (width, kv_width) = (HEADS.queries * HEADS.size, HEADS.keys * HEADS.size);
        let queries: Vec<f32> = numbers(73 * width, 1).iter().map(|x| 3.0 * x).collect();
        let (keys, values) = (numbers(150 * kv_width, 2), numbers(150 * kv_width, 3));
        let slopes = numbers(queries.len(), 4);
        let mut out = vec![0.0; queries.len()];
        let log_sums = attend(&mut out, &queries, &keys, &values, HEADS, &sequences());
        for (found, expected) in out.iter().zip(reference(&queries, &keys, &values)) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} against {expected}");
        }
        let mut dq = vec![0.0; queries.len()];
        attend_backward(&mut dq, &slopes, &out, &log_sums, &queries, &keys, &values, HEADS, &sequences());
        check_gradient(&queries, &dq, |queries| {
            reference(queries, &keys, &values).iter().zip(&slopes).map(|(y, s)| y * f64::from(*s)).sum()
        });

        let (mut again, mut dkeys, mut dvalues) = (vec![0.0; dq.len()], vec![0.0; keys.len()], vec![0.0; keys.len()]);
        let gradients = [&mut again[..], &mut dkeys, &mut dvalues];
        attend_backward_all(gradients, &slopes, &out, &log_sums, [&queries, &keys, &values], HEADS, &sequences());
        assert_eq!(again, dq);
        let total = |keys: &[f32], values: &[f32]| {
            reference(&queries, keys, values).iter().zip(&slopes).map(|(y, s)| y * f64::from(*s)).sum()
        };
        check_gradient(&keys, &dkeys, |keys| total(keys, &values));
        check_gradient(&values, &dvalues, |values| total(&keys, values));
    }
}
