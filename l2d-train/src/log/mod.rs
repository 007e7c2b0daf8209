//! What a run leaves to look at: `metrics.jsonl` and a TensorBoard event file.

mod metrics;
mod tensorboard;

pub use metrics::MetricsLog;
pub use tensorboard::EventFile;
