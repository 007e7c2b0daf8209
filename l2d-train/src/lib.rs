//! The L2D learner: data, objectives, optimiser and the loop that joins them. Generic over burn's `AutodiffBackend`; reads
//! no arguments, prints nothing, picks no device.

pub mod config;
pub mod data;
pub mod error;
pub mod objective;
pub mod optimiser;

pub use config::{ObjectiveKind, TrainConfig};
pub use error::{Result, TrainError};
