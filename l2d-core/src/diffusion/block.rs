//! One block of the diffusion path (METHOD section 6).

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;

use super::adapted::AdaptedLinear;
use super::config::DiffusionConfig;
use super::modulation::{BlockModulation, ModulationHead};
use crate::lm::{AttentionPlan, Block, Context, gated};

/// The base block's layers in their diffusion version, and the head that modulates them. Keys and values are the main
/// path's: a diffusion token sees the main path up to its own position and no other diffusion token.
#[derive(Module, Debug)]
pub struct DiffusionBlock<B: Backend> {
    /// `H -> heads * head_dim`.
    pub query: AdaptedLinear<B>,
    /// `heads * head_dim -> H`.
    pub output: AdaptedLinear<B>,
    /// `H -> F`.
    pub gate: AdaptedLinear<B>,
    /// `H -> F`.
    pub up: AdaptedLinear<B>,
    /// `F -> H`.
    pub down: AdaptedLinear<B>,
    /// `c -> 6 H`.
    pub modulation: ModulationHead<B>,
}

impl<B: Backend> DiffusionBlock<B> {
    /// A fresh block beside `base`; its gates are zero, so it changes nothing.
    pub fn init(base: &Block<B>, config: &DiffusionConfig, rng: &mut ChaCha8Rng) -> Self {
        let hidden = base.attention_norm.weight.shape().dims::<1>()[0];
        let device = base.query.weight.val().device();
        Self {
            query: AdaptedLinear::init(&base.query, config.variant, rng),
            output: AdaptedLinear::init(&base.output, config.variant, rng),
            gate: AdaptedLinear::init(&base.mlp.gate, config.variant, rng),
            up: AdaptedLinear::init(&base.mlp.up, config.variant, rng),
            down: AdaptedLinear::init(&base.mlp.down, config.variant, rng),
            modulation: ModulationHead::init(config.conditioning, 6 * hidden, rng, &device),
        }
    }

    /// The same block with what every evaluation multiplies packed for the CPU's decoding kernels.
    pub fn packed(self) -> Self {
        Self {
            query: self.query.packed(),
            output: self.output.packed(),
            gate: self.gate.packed(),
            up: self.up.packed(),
            down: self.down.packed(),
            modulation: self.modulation.packed(),
        }
    }

    /// `z: [rows, H]`, same shape out. `context` holds the main path's keys and values for this
    /// block; `plan` says where the rows sit.
    pub fn forward(
        &self,
        z: Tensor<B, 2>,
        base: &Block<B>,
        modulation: &BlockModulation<B>,
        plan: &AttentionPlan<B>,
        context: Context<'_, B>,
    ) -> Tensor<B, 2> {
        let queries = self.queries(z.clone(), base, modulation, plan);
        self.finish(z, context.attend(plan, queries), base, modulation)
    }

    /// What comes before attention: rotated queries `[rows, heads * head_dim]`.
    pub fn queries(
        &self,
        z: Tensor<B, 2>,
        base: &Block<B>,
        modulation: &BlockModulation<B>,
        plan: &AttentionPlan<B>,
    ) -> Tensor<B, 2> {
        let u = base.attention_norm.forward_modulated(z, &modulation.attention_scale, &modulation.attention_shift);
        plan.rotate_queries(self.query.forward(u, &base.query))
    }

    /// What comes after it: the block's input `z` and attention's result `mixed: [rows, heads * head_dim]` to its output.
    pub fn finish(
        &self,
        z: Tensor<B, 2>,
        mixed: Tensor<B, 2>,
        base: &Block<B>,
        modulation: &BlockModulation<B>,
    ) -> Tensor<B, 2> {
        let z = z + self.output.forward(mixed, &base.output) * modulation.attention_gate.clone();
        let u = base.mlp_norm.forward_modulated(z.clone(), &modulation.mlp_scale, &modulation.mlp_shift);
        z + self.mlp(u, base) * modulation.mlp_gate.clone()
    }

    /// `O(attend(rope(Q(u)), K, V))`: `[rows, H]` to `[rows, H]`.
    pub fn attention(
        &self,
        u: Tensor<B, 2>,
        base: &Block<B>,
        plan: &AttentionPlan<B>,
        context: Context<'_, B>,
    ) -> Tensor<B, 2> {
        let queries = plan.rotate_queries(self.query.forward(u, &base.query));
        self.output.forward(context.attend(plan, queries), &base.output)
    }

    /// `Down(SiLU(Gate(u)) * Up(u))`: `[rows, H]` to `[rows, H]`.
    pub fn mlp(&self, u: Tensor<B, 2>, base: &Block<B>) -> Tensor<B, 2> {
        let gate = self.gate.forward(u.clone(), &base.mlp.gate);
        let gated = gated(gate, self.up.forward(u, &base.mlp.up), base.mlp.gate.is_packed());
        self.down.forward(gated, &base.mlp.down)
    }
}
