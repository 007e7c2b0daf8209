//! One way in for weights: whatever the file, it becomes a [`TensorSource`] with Hugging Face names and layouts, and
//! nothing behind this module knows where it came from.

mod atomic;
mod gguf;
mod open;
mod safetensors;
mod source;

pub use atomic::write_atomically;
pub use gguf::GgufSource;
pub use open::{Checkpoint, EmbeddedCheckpoint, GenerationDefaults, open_weights};
pub use safetensors::{NamedTensor, SafetensorsSource, StoredDtype, write_safetensors};
pub use source::TensorSource;
