//! The diffusion path, block by block.

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use l2d_core::diffusion::{BlockModulation, DiffusionPath, Modulation, merge};

use super::super::draws::{Draws, Labelled};
use super::super::l2d::{L2dObjective, Rows, summed};
use super::super::loss::{StepLoss, chunked_head_loss, ids};
use super::{found, leaf, linear_in};
use crate::optimiser::NamedGradients;

impl<AB: AutodiffBackend> L2dObjective<AB> {
    /// [`L2dObjective::loss_and_gradients`] with each block computed again on the way back.
    pub(in super::super) fn by_blocks(
        &self,
        path: &DiffusionPath<AB>,
        batch: &Labelled<'_>,
        rows: Rows,
        draws: &Draws,
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        let (cache, hidden) = self.main_pass(batch);
        let device = self.lm.device();
        let hidden = hidden.select(0, ids(&rows.places, &device));
        let (inner, timesteps, classes) = (path.valid(), rows.timesteps(draws), rows.classes(draws));
        let classes = classes.as_deref();
        let (plan, plan_of_graphs) = (rows.plan(&self.lm, &cache), rows.plan(&self.frozen, &cache));
        let collect = |gradients: &AB::Gradients| NamedGradients::collect::<AB, _>(path, gradients);

        // There: a block keeps its input.
        let tau = inner.conditioning(&timesteps, classes);
        let ends = inner.modulation_of_ends(&timesteps, classes, tau.clone());
        let mut z = inner.encode(rows.corrupted(&self.lm, &inner, draws, &timesteps), &ends);
        let mut inputs = Vec::with_capacity(inner.blocks.len());
        for (layer, (block, base)) in inner.blocks.iter().zip(&self.lm.blocks).enumerate() {
            inputs.push(z.clone());
            let modulation = BlockModulation::new(&block.modulation, tau.clone());
            z = block.forward(z, base, &modulation, &plan, cache.layer(layer));
        }

        // The end.
        let (z, tau_of_end) = (leaf::<AB, 2>(z), leaf::<AB, 2>(tau.clone()));
        let end = path.modulation_of_ends(&timesteps, classes, tau_of_end.clone());
        let merged = merge(Tensor::from_inner(hidden), z.clone(), &end).select(0, ids(&rows.labelled, &device));
        let (losses, dmerged) = chunked_head_loss(&self.frozen, merged.clone().inner(), &rows.targets, self.head_chunk);
        let of_end = linear_in(merged, dmerged).backward();
        let mut gradients = collect(&of_end);
        let (mut dz, mut dtau) = (found(&z, &of_end), found(&tau_of_end, &of_end));

        // Back.
        for (layer, input) in inputs.into_iter().enumerate().rev() {
            let (block, base) = (&path.blocks[layer], &self.frozen.blocks[layer]);
            let modulation = |tau: &Tensor<AB, 2>| BlockModulation::new(&block.modulation, tau.clone());
            let (z_before, tau_before) = (leaf::<AB, 2>(input.clone()), leaf::<AB, 2>(tau.clone()));
            let queries = block.queries(z_before.clone(), base, &modulation(&tau_before), &plan_of_graphs);
            let rotated = queries.clone().inner();
            let (z_after, tau_after) = (leaf::<AB, 2>(input), leaf::<AB, 2>(tau.clone()));
            let mixed = leaf::<AB, 2>(cache.layer(layer).attend(&plan, rotated.clone()));
            let out = block.finish(z_after.clone(), mixed.clone(), base, &modulation(&tau_after));
            let after = linear_in(out, dz).backward();
            let dmixed = found(&mixed, &after);
            let dqueries = cache.layer(layer).attend_backward(&plan, rotated, dmixed, false).queries;
            let before = linear_in(queries, dqueries).backward();
            dz = found(&z_after, &after) + found(&z_before, &before);
            dtau = dtau + found(&tau_after, &after) + found(&tau_before, &before);
            gradients.add(collect(&after));
            gradients.add(collect(&before));
        }

        // The beginning.
        let ends = Modulation {
            input_scale: Tensor::from_inner(ends.input_scale),
            blocks: Vec::new(),
            final_weight: Tensor::from_inner(ends.final_weight),
        };
        let z = path.encode(rows.corrupted(&self.frozen, path, draws, &timesteps), &ends);
        let tau = path.conditioning(&timesteps, classes);
        gradients.add(collect(&(linear_in(z, dz) + linear_in(tau, dtau)).backward()));
        (summed(&losses, draws), gradients)
    }
}
