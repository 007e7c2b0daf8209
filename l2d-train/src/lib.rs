//! The L2D learner: data, objectives, optimiser and the loop that joins them. Generic over burn's `AutodiffBackend`; reads
//! no arguments, prints nothing, picks no device.

mod checksums;
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod log;
pub mod objective;
pub mod optimiser;
pub mod ranks;
pub mod run;
pub mod run_dir;
pub mod task;

pub use config::{BestBy, FrozenWeights, GenerateConfig, ObjectiveKind, TrainConfig};
pub use engine::{EngineSettings, L2dEngine, LmEngine};
pub use error::{Result, TrainError};
pub use run::{
    Evaluator, GenerationReport, GenerationScore, Memory, NoEvaluator, Observer, Outcome, Silent, StepReport,
    StepSeconds, Storage, Trained, ValidationReport, train, train_and_generate, train_together,
};
pub use run_dir::RunDir;
pub use task::{L2dTask, LmTask, Task};
