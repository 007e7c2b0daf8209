//! Safetensors files of our own: written whole and atomically, read into host memory.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::safetensors::{NamedTensor, StoredDtype, write_safetensors};
use crate::error::{Error, Result};
use crate::lm::HostTensor;

/// Writes tensors and string metadata as one safetensors file, all in one number format.
///
/// # Errors
/// A value does not fit f16, or the file cannot be written; then nothing is left behind.
pub fn write_tensors(
    file: &Path,
    tensors: &[HostTensor],
    metadata: &BTreeMap<String, String>,
    dtype: StoredDtype,
) -> Result<()> {
    let named = tensors
        .iter()
        .map(|HostTensor { name, shape, values }| {
            if dtype == StoredDtype::F16 && values.iter().any(|&x| x.is_finite() && !f16::from_f32(x).is_finite()) {
                let reason = format!("tensor `{name}` has a value that f16 cannot hold");
                return Err(Error::format(file, "safetensors", reason));
            }
            Ok(NamedTensor { name: name.clone(), shape: shape.clone(), values: values.clone(), dtype })
        })
        .collect::<Result<Vec<_>>>()?;
    write_safetensors(file, &named, metadata)
}

/// Tensors by name, and metadata.
pub type TensorsAndMetadata = (BTreeMap<String, HostTensor>, BTreeMap<String, String>);

/// Reads a whole safetensors file of f32 or f16 tensors. `file` names it in errors, `bytes` is its content.
///
/// # Errors
/// Broken or truncated content, or another number format.
pub fn parse_tensors(file: &Path, bytes: &[u8]) -> Result<TensorsAndMetadata> {
    let bad = |e: safetensors::SafeTensorError| Error::format(file, "safetensors", e.to_string());
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(bad)?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let parsed = SafeTensors::deserialize(bytes).map_err(bad)?;
    let tensors = parsed
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = values(file, &name, &view)?;
            Ok((name.clone(), HostTensor { name, shape: view.shape().to_vec(), values }))
        })
        .collect::<Result<_>>()?;
    Ok((tensors, metadata))
}

/// [`parse_tensors`] of a file on disk.
pub fn read_tensors(file: &Path) -> Result<TensorsAndMetadata> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    parse_tensors(file, &bytes)
}

fn values(file: &Path, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => Ok(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Ok(data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        other => Err(Error::Dtype {
            path: file.to_path_buf(),
            name: name.to_string(),
            found: format!("{other:?}"),
            supported: "F32, F16",
        }),
    }
}
