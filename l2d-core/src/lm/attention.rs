//! Grouped-query attention of a set of rows over cached keys and values.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::kv_cache::KvCache;
use super::rope::{Rope, RopeTable};
use crate::config::LmConfig;
use crate::cpu::{DecodeOps, PagedSequence, Place};

/// Where a set of query rows sits: their rotary angles and what each may see. Made once, used by every block and, at a
/// fixed position, by every evaluation of the diffusion path.
#[derive(Debug, Clone)]
pub struct AttentionPlan<B: Backend>(Plan<B>);

#[derive(Debug, Clone)]
enum Plan<B: Backend> {
    Dense(DensePlan<B>),
    /// For rows over a paged cache.
    Paged(PagedPlan),
}

/// A rectangle of rows, equally many for each sequence, over a dense cache.
#[derive(Debug, Clone)]
pub(crate) struct DensePlan<B: Backend> {
    /// Rotation of the rows' queries.
    query_rope: RopeTable<B>,
    /// Rotation of the rows' keys, where they have any.
    key_rope: RopeTable<B>,
    /// Added to the scores: 0 where a row may look, hugely negative elsewhere. `[batch, 1, 1, rows, slots]`; `None` when
    /// every row sees every slot.
    bias: Option<Tensor<B, 5>>,
    batch: usize,
    rows: usize,
    head_dim: usize,
}

/// Any rows over a paged cache.
#[derive(Debug, Clone)]
pub(crate) struct PagedPlan {
    pub(crate) places: Vec<Place>,
    /// `[rows, head_dim / 2]`.
    cos: Vec<f32>,
    /// `[rows, head_dim / 2]`.
    sin: Vec<f32>,
}

impl<B: Backend> AttentionPlan<B> {
    /// Rows at the given positions (`positions[b]` of sequence `b`; equally many each over a dense cache) of a cache that
    /// will hold `added` more positions of each sequence when they attend. A row sees its sequence up to its own position.
    pub(crate) fn new(
        config: &LmConfig,
        rope: &Rope,
        cache: &KvCache<B>,
        positions: &[Vec<usize>],
        added: usize,
        device: &B::Device,
        dtype: DType,
    ) -> Self {
        if cache.is_paged() {
            let (cos, sin) = rope.angles(positions.iter().flatten().copied());
            let places = positions.iter().enumerate();
            let places = places.flat_map(|(sequence, at)| at.iter().map(move |&position| Place { sequence, position }));
            return Self(Plan::Paged(PagedPlan { places: places.collect(), cos, sin }));
        }
        Self::dense(config, rope, cache.padding(), positions, cache.slots() + added, device, dtype)
    }

    /// Rows at the given positions, equally many of each sequence, over keys and values in `slots` slots. Sequence `b`
    /// begins in slot `padding[b]`.
    pub fn dense(
        config: &LmConfig,
        rope: &Rope,
        padding: &[usize],
        positions: &[Vec<usize>],
        slots: usize,
        device: &B::Device,
        dtype: DType,
    ) -> Self {
        let (batch, rows) = (positions.len(), positions.first().map_or(0, Vec::len));
        let last = |b: usize, position: usize| position + padding[b] + 1 == slots;
        let sees_all = padding.iter().all(|&pad| pad == 0)
            && positions.iter().enumerate().all(|(b, at)| at.iter().all(|&position| last(b, position)));
        let bias = (!sees_all).then(|| {
            let hidden = if dtype == DType::F16 { -6e4 } else { -1e30 };
            let mut values = Vec::with_capacity(batch * rows * slots);
            for (at, &pad) in positions.iter().zip(padding) {
                for &position in at {
                    let seen = pad..=pad + position;
                    values.extend((0..slots).map(|slot| if seen.contains(&slot) { 0f32 } else { hidden }));
                }
            }
            Tensor::<B, 5>::from_data(TensorData::new(values, [batch, 1, 1, rows, slots]), device).cast(dtype)
        });
        Self(Plan::Dense(DensePlan {
            query_rope: rope.table(positions, config.num_heads, device).cast(dtype),
            key_rope: rope.table(positions, config.num_kv_heads, device).cast(dtype),
            bias,
            batch,
            rows,
            head_dim: config.head_dim,
        }))
    }

    /// Queries `[rows, heads * head_dim]`, rotated to their positions.
    pub fn rotate_queries(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.0 {
            Plan::Dense(plan) => plan.query_rope.rotate(x),
            Plan::Paged(plan) => plan.rotate(x),
        }
    }

    /// Keys `[rows, kv_heads * head_dim]`, rotated to their positions.
    pub fn rotate_keys(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.0 {
            Plan::Dense(plan) => plan.key_rope.rotate(x),
            Plan::Paged(plan) => plan.rotate(x),
        }
    }

    pub(crate) fn as_dense(&self) -> &DensePlan<B> {
        match &self.0 {
            Plan::Dense(plan) => plan,
            Plan::Paged(_) => unreachable!("a plan is used with the kind of cache it was made for"),
        }
    }

    pub(crate) fn as_paged(&self) -> &PagedPlan {
        match &self.0 {
            Plan::Paged(plan) => plan,
            Plan::Dense(_) => unreachable!("a plan is used with the kind of cache it was made for"),
        }
    }
}

impl<B: Backend> DensePlan<B> {
    /// Keys or values `[batch * rows, kv_heads * head_dim]` as `[batch, kv_heads, rows, head_dim]`.
    pub(crate) fn split_heads(&self, x: Tensor<B, 2>) -> Tensor<B, 4> {
        let heads = x.dims()[1] / self.head_dim;
        x.reshape([self.batch, self.rows, heads, self.head_dim]).swap_dims(1, 2)
    }
}

impl PagedPlan {
    fn rotate<B: Backend>(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::packed_rotate(x, &self.cos, &self.sin)
    }
}

/// What the rows of a block attend to: the keys and values of some positions in one layer.
#[derive(Debug)]
pub enum Context<'a, B: Backend> {
    /// `[batch, kv_heads, slots, head_dim]` each.
    Tensors(Tensor<B, 4>, Tensor<B, 4>),
    /// A layer of sequences in pages.
    Pages(&'a [PagedSequence], usize),
}

impl<B: Backend> Context<'_, B> {
    /// `softmax(Q K^T / sqrt(head_dim)) V` for rotated queries `[rows, heads * head_dim]`, same shape out.
    pub fn attend(self, plan: &AttentionPlan<B>, queries: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Tensors(keys, values) => attend(plan.as_dense(), queries, keys, values),
            Self::Pages(sequences, layer) => B::paged_attention(queries, sequences, layer, &plan.as_paged().places),
        }
    }
}

/// `softmax(Q K^T / sqrt(head_dim)) V` for rotated queries `[batch * rows, heads * head_dim]` over keys and values
/// `[batch, kv_heads, slots, head_dim]`; returns `[batch * rows, heads * head_dim]`.
///
/// Keys and values are never repeated. The query heads of one key/value head are a broadcast axis where there are many
/// rows; where there is one row each they are rows of one product, so that keys and values are read once.
fn attend<B: Backend>(
    plan: &DensePlan<B>,
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
