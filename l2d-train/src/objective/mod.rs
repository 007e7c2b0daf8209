//! What is trained: the diffusion path beside a frozen LM, or the LM itself.

mod l2d;
mod lm;
mod loss;

pub use l2d::{Draws, L2dObjective, Labelled};
pub use lm::{LmObjective, add_lora};
pub use loss::{LossByTimestep, StepLoss, TIMESTEP_BINS};
