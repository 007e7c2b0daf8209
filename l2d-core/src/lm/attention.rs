//! Grouped-query attention of a set of rows over cached keys and values.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::dense_attention::{attend, attention_gradients};
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
    pub(super) bias: Option<Tensor<B, 5>>,
    pub(super) batch: usize,
    pub(super) rows: usize,
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

    /// Keys or values `[batch * rows, kv_heads * head_dim]` of a dense plan's rows as `[batch, kv_heads, rows, head_dim]`.
    ///
    /// # Panics
    /// When the plan is for a paged cache.
    pub fn split_heads(&self, x: Tensor<B, 2>) -> Tensor<B, 4> {
        self.as_dense().split_heads(x)
    }

    /// [`AttentionPlan::split_heads`] the other way round.
    pub fn join_heads(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let [batch, heads, rows, head_dim] = x.dims();
        x.swap_dims(1, 2).reshape([batch * rows, heads * head_dim])
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

/// Derivatives of a loss by what [`Context::attend`] was given.
#[derive(Debug)]
pub struct AttentionGradients<B: Backend> {
    /// By the rotated queries, `[rows, heads * head_dim]`.
    pub queries: Tensor<B, 2>,
    /// By keys and values, `[batch, kv_heads, slots, head_dim]` each; `None` where they were not asked for.
    pub context: Option<[Tensor<B, 4>; 2]>,
}

impl<B: Backend> Context<'_, B> {
    /// From the derivative by [`Context::attend`]'s result, `dmixed: [rows, heads * head_dim]`, to those by the queries it
    /// was given and, where `learn_context`, by keys and values. Scores are computed again, some queries at a time.
    ///
    /// # Panics
    /// Over a paged cache, which is for inference.
    pub fn attend_backward(
        self,
        plan: &AttentionPlan<B>,
        queries: Tensor<B, 2>,
        dmixed: Tensor<B, 2>,
        learn_context: bool,
    ) -> AttentionGradients<B> {
        let Self::Tensors(keys, values) = self else { panic!("a paged cache has no gradients") };
        attention_gradients(plan.as_dense(), queries, keys, values, dmixed, learn_context)
    }

    /// `softmax(Q K^T / sqrt(head_dim)) V` for rotated queries `[rows, heads * head_dim]`, same shape out.
    pub fn attend(self, plan: &AttentionPlan<B>, queries: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Tensors(keys, values) => attend(plan.as_dense(), queries, keys, values),
            Self::Pages(sequences, layer) => B::paged_attention(queries, sequences, layer, &plan.as_paged().places),
        }
    }
}
