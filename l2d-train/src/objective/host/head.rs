//! The end of the model: final norm, LM head, cross-entropy, some rows at a time.

use l2d_core::cpu::dense::{
    Right, View, add_norm_weight_gradient, cross_entropy_in_place, multiply_right, norm, norm_backward,
};

use super::buffers::Buffers;
use super::layers::Gradients;

#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) norm: &'a [f32],
    pub(super) eps: f64,
    /// `[H, V]`, and on its side.
    pub(super) weight: &'a [Right; 2],
    pub(super) vocabulary: usize,
    /// The most rows of logits at a time.
    pub(super) chunk: usize,
}

/// Where a trained head's gradient belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrainedHead {
    /// `head.weight`, `[H, V]`.
    Own,
    /// `embedding`, `[V, H]`.
    Tied,
}

impl Head<'_> {
    /// Losses of hidden states `[rows, H]` before the final norm; where `learn`, the gradient of their sum, of the same
    /// shape, and where norm and head are trained, theirs, which are added.
    pub(super) fn loss(
        &self,
        hidden: &[f32],
        targets: &[u32],
        mut learn: Option<(&mut Gradients, Option<TrainedHead>)>,
        buffers: &mut Buffers,
    ) -> (Vec<f32>, Vec<f32>) {
        /// Logits that are held at a time, 64 MiB: beyond, larger products are no faster.
        const LOGITS: usize = 1 << 24;
        let width = self.norm.len();
        let rows = self.chunk.min((LOGITS / self.vocabulary).max(1));
        let mut normed = buffers.take(hidden.len());
        let inverse = norm(&mut normed, hidden, self.norm, self.eps, None);
        let mut losses = Vec::with_capacity(targets.len());
        let mut dnormed = buffers.take(if learn.is_some() { hidden.len() } else { 0 });
        let mut logits = Vec::new();
        for (i, targets) in targets.chunks(rows).enumerate() {
            let part = i * rows * width..(i * rows + targets.len()) * width;
            if logits.len() != targets.len() * self.vocabulary {
                buffers.give(std::mem::take(&mut logits));
                logits = buffers.take(targets.len() * self.vocabulary);
            }
            multiply_right(&mut logits, &normed[part.clone()], &self.weight[0], 1.0, false);
            losses.extend(cross_entropy_in_place(&mut logits, targets));
            if let Some((gradients, trained)) = &mut learn {
                let (rows, slopes) = (View::new(&normed[part.clone()], width), View::new(&logits, self.vocabulary));
                match trained {
                    None => {}
                    Some(TrainedHead::Own) => gradients.add_product("head", "weight", rows, slopes),
                    Some(TrainedHead::Tied) => gradients.add_product("embedding", "", slopes, rows),
                }
                multiply_right(&mut dnormed[part], &logits, &self.weight[1], 1.0, false);
            }
        }
        let mut dhidden = buffers.zeros(dnormed.len());
        if let Some((gradients, trained)) = learn {
            norm_backward(&mut dhidden, &mut [], &dnormed, hidden, &inverse, self.norm, None);
            if trained.is_some() {
                add_norm_weight_gradient(gradients.of("final_norm", "weight", width), &dnormed, hidden, &inverse);
            }
        }
        [normed, dnormed, logits].into_iter().for_each(|buffer| buffers.give(buffer));
        (losses, dhidden)
    }
}
