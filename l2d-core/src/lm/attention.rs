//! Grouped-query attention of a set of rows over cached keys and values.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::kv_cache::KvCache;
use super::rope::{Rope, RopeTable};
use crate::config::LmConfig;

/// Where a set of query rows sits: their rotary angles and what each may see. Made once, used by every block and, at a
/// fixed position, by every evaluation of the diffusion path.
#[derive(Debug, Clone)]
pub struct AttentionPlan<B: Backend> {
    /// Rotary angles of the rows.
    pub rope: RopeTable<B>,
    /// Added to the scores: 0 where a row may look, hugely negative elsewhere. `[batch, 1, group * rows, slots]`, with
    /// `group` the query heads of one key/value head; `None` when every row sees every slot.
    bias: Option<Tensor<B, 4>>,
    batch: usize,
    rows: usize,
    group: usize,
}

impl<B: Backend> AttentionPlan<B> {
    /// Rows at the given slots (`slots[b]` for sequence `b`, equally many each) of a cache that will hold `cached` slots
    /// when they attend. The row in slot `s` of sequence `b` sees slots `padding[b] ..= s` and has position
    /// `s - padding[b]`.
    pub fn new(
        config: &LmConfig,
        rope: &Rope,
        padding: &[usize],
        slots: &[Vec<usize>],
        cached: usize,
        device: &B::Device,
        dtype: DType,
    ) -> Self {
        let (batch, rows) = (slots.len(), slots.first().map_or(0, Vec::len));
        let group = config.num_heads / config.num_kv_heads;
        let positions: Vec<Vec<usize>> = slots
            .iter()
            .zip(padding)
            .map(|(slots, &pad)| slots.iter().map(|&slot| slot.saturating_sub(pad)).collect())
            .collect();
        let sees_all = padding.iter().all(|&pad| pad == 0) && slots.iter().flatten().all(|&slot| slot + 1 == cached);
        let bias = (!sees_all).then(|| {
            let hidden = if dtype == DType::F16 { -6e4 } else { -1e30 };
            let mut values = Vec::with_capacity(batch * group * rows * cached);
            for (slots, &pad) in slots.iter().zip(padding) {
                for _ in 0..group {
                    for &slot in slots {
                        values.extend((0..cached).map(|key| if key >= pad && key <= slot { 0f32 } else { hidden }));
                    }
                }
            }
            Tensor::<B, 4>::from_data(TensorData::new(values, [batch, 1, group * rows, cached]), device).cast(dtype)
        });
        let mut table = rope.table(&positions, device);
        table.cos = table.cos.cast(dtype);
        table.sin = table.sin.cast(dtype);
        Self { rope: table, bias, batch, rows, group }
    }

    /// The next `new` slots of a cache.
    pub fn next(
        config: &LmConfig,
        rope: &Rope,
        cache: &KvCache<B>,
        new: usize,
        device: &B::Device,
        dtype: DType,
    ) -> Self {
        let slots: Vec<Vec<usize>> = vec![(cache.len()..cache.len() + new).collect(); cache.batch()];
        Self::new(config, rope, cache.padding(), &slots, cache.len() + new, device, dtype)
    }

    /// Splits `x: [batch * rows, heads * head_dim]` into heads, `[batch, heads, rows, head_dim]`.
    pub fn split_heads(&self, x: Tensor<B, 2>, head_dim: usize) -> Tensor<B, 4> {
        let heads = x.dims()[1] / head_dim;
        x.reshape([self.batch, self.rows, heads, head_dim]).swap_dims(1, 2)
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Rows per sequence.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// `softmax(Q K^T / sqrt(head_dim)) V` for rotated queries `[batch, heads, rows, head_dim]` over keys and values
/// `[batch, kv_heads, slots, head_dim]`; returns `[batch * rows, heads * head_dim]`.
///
/// The query heads of one key/value head are stacked as extra rows, so keys and values are never repeated.
pub fn attend<B: Backend>(
    plan: &AttentionPlan<B>,
    queries: Tensor<B, 4>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
) -> Tensor<B, 2> {
    let [batch, heads, rows, head_dim] = queries.dims();
    let kv_heads = heads / plan.group;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let queries = (queries * scale).reshape([batch, kv_heads, plan.group * rows, head_dim]);
    let mut scores = queries.matmul(keys.swap_dims(2, 3)); // [batch, kv_heads, group * rows, slots]
    if let Some(bias) = &plan.bias {
        scores = scores + bias.clone();
    }
    let mixed = softmax(scores, 3).matmul(values); // [batch, kv_heads, group * rows, head_dim]
    mixed
        .reshape([batch, heads, rows, head_dim])
        .swap_dims(1, 2) // [batch, rows, heads, head_dim]
        .reshape([batch * rows, heads * head_dim])
}
