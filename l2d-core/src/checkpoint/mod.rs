//! One way in for weights: whatever the file, it becomes a [`TensorSource`] with Hugging Face names and layouts, and
//! nothing behind this module knows where it came from.

mod adapter;
mod atomic;
mod gguf;
mod open;
mod peft;
mod pth;
mod reference;
mod safetensors;
mod source;
mod tensor_file;

pub use adapter::{
    AdapterInfo, BaseFingerprint, inspect_adapter, is_adapter, load_adapter, load_adapter_bytes, load_adapter_of,
    save_adapter, weights_digest,
};
pub use atomic::write_atomically;
pub use gguf::GgufSource;
pub use open::{Checkpoint, EmbeddedCheckpoint, GenerationDefaults, open_weights};
pub use peft::{merge_peft, save_peft};
pub use pth::PthSource;
pub use reference::{
    ImportedPath, ReferenceConfig, ReferenceOverrides, export_reference, import_reference, open_state_dict,
    reference_config, reference_name,
};
pub use safetensors::SafetensorsSource;
pub use source::TensorSource;
pub use tensor_file::{StoredDtype, TensorsAndMetadata, parse_tensors, read_tensors, write_tensors};
