//! The LM itself, block by block.

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{IndexingUpdateOp, Tensor};
use l2d_core::lm::{AttentionPlan, Context, Lm, host_values};

use super::super::draws::Labelled;
use super::super::lm::{LmObjective, labelled_places, summed};
use super::super::loss::{StepLoss, chunked_head_loss, cross_entropy, ids};
use super::{found, leaf, linear_in};
use crate::optimiser::NamedGradients;

impl LmObjective {
    /// [`LmObjective::loss_and_gradients`] with each block computed again on the way back. `lm` drops what it drops already.
    pub(in super::super) fn by_blocks<AB: AutodiffBackend>(
        &self,
        lm: &Lm<AB>,
        batch: &Labelled<'_>,
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        let inner = lm.valid();
        let device = inner.device();
        let length = batch.tokens.first().map_or(0, Vec::len);
        let (padding, positions) = (vec![0; batch.tokens.len()], vec![(0..length).collect(); batch.tokens.len()]);
        let dtype = inner.dtype();
        let plan = AttentionPlan::dense(&lm.config, &lm.rope, &padding, &positions, length, &device, dtype);
        let plan_of_graphs =
            AttentionPlan::<AB>::dense(&lm.config, &lm.rope, &padding, &positions, length, &device, dtype);
        let tokens: Vec<u32> = batch.tokens.iter().flatten().copied().collect();
        let (places, targets) = labelled_places(batch);

        // There: a block keeps its input.
        let mut x = inner.embed(ids(&tokens, &device));
        let mut inputs = Vec::with_capacity(inner.blocks.len());
        for block in &inner.blocks {
            inputs.push(x.clone());
            let [queries, keys, values] = block.project(x.clone(), &plan);
            let context = Context::Tensors(plan.split_heads(keys), plan.split_heads(values));
            x = block.finish(x, context.attend(&plan, queries));
        }

        // The end.
        let hidden = x.clone().select(0, ids(&places, &device));
        let (losses, dhidden, mut gradients) = self.head_by_chunks(lm, hidden, &targets);
        let mut dx = x.zeros_like().select_assign(0, ids(&places, &device), dhidden, IndexingUpdateOp::Add);

        // Back.
        for (block, input) in lm.blocks.iter().zip(inputs).rev() {
            let before = leaf::<AB, 2>(input.clone());
            let [queries, keys, values] = block.project(before.clone(), &plan_of_graphs);
            let rotated = queries.clone().inner();
            let context = || {
                let split = |x: &Tensor<AB, 2>| plan.split_heads(x.clone().inner());
                Context::Tensors(split(&keys), split(&values))
            };
            let (after, mixed) = (leaf::<AB, 2>(input), leaf::<AB, 2>(context().attend(&plan, rotated.clone())));
            let of_after = linear_in(block.finish(after.clone(), mixed.clone()), dx).backward();
            let attention = context().attend_backward(&plan, rotated, found(&mixed, &of_after), true);
            let [dkeys, dvalues] = attention.context.expect("asked for");
            let sum = linear_in(queries, attention.queries)
                + linear_in(keys, plan.join_heads(dkeys))
                + linear_in(values, plan.join_heads(dvalues));
            let of_before = sum.backward();
            dx = found(&after, &of_after) + found(&before, &of_before);
            gradients.add(NamedGradients::collect::<AB, _>(lm, &of_after));
            gradients.add(NamedGradients::collect::<AB, _>(lm, &of_before));
        }

        // The beginning.
        if lm.embedding.is_require_grad() {
            let of_table = linear_in(lm.embed(ids(&tokens, &device)), dx).backward();
            gradients.add(NamedGradients::collect::<AB, _>(lm, &of_table));
        }
        (summed(&losses), gradients)
    }

    /// Losses of the hidden states `[labels, H]`, the gradient of their sum, and the gradients of norm and head where those
    /// are trained: a chunk of rows at a time.
    fn head_by_chunks<AB: AutodiffBackend>(
        &self,
        lm: &Lm<AB>,
        hidden: Tensor<AB::InnerBackend, 2>,
        targets: &[u32],
    ) -> (Vec<f32>, Tensor<AB::InnerBackend, 2>, NamedGradients<AB::InnerBackend>) {
        let mut gradients = NamedGradients::default();
        if !lm.final_norm.weight.is_require_grad() {
            let (losses, dhidden) = chunked_head_loss(lm, hidden, targets, self.head_chunk);
            return (losses, dhidden, gradients);
        }
        let (mut losses, mut pieces) = (Vec::with_capacity(targets.len()), Vec::new());
        for (i, targets) in targets.chunks(self.head_chunk).enumerate() {
            let rows = leaf::<AB, 2>(hidden.clone().narrow(0, i * self.head_chunk, targets.len()));
            let loss = cross_entropy(lm.logits(rows.clone()), ids(targets, &hidden.device()));
            losses.extend(host_values(loss.clone().inner()));
            let of_chunk = loss.sum().backward();
            pieces.push(found(&rows, &of_chunk));
            gradients.add(NamedGradients::collect::<AB, _>(lm, &of_chunk));
        }
        (losses, Tensor::cat(pieces, 0), gradients)
    }
}
