//! PyTorch's own files (`torch.save` of a state dict: `.pth`, `.pt`, `pytorch_model.bin`) as a [`TensorSource`].
//!
//! Such a file is a zip with a pickle in it, a program in principle. The `anamnesis` crate interprets what a state dict
//! needs, under hard limits, and refuses any other function; nothing of a file is ever run.

use std::path::{Path, PathBuf};

use anamnesis::{AnamnesisError, ParsedPth, PthDtype};
use half::{bf16, f16};

use super::TensorSource;
use crate::error::{Error, Result};

const SUPPORTED: &str = "F32, F16, BF16";

/// One state dict, mapped.
pub struct PthSource {
    path: PathBuf,
    file: ParsedPth,
}

impl PthSource {
    /// Opens a file whose top level is a dict of tensors.
    ///
    /// # Errors
    /// No zip (PyTorch before 1.6), no dict of tensors at the top, a pickle that calls for anything but tensors, damage.
    pub fn open(path: &Path) -> Result<Self> {
        let file = anamnesis::parse_pth(path).map_err(|error| match error {
            AnamnesisError::Io(e) => Error::io(path, e),
            other => bad(path, format!("{other}; {HINT}")),
        })?;
        if file.is_empty() {
            return Err(bad(path, format!("there is no tensor at its top level; {HINT}")));
        }
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Whether a file begins as a zip does.
    pub fn is_zip(path: &Path) -> Result<bool> {
        use std::io::Read;
        let mut magic = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        file.take(4).read_to_end(&mut magic).map_err(|e| Error::io(path, e))?;
        Ok(magic == b"PK\x03\x04")
    }
}

const HINT: &str = "a plain state dict is wanted: in Python, torch.save(model.state_dict(), FILE); of a DeepSpeed folder, \
                    what its zero_to_fp32.py writes";

fn bad(path: &Path, reason: String) -> Error {
    Error::format(path, "PyTorch state dict", reason)
}

impl TensorSource for PthSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file.tensor_info().into_iter().map(|info| info.name).collect();
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.tensor_info().into_iter().find(|info| info.name == name).map(|info| info.shape)
    }

    fn dtype(&self, name: &str) -> Option<String> {
        self.file.tensor_info().into_iter().find(|info| info.name == name).map(|info| format!("{:?}", info.dtype))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensors = self.file.tensors().map_err(|e| bad(&self.path, e.to_string()))?;
        let tensor = tensors
            .iter()
            .find(|tensor| tensor.name == name)
            .ok_or_else(|| Error::MissingTensor { path: self.path.clone(), name: name.to_string() })?;
        // The crate hands out the machine's own byte order.
        let (words, halves) = (tensor.data.as_chunks::<4>().0, tensor.data.as_chunks::<2>().0);
        match tensor.dtype {
            PthDtype::F32 => Ok(words.iter().map(|&word| f32::from_ne_bytes(word)).collect()),
            PthDtype::F16 => Ok(halves.iter().map(|&half| f16::from_ne_bytes(half).to_f32()).collect()),
            PthDtype::BF16 => Ok(halves.iter().map(|&half| bf16::from_ne_bytes(half).to_f32()).collect()),
            other => Err(Error::Dtype {
                path: self.path.clone(),
                name: name.to_string(),
                found: format!("{other:?}"),
                supported: SUPPORTED,
            }),
        }
    }
}
