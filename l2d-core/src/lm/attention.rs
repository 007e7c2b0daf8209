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
    /// Rotation of the rows' queries.
    pub query_rope: RopeTable<B>,
    /// Rotation of the rows' keys, where they have any.
    pub key_rope: RopeTable<B>,
    /// Added to the scores: 0 where a row may look, hugely negative elsewhere. `[batch, 1, 1, rows, slots]`; `None` when
    /// every row sees every slot.
    bias: Option<Tensor<B, 5>>,
    batch: usize,
    rows: usize,
    head_dim: usize,
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
        let positions: Vec<Vec<usize>> = slots
            .iter()
            .zip(padding)
            .map(|(slots, &pad)| slots.iter().map(|&slot| slot.saturating_sub(pad)).collect())
            .collect();
        let sees_all = padding.iter().all(|&pad| pad == 0) && slots.iter().flatten().all(|&slot| slot + 1 == cached);
        let bias = (!sees_all).then(|| {
            let hidden = if dtype == DType::F16 { -6e4 } else { -1e30 };
            let mut values = Vec::with_capacity(batch * rows * cached);
            for (slots, &pad) in slots.iter().zip(padding) {
                for &slot in slots {
                    values.extend((0..cached).map(|key| if key >= pad && key <= slot { 0f32 } else { hidden }));
                }
            }
            Tensor::<B, 5>::from_data(TensorData::new(values, [batch, 1, 1, rows, cached]), device).cast(dtype)
        });
        Self {
            query_rope: rope.table(&positions, config.num_heads, device).cast(dtype),
            key_rope: rope.table(&positions, config.num_kv_heads, device).cast(dtype),
            bias,
            batch,
            rows,
            head_dim: config.head_dim,
        }
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

    /// Keys or values `[batch * rows, kv_heads * head_dim]` as `[batch, kv_heads, rows, head_dim]`.
    pub fn split_heads(&self, x: Tensor<B, 2>) -> Tensor<B, 4> {
        let heads = x.dims()[1] / self.head_dim;
        x.reshape([self.batch, self.rows, heads, self.head_dim]).swap_dims(1, 2)
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

/// `softmax(Q K^T / sqrt(head_dim)) V` for rotated queries `[batch * rows, heads * head_dim]` over keys and values
/// `[batch, kv_heads, slots, head_dim]`; returns `[batch * rows, heads * head_dim]`.
///
/// Keys and values are never repeated. The query heads of one key/value head are a broadcast axis where there are many
/// rows; where there is one row each they are rows of one product, so that keys and values are read once.
pub fn attend<B: Backend>(
    plan: &AttentionPlan<B>,
    queries: Tensor<B, 2>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
) -> Tensor<B, 2> {
    let ([_, width], [_, kv_heads, _, head_dim]) = (queries.dims(), keys.dims());
    let (batch, rows, group) = (plan.batch, plan.rows, width / head_dim / kv_heads);
    let queries = queries * (1.0 / (head_dim as f64).sqrt());
    let queries = if rows == 1 {
        queries.reshape([batch, kv_heads, 1, group, head_dim])
    } else {
        // [batch, kv_heads, group, rows, head_dim]
        queries.reshape([batch, rows, kv_heads, group, head_dim]).permute([0, 2, 3, 1, 4])
    };
    let mut scores = queries.matmul(keys.swap_dims(2, 3).unsqueeze_dim(2)); // [batch, kv_heads, group, rows, slots]
    if let Some(bias) = &plan.bias {
        // With one row, `group` stands in the place of `rows`: the bias broadcasts over it.
        scores = scores + bias.clone();
    }
    let mixed = softmax(scores, 4).matmul(values.unsqueeze_dim(2)); // [batch, kv_heads, group, rows, head_dim]
    let mixed = if rows == 1 { mixed } else { mixed.permute([0, 3, 1, 2, 4]) };
    mixed.reshape([batch * rows, width])
}
