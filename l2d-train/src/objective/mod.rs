//! What is trained: the diffusion path beside a frozen LM, or the LM itself.

mod host;
mod l2d;
mod lm;
mod loss;

pub use host::{HostL2d, Recompute};
pub use l2d::{Draws, L2dObjective, Labelled};
pub use lm::{LmObjective, add_lora};
pub use loss::{LossByTimestep, StepLoss, TIMESTEP_BINS};
