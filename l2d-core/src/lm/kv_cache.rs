//! The keys and values of every block, kept for all positions computed so far.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::config::LmConfig;

/// Keys (already rotated) and values of every block, plus how the batch lies in them.
///
/// The buffers have room for more positions than they hold and are written in place; when they are full they double.
/// Sequences of different lengths are padded on the left: sequence `b` occupies slots `padding[b] .. len`, and the token
/// in slot `s` has position `s - padding[b]`.
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    layers: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    padding: Vec<usize>,
    len: usize,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for `padding.len()` sequences. `capacity` is a hint of how many slots will be needed; a cache
    /// filled by one call with exactly that many tokens holds them without a copy.
    pub fn new(config: &LmConfig, padding: Vec<usize>, capacity: usize) -> Self {
        Self { layers: vec![None; config.num_layers], padding, len: 0, capacity: capacity.max(1) }
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.padding.len()
    }

    /// Slots filled so far, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing was computed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Left padding of each sequence.
    pub fn padding(&self) -> &[usize] {
        &self.padding
    }

    /// Keys and values of block `layer` over all filled slots: `[batch, kv_heads, len, head_dim]` each.
    ///
    /// # Panics
    /// When block `layer` has not been computed.
    pub fn layer(&self, layer: usize) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let (keys, values) = self.layers[layer].as_ref().expect("the main path has run");
        let filled = keys.dims()[2].min(self.len);
        (keys.clone().narrow(2, 0, filled), values.clone().narrow(2, 0, filled))
    }

    /// Writes the keys and values `[batch, kv_heads, new, head_dim]` of the next slots of block `layer` and returns all
    /// of that block's, the new ones included. [`KvCache::advance`] ends the step once every block has appended.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
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

    /// Ends a step of `new` slots.
    pub(crate) fn advance(&mut self, new: usize) {
        self.len += new;
    }

    /// Forgets all but the first `len` slots, for instance to try another continuation.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Keeps the given sequences, in the given order (one may be repeated): finished ones leave the batch.
    pub fn select(&mut self, rows: &[usize], device: &B::Device) {
        let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let indices = Tensor::<B, 1, burn::tensor::Int>::from_data(indices.as_slice(), device);
        for (keys, values) in self.layers.iter_mut().flatten() {
            *keys = keys.clone().select(0, indices.clone());
            *values = values.clone().select(0, indices.clone());
        }
        self.padding = rows.iter().map(|&row| self.padding[row]).collect();
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
