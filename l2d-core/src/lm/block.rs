//! One block of the base LM.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{FloatDType, Tensor};

use super::attention::AttentionPlan;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::mlp::Mlp;
use super::norm::RmsNorm;
use crate::cpu::WeightFormat;

/// `x += O(attend(rope(Q(n_a(x))), rope(K), V))`, then `x += MLP(n_m(x))`.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Norm before attention, `n_a`.
    pub attention_norm: RmsNorm<B>,
    /// `H -> heads * head_dim`.
    pub query: Linear<B>,
    /// `H -> kv_heads * head_dim`.
    pub key: Linear<B>,
    /// `H -> kv_heads * head_dim`.
    pub value: Linear<B>,
    /// `heads * head_dim -> H`.
    pub output: Linear<B>,
    /// Norm before the MLP, `n_m`.
    pub mlp_norm: RmsNorm<B>,
    /// The gated MLP.
    pub mlp: Mlp<B>,
}

impl<B: Backend> Block<B> {
    /// The same block with its weights packed for the CPU's decoding kernels.
    pub fn packed(self, format: WeightFormat) -> Self {
        Self {
            query: self.query.packed(format),
            key: self.key.packed(format),
            value: self.value.packed(format),
            output: self.output.packed(format),
            mlp: self.mlp.packed(format),
            attention_norm: self.attention_norm.packed(),
            mlp_norm: self.mlp_norm.packed(),
        }
    }

    /// `x: [rows, H]`, same shape out; appends this block's keys and values to the cache.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        layer: usize,
        plan: &AttentionPlan<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        let [queries, keys, values] = self.project(x.clone(), plan);
        let context = cache.append(layer, plan, keys, values);
        self.finish(x, context.attend(plan, queries))
    }

    /// What comes before attention: rotated queries `[rows, heads * head_dim]`, rotated keys and values
    /// `[rows, kv_heads * head_dim]`.
    pub fn project(&self, x: Tensor<B, 2>, plan: &AttentionPlan<B>) -> [Tensor<B, 2>; 3] {
        let u = self.attention_norm.forward(x);
        let queries = plan.rotate_queries(self.query.forward(u.clone()));
        let keys = plan.rotate_keys(self.key.forward(u.clone()));
        [queries, keys, self.value.forward(u)]
    }

    /// What comes after it: the block's input `x` and attention's result `mixed: [rows, heads * head_dim]` to its output.
    pub fn finish(&self, x: Tensor<B, 2>, mixed: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = x + self.output.forward(mixed);
        let u = self.mlp_norm.forward(x.clone());
        x + self.mlp.forward(u)
    }

    /// The same block with the weights of its linear layers kept in the given format ([`Linear::kept_as`]).
    pub fn kept_as(self, dtype: FloatDType) -> Self {
        self.with_linears(|linear| linear.kept_as(dtype))
    }

    /// The same block with its linear layers computed in the given format ([`Linear::computed_in`]).
    pub fn computed_in(self, dtype: FloatDType) -> Self {
        self.with_linears(|linear| linear.computed_in(dtype))
    }

    fn with_linears(self, change: impl Fn(Linear<B>) -> Linear<B>) -> Self {
        let Self { query, key, value, output, mlp, .. } = self;
        let [query, key, value, output] = [query, key, value, output].map(&change);
        let [gate, up, down] = [mlp.gate, mlp.up, mlp.down].map(&change);
        Self { query, key, value, output, mlp: Mlp { gate, up, down }, ..self }
    }
}
