//! From gradients to new weights.

mod adamw;
mod gradients;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use gradients::{NamedGradients, clip_coefficient};
pub use schedule::{Decay, Schedule, Warmup};
