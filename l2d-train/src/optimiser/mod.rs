//! From gradients to new weights.

mod adamw;
mod ema;
mod gradients;
mod groups;
mod schedule;

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::{Ema, trainable_sizes};
pub use gradients::{NamedGradients, clip_coefficient};
pub use groups::{GroupConfig, Groups, Rule};
pub use schedule::{Decay, Schedule, Warmup};

/// Lets go of the leaves of differentiation that are no longer used. burn keeps a record of every tensor that was marked as
/// trained until some backward pass ends; where gradients are computed by hand there is none, and each update's weights would
/// leave their records behind. So this makes the smallest backward pass there is.
pub(crate) fn forget_old_leaves<AB: AutodiffBackend>(device: &AB::Device) {
    let _ = Tensor::<AB, 1>::zeros([1], device).require_grad().sum().backward();
}
