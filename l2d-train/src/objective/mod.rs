//! What is trained: the diffusion path beside a frozen LM, or the LM itself.

mod blockwise;
mod draws;
mod host;
mod l2d;
mod lm;
mod loss;

pub use draws::{DrawSettings, Draws, DropoutDraws, Labelled};
pub use host::{HostL2d, HostLm, Recompute};
pub use l2d::L2dObjective;
pub use lm::{LmObjective, add_lora};
pub use loss::{LossByTimestep, StepLoss, TIMESTEP_BINS};
