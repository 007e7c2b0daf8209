//! From gradients to new weights.

mod adamw;
mod ema;
mod gradients;
mod groups;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::{Ema, trainable_sizes};
pub use gradients::{NamedGradients, clip_coefficient};
pub use groups::{GroupConfig, Groups, Rule};
pub use schedule::{Decay, Schedule, Warmup};
