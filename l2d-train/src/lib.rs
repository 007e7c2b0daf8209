//! The L2D learner: data, objectives, optimiser and the loop that joins them. Generic over burn's `AutodiffBackend`; reads
//! no arguments, prints nothing, picks no device.

pub mod config;
pub mod data;
pub mod error;
pub mod log;
pub mod objective;
pub mod optimiser;
pub mod run;
pub mod run_dir;
pub mod task;

pub use config::{ObjectiveKind, TrainConfig};
pub use error::{Result, TrainError};
pub use run::{Observer, Outcome, Silent, StepReport, Storage, Trained, ValidationReport, train};
pub use run_dir::RunDir;
pub use task::{L2dEngine, L2dTask, LmEngine, LmTask, Task};
