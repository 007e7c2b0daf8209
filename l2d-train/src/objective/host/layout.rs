//! A batch without its padding.

use l2d_core::cpu::dense::Sequence;
use l2d_core::lm::Rope;

use super::super::draws::{DropoutDraws, Labelled};
use super::buffers::Buffers;
use super::frozen::Angles;

/// A batch's tokens and rows, one after the other.
pub(super) struct Layout {
    pub(super) tokens: Vec<u32>,
    /// All tokens, as rows of the main path.
    pub(super) main: Vec<Sequence>,
    /// The diffusion tokens.
    pub(super) rows: Vec<Sequence>,
    /// The row of each diffusion token among the tokens.
    pub(super) places: Vec<usize>,
    pub(super) targets: Vec<u32>,
}

impl Layout {
    /// `repeats` diffusion tokens at each labelled position.
    pub(super) fn new(batch: &Labelled<'_>, repeats: usize) -> Self {
        let mut layout = Self { tokens: vec![], main: vec![], rows: vec![], places: vec![], targets: vec![] };
        for (tokens, labels) in batch.tokens.iter().zip(batch.labels) {
            let Some(&(last, _)) = labels.last() else { continue };
            let start = layout.tokens.len();
            // Nothing behind the last label matters to any.
            layout.tokens.extend(&tokens[..=last]);
            layout.main.push(Sequence { start, first_row: start, positions: (0..=last).collect() });
            let repeated = || labels.iter().flat_map(|label| std::iter::repeat_n(label, repeats));
            let positions: Vec<usize> = repeated().map(|&(position, _)| position).collect();
            layout.targets.extend(repeated().map(|&(_, target)| target));
            layout.rows.push(Sequence { start, first_row: layout.places.len(), positions: positions.clone() });
            layout.places.extend(positions.iter().map(|position| start + position));
        }
        layout
    }

    /// A seed for each of the tokens.
    pub(super) fn token_seeds(&self, batch: &Labelled<'_>, dropout: &DropoutDraws) -> Vec<u64> {
        let labelled = batch.labels.iter().enumerate().filter(|(_, labels)| !labels.is_empty());
        labelled.zip(&self.main).flat_map(|((b, _), row)| dropout.of_tokens(b, row.positions.len())).collect()
    }

    /// Rotary angles of some sequences' positions.
    pub(super) fn angles(rope: &Rope, sequences: &[Sequence]) -> Angles {
        let positions = sequences.iter().flat_map(|sequence| sequence.positions.iter().copied());
        let (cos, sin) = rope.angles(positions);
        Angles { cos, sin, half: rope.inv_freq.len() }
    }

    /// The rows of `x: [tokens, width]` at the places of the diffusion tokens, or of the labels.
    pub(super) fn select(&self, x: &[f32], width: usize, buffers: &mut Buffers) -> Vec<f32> {
        let mut rows = buffers.take(self.places.len() * width);
        for (row, &place) in rows.chunks_exact_mut(width).zip(&self.places) {
            row.copy_from_slice(&x[place * width..][..width]);
        }
        rows
    }
}
