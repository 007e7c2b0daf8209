//! The L2D objective: cross-entropy of the joined model at corrupted targets (METHOD section 2, paper equation 5).

use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use l2d_core::corruption::corrupt;
use l2d_core::diffusion::{AdaptedLinear, DiffusionPath, merge};
use l2d_core::lm::{AttentionPlan, Context, Dropout, KvCache, Lm};

use super::Recompute;
use super::draws::{Draws, Labelled};
use super::loss::{LossByTimestep, StepLoss, chunked_head_loss, chunked_head_loss_only, ids};
use crate::optimiser::NamedGradients;

/// Trains a [`DiffusionPath`] beside a frozen [`Lm`].
///
/// The main path runs on the inner backend, without automatic differentiation; the diffusion path runs at labelled
/// positions only; the head and the loss run in chunks of rows.
#[derive(Debug)]
pub struct L2dObjective<AB: AutodiffBackend> {
    /// The frozen LM without differentiation.
    pub(super) lm: Lm<AB::InnerBackend>,
    /// The same weights (shared) where the diffusion path meets them.
    pub(super) frozen: Lm<AB>,
    /// Rows of logits held at a time.
    pub head_chunk: usize,
    /// What is not kept for the way back.
    pub recompute: Recompute,
}

/// The draws at labelled positions laid out as rows, `batch * width` of them; a sequence with fewer than `width` labels repeats
/// its last slot in rows that count for nothing.
pub(super) struct Rows {
    slots: Vec<Vec<usize>>,
    /// Rows that carry a label, in label order.
    pub(super) labelled: Vec<u32>,
    /// Row of each of the `batch * width` places in the flat `[batch * positions]` hidden states.
    pub(super) places: Vec<u32>,
    pub(super) targets: Vec<u32>,
    width: usize,
}

impl Rows {
    pub(super) fn new(batch: &Labelled<'_>, per_position: usize) -> Self {
        let width = batch.labels.iter().map(Vec::len).max().unwrap_or(0) * per_position;
        let length = batch.tokens.first().map_or(0, Vec::len);
        let (mut slots, mut labelled, mut targets, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (b, labels) in batch.labels.iter().enumerate() {
            let last = labels.last().map_or(0, |&(position, _)| position);
            let draws = || labels.iter().flat_map(|label| std::iter::repeat_n(label, per_position));
            let count = labels.len() * per_position;
            let row: Vec<usize> =
                draws().map(|&(position, _)| position).chain(std::iter::repeat_n(last, width - count)).collect();
            labelled.extend((0..count).map(|i| (b * width + i) as u32));
            targets.extend(draws().map(|&(_, target)| target));
            places.extend(row.iter().map(|&slot| (b * length + slot) as u32));
            slots.push(row);
        }
        Self { slots, labelled, places, targets, width }
    }

    fn count(&self) -> usize {
        self.slots.len() * self.width
    }

    /// Spreads per-label values over all rows, `fill` where there is no label.
    fn spread<T: Copy>(&self, values: &[T], stride: usize, fill: T) -> Vec<T> {
        let mut all = vec![fill; self.count() * stride];
        for (i, &row) in self.labelled.iter().enumerate() {
            all[row as usize * stride..][..stride].copy_from_slice(&values[i * stride..][..stride]);
        }
        all
    }

    /// The diffusion time of each row.
    pub(super) fn timesteps(&self, draws: &Draws) -> Vec<f32> {
        self.spread(&draws.timesteps, 1, 0.5)
    }

    /// The class of each row, where there are classes.
    pub(super) fn classes(&self, draws: &Draws) -> Option<Vec<usize>> {
        draws.classes.as_ref().map(|classes| self.spread(classes, 1, 0))
    }

    /// What each row drops.
    fn dropout(&self, draws: &Draws) -> Option<Dropout> {
        draws.dropout.as_ref().map(|dropout| dropout.of_rows(self.spread(&dropout.seeds, 1, 0)))
    }

    /// Where the rows sit beside the main path's keys and values.
    pub(super) fn plan<B: Backend>(&self, lm: &Lm<B>, cache: &KvCache<impl Backend>) -> AttentionPlan<B> {
        let (config, rope) = (&lm.config, &lm.rope);
        AttentionPlan::dense(config, rope, cache.padding(), &self.slots, cache.slots(), &lm.device(), lm.dtype())
    }

    /// The targets, corrupted: `x_t: [rows, d]`.
    pub(super) fn corrupted<B: Backend>(
        &self,
        lm: &Lm<B>,
        path: &DiffusionPath<B>,
        draws: &Draws,
        timesteps: &[f32],
    ) -> Tensor<B, 2> {
        let (device, dim, count) = (lm.device(), path.config.dim, self.count());
        let targets = self.spread(&self.targets, 1, 0);
        let x1 = path.vocabulary.forward(lm.embed(ids(&targets, &device)));
        let noise = TensorData::new(self.spread(&draws.noise, dim, 0.0), [count, dim]);
        let x0 = Tensor::<B, 2>::from_data(noise, &device) * path.config.sigma;
        let t = Tensor::from_data(TensorData::new(timesteps.to_vec(), [count, 1]), &device);
        corrupt(x1, x0, t)
    }
}

impl<AB: AutodiffBackend> L2dObjective<AB> {
    /// An objective beside `lm`, with 1024 rows of logits at a time.
    pub fn new(lm: Lm<AB::InnerBackend>) -> Self {
        let frozen: Lm<AB> = AutodiffModule::from_inner(lm.clone());
        Self { lm, frozen: frozen.no_grad(), head_chunk: 1024, recompute: Recompute::None }
    }

    /// The frozen LM.
    pub fn lm(&self) -> &Lm<AB::InnerBackend> {
        &self.lm
    }

    /// The loss of a batch under given draws, and the gradient of its SUM over labelled positions.
    ///
    /// # Panics
    /// When the batch has no label or the draws do not fit it.
    pub fn loss_and_gradients(
        &self,
        path: &DiffusionPath<AB>,
        batch: &Labelled<'_>,
        draws: &Draws,
    ) -> (StepLoss, NamedGradients<AB::InnerBackend>) {
        let rows = Rows::new(batch, draws.per_position(batch));
        let dropping = rows.dropout(draws).map(|dropout| dropping(path.clone(), &dropout));
        let path = dropping.as_ref().unwrap_or(path);
        if self.recompute == Recompute::Blocks {
            return self.by_blocks(path, batch, rows, draws);
        }
        let (cache, hidden) = self.main_pass(batch);
        let hidden = Tensor::from_inner(hidden.select(0, ids(&rows.places, &self.lm.device())));
        let context = |layer: usize| {
            let (keys, values) = cache.layer_tensors(layer).expect("a model that is trained is not packed");
            Context::Tensors(Tensor::from_inner(keys), Tensor::from_inner(values))
        };
        let plan = rows.plan(&self.frozen, &cache);
        let merged = joined(&self.frozen, path, &plan, context, hidden, &rows, draws);
        let merged = merged.select(0, ids(&rows.labelled, &self.frozen.device())); // [labels, H]
        let (losses, gradient) =
            chunked_head_loss(&self.frozen, merged.clone().inner(), &rows.targets, self.head_chunk);
        // The head's part of the chain rule is done: what remains is linear in its result.
        let gradients = (merged * Tensor::from_inner(gradient)).sum().backward();
        (summed(&losses, draws), NamedGradients::collect::<AB, _>(path, &gradients))
    }

    /// The loss alone, without differentiation; for validation.
    pub fn loss(&self, path: &DiffusionPath<AB::InnerBackend>, batch: &Labelled<'_>, draws: &Draws) -> StepLoss {
        let rows = Rows::new(batch, draws.per_position(batch));
        let (cache, hidden) = self.main_pass(batch);
        let device = self.lm.device();
        let hidden = hidden.select(0, ids(&rows.places, &device));
        let plan = rows.plan(&self.lm, &cache);
        let merged = joined(&self.lm, path, &plan, |layer| cache.layer(layer), hidden, &rows, draws);
        let merged = merged.select(0, ids(&rows.labelled, &device));
        summed(&chunked_head_loss_only(&self.lm, merged, &rows.targets, self.head_chunk), draws)
    }

    pub(super) fn main_pass(&self, batch: &Labelled<'_>) -> (KvCache<AB::InnerBackend>, Tensor<AB::InnerBackend, 2>) {
        let length = batch.tokens.first().map_or(0, Vec::len);
        let mut cache = self.lm.new_cache(vec![0; batch.tokens.len()], length);
        let hidden = self.lm.forward(batch.tokens, &mut cache);
        (cache, hidden)
    }
}

/// Merged hidden states `[batch * width, H]`, before the final norm.
fn joined<'a, B: Backend>(
    lm: &Lm<B>,
    path: &DiffusionPath<B>,
    plan: &AttentionPlan<B>,
    context: impl Fn(usize) -> Context<'a, B>,
    hidden: Tensor<B, 2>,
    rows: &Rows,
    draws: &Draws,
) -> Tensor<B, 2> {
    let timesteps = rows.timesteps(draws);
    let modulation = path.modulation(&timesteps, rows.classes(draws).as_deref());
    let x_t = rows.corrupted(lm, path, draws, &timesteps);
    let z = path.forward_with(lm, context, plan, &modulation, x_t, |_, _| {});
    merge(hidden, z, &modulation)
}

/// The path with its low-rank corrections dropping some of their inputs.
fn dropping<B: Backend>(mut path: DiffusionPath<B>, dropout: &Dropout) -> DiffusionPath<B> {
    for (i, block) in path.blocks.iter_mut().enumerate() {
        let layers = [&mut block.query, &mut block.output, &mut block.gate, &mut block.up, &mut block.down];
        for (place, layer) in layers.into_iter().enumerate() {
            if let AdaptedLinear::Lora(lora) = layer {
                lora.dropout = Some(dropout.of_layer(i, place));
            }
        }
    }
    path
}

/// Losses, one a row, as sums.
pub(super) fn summed(losses: &[f32], draws: &Draws) -> StepLoss {
    let mut by_timestep = LossByTimestep::default();
    for (&loss, &t) in losses.iter().zip(&draws.timesteps) {
        by_timestep.add(t, loss);
    }
    StepLoss { sum: losses.iter().map(|&loss| loss as f64).sum(), tokens: losses.len(), by_timestep: Some(by_timestep) }
}
