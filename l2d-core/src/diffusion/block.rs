//! One block of the diffusion path (METHOD section 6).

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;

use super::adapted::AdaptedLinear;
use super::config::DiffusionConfig;
use super::modulation::{BlockModulation, ModulationHead};
use crate::lm::{AttentionPlan, Block, RmsNorm, attend, rms_normalise};

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
            ..self
        }
    }

    /// `z: [rows, H]`, same shape out. `keys` and `values` are the main path's for this block,
    /// `[batch, kv_heads, slots, head_dim]`; `plan` says where the rows sit.
    pub fn forward(
        &self,
        z: Tensor<B, 2>,
        base: &Block<B>,
        modulation: &BlockModulation<B>,
        plan: &AttentionPlan<B>,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> Tensor<B, 2> {
        let u = modulated(z.clone(), &base.attention_norm, &modulation.attention_scale, &modulation.attention_shift);
        let z = z + self.attention(u, base, plan, keys, values) * modulation.attention_gate.clone();
        let u = modulated(z.clone(), &base.mlp_norm, &modulation.mlp_scale, &modulation.mlp_shift);
        z + self.mlp(u, base) * modulation.mlp_gate.clone()
    }

    /// `O(attend(rope(Q(u)), K, V))`: `[rows, H]` to `[rows, H]`.
    pub fn attention(
        &self,
        u: Tensor<B, 2>,
        base: &Block<B>,
        plan: &AttentionPlan<B>,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> Tensor<B, 2> {
        let queries = plan.query_rope.rotate(self.query.forward(u, &base.query));
        self.output.forward(attend(plan, queries, keys, values), &base.output)
    }

    /// `Down(SiLU(Gate(u)) * Up(u))`: `[rows, H]` to `[rows, H]`.
    pub fn mlp(&self, u: Tensor<B, 2>, base: &Block<B>) -> Tensor<B, 2> {
        let gated = silu(self.gate.forward(u.clone(), &base.mlp.gate)) * self.up.forward(u, &base.mlp.up);
        self.down.forward(gated, &base.mlp.down)
    }
}

/// `RMS(z) * (n + scale) + shift`: the scale is added to the norm's frozen weight. `[rows, H]` in and out; `scale` and
/// `shift` are `[rows, H]` or `[1, H]`.
pub(crate) fn modulated<B: Backend>(
    z: Tensor<B, 2>,
    norm: &RmsNorm<B>,
    scale: &Tensor<B, 2>,
    shift: &Tensor<B, 2>,
) -> Tensor<B, 2> {
    rms_normalise(z, norm.eps) * (norm.weight.val().unsqueeze() + scale.clone()) + shift.clone()
}
