//! The L2D objective: cross-entropy of the joined model at corrupted targets (METHOD section 2, paper equation 5).

use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use l2d_core::corruption::corrupt;
use l2d_core::diffusion::{DiffusionPath, merge};
use l2d_core::lm::{AttentionPlan, Context, KvCache, Lm};

use super::draws::{Draws, Labelled};
use super::loss::{LossByTimestep, StepLoss, chunked_head_loss, chunked_head_loss_only, ids};

/// Trains a [`DiffusionPath`] beside a frozen [`Lm`].
///
/// The main path runs on the inner backend, without automatic differentiation; the diffusion path runs at labelled
/// positions only; the head and the loss run in chunks of rows.
#[derive(Debug)]
pub struct L2dObjective<AB: AutodiffBackend> {
    /// The frozen LM without differentiation.
    lm: Lm<AB::InnerBackend>,
    /// The same weights (shared) where the diffusion path meets them.
    frozen: Lm<AB>,
    /// Rows of logits held at a time.
    pub head_chunk: usize,
}

/// The draws at labelled positions laid out as rows, `batch * width` of them; a sequence with fewer than `width` labels repeats
/// its last slot in rows that count for nothing.
struct Rows {
    slots: Vec<Vec<usize>>,
    /// Rows that carry a label, in label order.
    labelled: Vec<u32>,
    /// Row of each of the `batch * width` places in the flat `[batch * positions]` hidden states.
    places: Vec<u32>,
    targets: Vec<u32>,
    width: usize,
}

impl Rows {
    fn new(batch: &Labelled<'_>, per_position: usize) -> Self {
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
}

impl<AB: AutodiffBackend> L2dObjective<AB> {
    /// An objective beside `lm`, with 1024 rows of logits at a time.
    pub fn new(lm: Lm<AB::InnerBackend>) -> Self {
        let frozen: Lm<AB> = AutodiffModule::from_inner(lm.clone());
        Self { lm, frozen: frozen.no_grad(), head_chunk: 1024 }
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
    ) -> (StepLoss, AB::Gradients) {
        let rows = Rows::new(batch, draws.per_position(batch));
        let (cache, hidden) = self.main_pass(batch);
        let hidden = Tensor::from_inner(hidden.select(0, ids(&rows.places, &self.lm.device())));
        let context = |layer: usize| {
            let (keys, values) = cache.layer_tensors(layer).expect("a model that is trained is not packed");
            Context::Tensors(Tensor::from_inner(keys), Tensor::from_inner(values))
        };
        let merged =
            joined(&self.frozen, path, &(cache.padding().to_vec(), cache.slots()), context, hidden, &rows, draws);
        let merged = merged.select(0, ids(&rows.labelled, &self.frozen.device())); // [labels, H]
        let (losses, gradient) =
            chunked_head_loss(&self.frozen, merged.clone().inner(), &rows.targets, self.head_chunk);
        // The head's part of the chain rule is done: what remains is linear in its result.
        let gradients = (merged * Tensor::from_inner(gradient)).sum().backward();
        (summed(&losses, draws), gradients)
    }

    /// The loss alone, without differentiation; for validation.
    pub fn loss(&self, path: &DiffusionPath<AB::InnerBackend>, batch: &Labelled<'_>, draws: &Draws) -> StepLoss {
        let rows = Rows::new(batch, draws.per_position(batch));
        let (cache, hidden) = self.main_pass(batch);
        let device = self.lm.device();
        let hidden = hidden.select(0, ids(&rows.places, &device));
        let merged = joined(
            &self.lm,
            path,
            &(cache.padding().to_vec(), cache.slots()),
            |layer| cache.layer(layer),
            hidden,
            &rows,
            draws,
        );
        let merged = merged.select(0, ids(&rows.labelled, &device));
        summed(&chunked_head_loss_only(&self.lm, merged, &rows.targets, self.head_chunk), draws)
    }

    fn main_pass(&self, batch: &Labelled<'_>) -> (KvCache<AB::InnerBackend>, Tensor<AB::InnerBackend, 2>) {
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
    (padding, slots): &(Vec<usize>, usize),
    context: impl Fn(usize) -> Context<'a, B>,
    hidden: Tensor<B, 2>,
    rows: &Rows,
    draws: &Draws,
) -> Tensor<B, 2> {
    let (device, dim, count) = (lm.device(), path.config.dim, rows.count());
    let plan = AttentionPlan::dense(&lm.config, &lm.rope, padding, &rows.slots, *slots, &device, lm.dtype());
    let timesteps = rows.spread(&draws.timesteps, 1, 0.5);
    let classes = draws.classes.as_ref().map(|classes| rows.spread(classes, 1, 0));
    let modulation = path.modulation(&timesteps, classes.as_deref());
    let targets = rows.spread(&rows.targets, 1, 0);
    let x1 = path.vocabulary.forward(lm.embed(ids(&targets, &device)));
    let noise = TensorData::new(rows.spread(&draws.noise, dim, 0.0), [count, dim]);
    let x0 = Tensor::<B, 2>::from_data(noise, &device) * path.config.sigma;
    let t = Tensor::from_data(TensorData::new(timesteps, [count, 1]), &device);
    let z = path.forward_with(lm, context, &plan, &modulation, corrupt(x1, x0, t), |_, _| {});
    merge(hidden, z, &modulation)
}

/// Losses, one a row, as sums.
pub(super) fn summed(losses: &[f32], draws: &Draws) -> StepLoss {
    let mut by_timestep = LossByTimestep::default();
    for (&loss, &t) in losses.iter().zip(&draws.timesteps) {
        by_timestep.add(t, loss);
    }
    StepLoss { sum: losses.iter().map(|&loss| loss as f64).sum(), tokens: losses.len(), by_timestep: Some(by_timestep) }
}
