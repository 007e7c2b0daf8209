//! What a checkpoint must offer to become a model.

use std::path::Path;

use crate::cpu::Blocks;
use crate::error::Result;

/// Named tensors in Hugging Face's names, shapes (`[out, in]` for a linear layer) and row order, read one at a time.
pub trait TensorSource {
    /// The file or folder, for error messages.
    fn path(&self) -> &Path;

    /// All tensor names, sorted.
    fn names(&self) -> Vec<String>;

    /// The shape of a tensor, or `None` when there is none of that name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The stored number format of a tensor, e.g. `F16` or `Q4_K`.
    fn dtype(&self, name: &str) -> Option<String>;

    /// Reads one tensor, row-major, converted or dequantised to f32. Errors when it is missing or its bytes are damaged.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>>;

    /// A matrix in the quantised blocks in which it is stored, where the CPU's decoding kernels can multiply those; `None`
    /// for any other format. Errors as [`TensorSource::read_f32`].
    fn read_blocks(&self, _name: &str) -> Result<Option<Blocks>> {
        Ok(None)
    }
}
