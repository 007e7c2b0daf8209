//! The base LM: Llama 3.x, Qwen 2.x and SmolLM2, one implementation read top to bottom.
//!
//! Inside this module activations are two-dimensional, `[rows, width]` with `rows = batch * positions`, so that every
//! linear layer is one matrix product however the rows came about.

mod attention;
mod block;
mod dense_attention;
mod dropout;
mod kv_cache;
mod linear;
mod mlp;
mod model;
mod norm;
mod rope;
mod token_table;
mod weights;

pub use attention::{AttentionGradients, AttentionPlan, Context};
pub use block::Block;
pub use dropout::Dropout;
pub use kv_cache::KvCache;
pub use linear::{Linear, Lora};
pub use mlp::Mlp;
pub(crate) use mlp::gated;
pub use model::Lm;
pub use norm::{RmsNorm, rms_normalise};
pub use rope::{Rope, RopeTable};
pub use token_table::{TokenTable, VocabularyShards};
pub(crate) use weights::transposed;
pub use weights::{HostTensor, host_values};
