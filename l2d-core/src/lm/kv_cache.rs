//! The keys and values of every block, kept for all positions computed so far.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::attention::{AttentionPlan, Context};
use crate::config::LmConfig;
use crate::cpu::{CacheFormat, DecodeOps, PageShape, PagedSequence};

/// Keys (already rotated) and values of every block for a batch of sequences.
///
/// There are two kinds, and [`Lm::new_cache`](super::Lm::new_cache) chooses: tensors of the whole batch on any backend, and
/// pages that sequences share for the CPU's decoding kernels.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend>(Store<B>);

#[derive(Debug, Clone)]
enum Store<B: Backend> {
    Dense(DenseCache<B>),
    Paged(Vec<PagedSequence>),
}

impl<B: Backend> KvCache<B> {
    /// An empty cache of tensors for sequences with the given left padding. `capacity` is a hint of how many slots will be
    /// needed; a cache filled by one call with exactly that many tokens holds them without a copy.
    pub(crate) fn dense(config: &LmConfig, padding: Vec<usize>, capacity: usize) -> Self {
        let layers = vec![None; config.num_layers];
        Self(Store::Dense(DenseCache { layers, padding, len: 0, capacity: capacity.max(1) }))
    }

    /// An empty paged cache.
    pub(crate) fn paged(config: &LmConfig, sequences: usize, format: CacheFormat) -> Self {
        let (layers, heads, head_dim) = (config.num_layers, config.num_kv_heads, config.head_dim);
        let shape = PageShape { layers, heads, head_dim, format };
        Self(Store::Paged(vec![PagedSequence::new(shape); sequences]))
    }

    /// Whether sequences lie in pages: rows of different numbers are taken then.
    pub fn is_paged(&self) -> bool {
        matches!(self.0, Store::Paged(_))
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        match &self.0 {
            Store::Dense(cache) => cache.padding.len(),
            Store::Paged(sequences) => sequences.len(),
        }
    }

    /// Positions computed of a sequence, its padding left out.
    pub fn len_of(&self, sequence: usize) -> usize {
        match &self.0 {
            Store::Dense(cache) => cache.len.saturating_sub(cache.padding[sequence]),
            Store::Paged(sequences) => sequences[sequence].len(),
        }
    }

    /// Nothing was computed yet.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Store::Dense(cache) => cache.len == 0,
            Store::Paged(sequences) => sequences.iter().all(PagedSequence::is_empty),
        }
    }

    /// Keys and values of block `layer` over all filled positions.
    ///
    /// # Panics
    /// When block `layer` has not been computed.
    pub fn layer(&self, layer: usize) -> Context<'_, B> {
        match &self.0 {
            Store::Dense(cache) => {
                let (keys, values) = cache.layer(layer);
                Context::Tensors(keys, values)
            }
            Store::Paged(sequences) => Context::Pages(sequences, layer),
        }
    }

    /// Keys and values of block `layer` as tensors, `[batch, kv_heads, slots, head_dim]` each; `None` for a paged cache.
    ///
    /// # Panics
    /// When block `layer` has not been computed.
    pub fn layer_tensors(&self, layer: usize) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
        match &self.0 {
            Store::Dense(cache) => Some(cache.layer(layer)),
            Store::Paged(_) => None,
        }
    }

    /// Makes room for the next positions: `new[b]` of sequence `b`.
    pub(crate) fn reserve(&mut self, new: impl Iterator<Item = usize>) {
        if let Store::Paged(sequences) = &mut self.0 {
            sequences.iter_mut().zip(new).for_each(|(sequence, new)| sequence.reserve(new));
        }
    }

    /// Writes rotated keys and values `[rows, kv_heads * head_dim]` of the next positions of block `layer` and returns all
    /// of that block's, the new ones included. [`KvCache::advance`] ends the step once every block has appended.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        plan: &AttentionPlan<B>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Context<'_, B> {
        match &mut self.0 {
            Store::Dense(cache) => {
                let plan = plan.as_dense();
                let (keys, values) = cache.append(layer, plan.split_heads(keys), plan.split_heads(values));
                Context::Tensors(keys, values)
            }
            Store::Paged(sequences) => {
                B::paged_append(keys, values, sequences, layer, &plan.as_paged().places);
                Context::Pages(sequences, layer)
            }
        }
    }

    /// Ends a step of `new[b]` positions of sequence `b`, equally many each in a dense cache.
    pub(crate) fn advance(&mut self, mut new: impl Iterator<Item = usize>) {
        match &mut self.0 {
            Store::Dense(cache) => cache.len += new.next().unwrap_or(0),
            Store::Paged(sequences) => {
                sequences.iter_mut().zip(new).for_each(|(sequence, new)| sequence.advance(new));
            }
        }
    }

    /// Forgets all but the first `len` positions of every sequence, for instance to try another continuation. In a dense
    /// cache slots are shared: the sequence with the most padding keeps `len` positions, the others as many slots.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            Store::Dense(cache) => {
                let padding = cache.padding.iter().copied().max().unwrap_or(0);
                cache.len = cache.len.min(padding + len);
            }
            Store::Paged(sequences) => sequences.iter_mut().for_each(|sequence| sequence.truncate(len)),
        }
    }

    /// Keeps the given sequences, in the given order (one may be repeated): finished ones leave the batch.
    pub fn select(&mut self, rows: &[usize], device: &B::Device) {
        match &mut self.0 {
            Store::Dense(cache) => cache.select(rows, device),
            Store::Paged(sequences) => *sequences = rows.iter().map(|&row| sequences[row].clone()).collect(),
        }
    }

    /// Adds the sequences of another cache of the same model behind this one's.
    ///
    /// # Panics
    /// If the two are not of one kind.
    pub fn join(&mut self, other: Self) {
        match (&mut self.0, other.0) {
            (Store::Dense(cache), Store::Dense(other)) => cache.join(other),
            (Store::Paged(sequences), Store::Paged(others)) => sequences.extend(others),
            _ => panic!("caches of one model are of one kind"),
        }
    }

    /// Left padding of each sequence, of which a paged cache has none.
    pub fn padding(&self) -> &[usize] {
        match &self.0 {
            Store::Dense(cache) => &cache.padding,
            Store::Paged(_) => &[],
        }
    }

    /// Slots filled so far in a dense cache, padding included.
    pub fn slots(&self) -> usize {
        match &self.0 {
            Store::Dense(cache) => cache.len,
            Store::Paged(_) => 0,
        }
    }
}

/// Tensors of the whole batch.
///
/// The buffers have room for more positions than they hold and are written in place; when they are full they double.
/// Sequences of different lengths are padded on the left: sequence `b` occupies slots `padding[b] .. len`, and the token
/// in slot `s` has position `s - padding[b]`.
#[derive(Debug, Clone)]
struct DenseCache<B: Backend> {
    layers: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    padding: Vec<usize>,
    len: usize,
    capacity: usize,
}

impl<B: Backend> DenseCache<B> {
    fn layer(&self, layer: usize) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let (keys, values) = self.layers[layer].as_ref().expect("the main path has run");
        let filled = keys.dims()[2].min(self.len);
        (keys.clone().narrow(2, 0, filled), values.clone().narrow(2, 0, filled))
    }

    fn append(&mut self, layer: usize, keys: Tensor<B, 4>, values: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let new = keys.dims()[2];
        let end = self.len + new;
        let stored = match self.layers[layer].take() {
            None if self.len == 0 && new >= self.capacity => (keys, values),
            None => {
                let room = self.capacity.max(end);
                (write(grown(&keys, room), keys, self.len), write(grown(&values, room), values, self.len))
            }
            Some((old_keys, old_values)) => {
                let room = old_keys.dims()[2];
                if end <= room {
                    (write(old_keys, keys, self.len), write(old_values, values, self.len))
                } else {
                    let room = end.max(2 * room);
                    let moved = |old: Tensor<B, 4>, len| write(grown(&old, room), old.narrow(2, 0, len), 0);
                    (
                        write(moved(old_keys, self.len), keys, self.len),
                        write(moved(old_values, self.len), values, self.len),
                    )
                }
            }
        };
        let view = (stored.0.clone().narrow(2, 0, end), stored.1.clone().narrow(2, 0, end));
        self.layers[layer] = Some(stored);
        view
    }

    fn select(&mut self, rows: &[usize], device: &B::Device) {
        let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let indices = Tensor::<B, 1, burn::tensor::Int>::from_data(indices.as_slice(), device);
        for (keys, values) in self.layers.iter_mut().flatten() {
            *keys = keys.clone().select(0, indices.clone());
            *values = values.clone().select(0, indices.clone());
        }
        self.padding = rows.iter().map(|&row| self.padding[row]).collect();
        // Slots that are padding for all who stay are given back: where sequences leave and join, the cache would otherwise
        // grow with every token that was ever decoded.
        let unused = self.padding.iter().copied().min().unwrap_or(0);
        if unused > 0 {
            for (keys, values) in self.layers.iter_mut().flatten() {
                let kept = |x: &Tensor<B, 4>| x.clone().narrow(2, unused, x.dims()[2] - unused);
                // A copy, so that the buffer is shared with nothing and written in place.
                let moved = |x: &Tensor<B, 4>| write(grown(x, x.dims()[2] - unused), kept(x), 0);
                (*keys, *values) = (moved(keys), moved(values));
            }
            self.len -= unused;
            self.padding.iter_mut().for_each(|padding| *padding -= unused);
        }
    }

    /// Both padded on the left to one length, one under the other.
    fn join(&mut self, other: Self) {
        let len = self.len.max(other.len);
        let room = self.capacity.max(other.capacity).max(len);
        let widened = |cache: &Self, x: &Tensor<B, 4>| {
            let filled = x.clone().narrow(2, 0, cache.len);
            write(grown(x, room), filled, len - cache.len)
        };
        for (mine, theirs) in self.layers.iter().zip(&other.layers) {
            assert_eq!(mine.is_some(), theirs.is_some(), "both have run, or neither");
        }
        let join = |mine: &Tensor<B, 4>, theirs: &Tensor<B, 4>| {
            Tensor::cat(vec![widened(self, mine), widened(&other, theirs)], 0)
        };
        let layers = self.layers.iter().zip(&other.layers);
        let joined = layers.map(|pair| match pair {
            (Some((keys, values)), Some((other_keys, other_values))) => {
                Some((join(keys, other_keys), join(values, other_values)))
            }
            _ => None,
        });
        let joined = joined.collect();
        let padding = |cache: &Self| cache.padding.iter().map(|&pad| pad + len - cache.len).collect::<Vec<_>>();
        let padding = [padding(self), padding(&other)].concat();
        *self = Self { layers: joined, padding, len, capacity: room };
    }
}

/// A zero buffer like `like: [batch, kv_heads, any, head_dim]` with `room` slots.
fn grown<B: Backend>(like: &Tensor<B, 4>, room: usize) -> Tensor<B, 4> {
    let [batch, heads, _, head_dim] = like.dims();
    Tensor::<B, 4>::zeros([batch, heads, room, head_dim], (&like.device(), like.dtype()))
}

/// Writes `new` into the slots from `at` on. The buffer is owned here and shared with no view, so backends write in
/// place.
fn write<B: Backend>(buffer: Tensor<B, 4>, new: Tensor<B, 4>, at: usize) -> Tensor<B, 4> {
    let [batch, heads, slots, head_dim] = new.dims();
    buffer.slice_assign([0..batch, 0..heads, at..at + slots, 0..head_dim], new)
}
