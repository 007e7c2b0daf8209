//! Tokens as points on a sphere (METHOD section 3).

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;

use super::config::DiffusionConfig;
use crate::lm::{Linear, Lm, TokenTable};

/// `V[y] = sqrt(d) (W_v e_y + b_v) / ||W_v e_y + b_v||`, with `e_y` the base LM's frozen input embedding: every row has
/// norm `sqrt(d)`, unit variance a component.
#[derive(Module, Debug)]
pub struct DiffusionVocabulary<B: Backend> {
    /// `W_v: H -> d` with bias.
    pub projection: Linear<B>,
}

impl<B: Backend> DiffusionVocabulary<B> {
    /// Xavier-uniform.
    pub fn init(hidden: usize, config: &DiffusionConfig, rng: &mut ChaCha8Rng, device: &B::Device) -> Self {
        Self { projection: Linear::xavier(hidden, config.dim, rng, device) }
    }

    /// Input embeddings `[rows, H]` to diffusion embeddings `[rows, d]`.
    pub fn forward(&self, embeddings: Tensor<B, 2>) -> Tensor<B, 2> {
        // The reference normalises with `max(norm, 1e-12)`.
        let z = self.projection.forward(embeddings);
        let norm = z.clone().square().sum_dim(1).sqrt().clamp_min(1e-12); // [rows, 1]
        let radius = (z.dims()[1] as f64).sqrt();
        z / norm * radius
    }

    /// The whole table, `[V, d]`, in parts where the LM's embedding is; constant while weights are, so compute it once per model.
    pub fn table(&self, lm: &Lm<B>) -> TokenTable<B> {
        lm.embedding_table().map(|part| self.forward(part.cast(lm.dtype())))
    }
}
