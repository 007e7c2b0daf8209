//! The base LM as a whole.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};

use super::attention::AttentionPlan;
use super::block::Block;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::token_table::{TokenTable, VocabularyShards};
use super::weights::host_values;
use crate::config::LmConfig;
use crate::cpu::{CacheFormat, PackedFormat, PackedMatrix, WeightFormat};

/// A decoder-only language model.
#[derive(Module, Debug)]
pub struct Lm<B: Backend> {
    /// Token embeddings, `[V, H]`.
    pub embedding: Param<Tensor<B, 2>>,
    /// The blocks, first to last.
    pub blocks: Vec<Block<B>>,
    /// Norm before the head.
    pub final_norm: RmsNorm<B>,
    /// The LM head `[H, V]`; absent while a tied model is trained, where the embedding stands in for it, and where it is in parts.
    pub head: Option<Linear<B>>,
    /// Embedding and head in parts, where the device cannot hold them whole; then `embedding` is one row that means nothing.
    pub shards: Option<VocabularyShards<B>>,
    /// The architecture.
    #[module(skip)]
    pub config: LmConfig,
    /// Rotary frequencies.
    #[module(skip)]
    pub rope: Rope,
    /// How the caches of a packed model store keys and values.
    #[module(skip)]
    pub cache_format: CacheFormat,
}

impl<B: Backend> Lm<B> {
    /// The embeddings of some tokens: `[rows, H]`.
    pub fn embed(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let rows = self.embedding_table().rows(tokens);
        // The table may be kept in fewer bits than are computed with.
        if rows.dtype() == self.dtype() { rows } else { rows.cast(self.dtype()) }
    }

    /// The embeddings of all tokens.
    pub fn embedding_table(&self) -> TokenTable<B> {
        match &self.shards {
            Some(shards) => shards.embedding(),
            None => TokenTable::new(vec![self.embedding.val()]),
        }
    }

    /// Runs the main path over the next tokens of every sequence and appends to the cache. Returns the hidden states before
    /// the final norm, `[rows, H]`, sequence by sequence.
    ///
    /// In a dense cache every sequence has equally many tokens, and padding slots (see [`Lm::new_cache`]) take any valid
    /// token id: their rows are meaningless and nothing sees them.
    ///
    /// # Panics
    /// When `tokens` does not hold a list for each of the cache's sequences, or lists of different lengths for a dense cache.
    pub fn forward(&self, tokens: &[Vec<u32>], cache: &mut KvCache<B>) -> Tensor<B, 2> {
        self.forward_with(tokens, cache, |_, _| {})
    }

    /// [`Lm::forward`], calling `visit(layer, hidden)` with the residual stream `[rows, H]` after each block.
    pub fn forward_with(
        &self,
        tokens: &[Vec<u32>],
        cache: &mut KvCache<B>,
        mut visit: impl FnMut(usize, &Tensor<B, 2>),
    ) -> Tensor<B, 2> {
        let new = tokens.first().map_or(0, Vec::len);
        assert_eq!(tokens.len(), cache.batch(), "tokens for every sequence");
        assert!(cache.is_paged() || tokens.iter().all(|row| row.len() == new), "ragged rows for a dense cache");
        let device = self.device();
        let ids = token_ids(tokens.iter().flatten().copied(), &device);
        let mut x = self.embed(ids);
        let positions = |(b, row): (usize, &Vec<u32>)| {
            // A padding slot has no position of its own; any will do.
            let (start, pad) = (cache.slots(), cache.padding().get(b).copied());
            match pad {
                Some(pad) => (start..start + row.len()).map(|slot| slot.saturating_sub(pad)).collect(),
                None => (cache.len_of(b)..cache.len_of(b) + row.len()).collect(),
            }
        };
        let positions: Vec<Vec<usize>> = tokens.iter().enumerate().map(positions).collect();
        let plan = AttentionPlan::new(&self.config, &self.rope, cache, &positions, new, &device, self.dtype());
        cache.reserve(tokens.iter().map(Vec::len));
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, layer, &plan, cache);
            visit(layer, &x);
        }
        cache.advance(tokens.iter().map(Vec::len));
        x
    }

    /// `LMHead(FinalNorm(hidden))`: `[rows, H]` to `[rows, V]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let normed = self.final_norm.forward(hidden);
        match (&self.shards, &self.head) {
            (Some(shards), _) => shards.logits(normed),
            (None, Some(head)) => head.forward(normed),
            (None, None) => normed.matmul(self.embedding.val().transpose()),
        }
    }

    /// The same model with its weights packed for the CPU's decoding kernels ([`crate::cpu`]), matrix by matrix, each dense
    /// one dropped before the next. Embeddings and norms stay as they are. For inference: packed weights have no gradient.
    pub fn packed(self, format: WeightFormat) -> Self {
        let device = self.device();
        let blocks = self.blocks.into_iter().map(|block| block.packed(format)).collect();
        let head = match self.head {
            Some(head) => head.packed(format),
            None => {
                let [vocab, hidden] = self.embedding.shape().dims();
                let table = host_values(self.embedding.val());
                Linear::from_packed(PackedMatrix::from_rows(&table, vocab, hidden, format), None, &device)
            }
        };
        Self { blocks, head: Some(head), final_norm: self.final_norm.packed(), ..self }
    }

    /// The same model with the blocks' matrices kept in a format of fewer bits, in which they are rounded; what is computed
    /// with them, embeddings, norms and the head stay as they are. For a frozen base beside what is trained.
    pub fn kept_as(self, dtype: FloatDType) -> Self {
        let blocks = self.blocks.into_iter().map(|block| block.kept_as(dtype)).collect();
        Self { blocks, ..self }
    }

    /// The same model with embeddings, blocks and head kept in a format of fewer bits and the matrices multiplied in it, for
    /// inference on a device that does that faster than f32. Norms, rotary embeddings, keys and values, softmax and the residual stream
    /// stay as they are.
    pub fn computed_in(self, dtype: FloatDType) -> Self {
        let narrowed = |table: Param<Tensor<B, 2>>| Param::from_tensor(table.val().cast(dtype));
        let blocks = self.blocks.into_iter().map(|block| block.computed_in(dtype)).collect();
        let head = self.head.map(|head| head.computed_in(dtype));
        let shards = self.shards.map(|shards| VocabularyShards {
            embedding: shards.embedding.into_iter().map(narrowed).collect(),
            head: shards.head.into_iter().map(narrowed).collect(),
        });
        Self { embedding: narrowed(self.embedding), blocks, head, shards, ..self }
    }

    /// The plan of diffusion or probe rows at the given positions of a cache's sequences (equally many each, if the cache is
    /// dense).
    pub fn plan_at(&self, cache: &KvCache<B>, positions: &[Vec<usize>]) -> AttentionPlan<B> {
        AttentionPlan::new(&self.config, &self.rope, cache, positions, 0, &self.device(), self.dtype())
    }

    /// An empty cache for sequences with the given left padding. `capacity` is a hint of how many slots will be needed.
    ///
    /// Sequences of different lengths are padded on the left: the token in slot `s` of sequence `b` has position
    /// `s - padding[b]`. A packed model's cache consists of pages, takes lists of different lengths and has no padding slots:
    /// see [`Lm::is_packed`].
    pub fn new_cache(&self, padding: Vec<usize>, capacity: usize) -> KvCache<B> {
        if self.is_packed() {
            return KvCache::paged(&self.config, padding.len(), self.cache_format);
        }
        KvCache::dense(&self.config, padding, capacity)
    }

    /// The same model, the caches of which keep keys and values in the given format once its weights are packed (a cache of
    /// tensors has the model's own number format). Half precision rounds them: see docs/performance.md for what that costs.
    pub fn with_cache_format(self, cache_format: CacheFormat) -> Self {
        Self { cache_format, ..self }
    }

    /// What one more row costs a forward pass of a few rows, as a part of a pass with one; measured on a two-core machine
    /// with AVX-512 (docs/performance.md). The fewer bytes the weights are, the sooner arithmetic is what takes the time.
    pub fn row_cost(&self) -> f64 {
        match self.head.as_ref().zip(self.blocks.first()).and_then(|(_, block)| block.query.packed_format()) {
            Some(PackedFormat::F32) => 0.025,
            Some(PackedFormat::Bf16 | PackedFormat::F16) => 0.09,
            Some(_) => 0.18,
            None => 0.05,
        }
    }

    /// Bytes of the matrices, each of which a forward pass of one row reads once.
    pub fn weight_bytes(&self) -> usize {
        let blocks = self.blocks.iter().flat_map(|block| {
            let attention = [&block.query, &block.key, &block.value, &block.output];
            attention.into_iter().chain([&block.mlp.gate, &block.mlp.up, &block.mlp.down])
        });
        let shards = self.shards.iter().flat_map(|shards| &shards.head).map(|part| dense_bytes(&part.val()));
        blocks.chain(&self.head).map(Linear::weight_bytes).chain(shards).sum()
    }

    /// Whether the CPU's decoding kernels compute it; see [`Lm::packed`].
    pub fn is_packed(&self) -> bool {
        self.head.as_ref().is_some_and(Linear::is_packed)
    }

    /// Where the weights are.
    pub fn device(&self) -> B::Device {
        self.embedding.val().device()
    }

    /// The number format of the computation between matrices.
    pub fn dtype(&self) -> DType {
        self.final_norm.weight.val().dtype()
    }
}

/// Bytes of a tensor's values.
pub(super) fn dense_bytes<B: Backend>(tensor: &Tensor<B, 2>) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}

/// Token ids as a tensor, `[rows]`.
pub(crate) fn token_ids<B: Backend>(ids: impl Iterator<Item = u32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let ids: Vec<i32> = ids.map(|id| id as i32).collect();
    let count = ids.len();
    Tensor::from_data(TensorData::new(ids, [count]), device)
}
