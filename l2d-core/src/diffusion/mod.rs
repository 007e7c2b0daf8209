//! The diffusion path: one vector per predicted position, refined over diffusion time `t` beside the frozen LM
//! (METHOD sections 2 to 6; paper sections 3 and 4).

mod adapted;
mod block;
mod config;
mod modulation;
mod path;
mod timestep;
mod translation;
mod vocabulary;

pub use adapted::AdaptedLinear;
pub use block::DiffusionBlock;
pub use config::{DiffusionConfig, ParameterCounts, RawDiffusionConfig, Variant};
pub use modulation::{BlockModulation, Modulation, ModulationHead};
pub use path::{DiffusionPath, merge};
pub use timestep::{TimestepEmbedding, time_features};
pub use translation::Translation;
pub use vocabulary::DiffusionVocabulary;
