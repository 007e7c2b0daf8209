//! The L2D learner.

pub mod objective;
