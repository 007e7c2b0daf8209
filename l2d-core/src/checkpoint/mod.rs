//! One way in for weights: whatever the file, it becomes a [`TensorSource`] with Hugging Face names and layouts, and
//! nothing behind this module knows where it came from.

mod source;

pub use source::TensorSource;
