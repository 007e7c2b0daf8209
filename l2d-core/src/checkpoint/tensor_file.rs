//! Safetensors files of our own: written whole and atomically, read into host memory.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::atomic::write_atomically;
use super::safetensors::bf16_from_le;
use crate::error::{Error, Result};
use crate::lm::HostTensor;

/// The number format tensors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredDtype {
    /// Exact.
    F32,
    /// Half the size; rounds every value to 11 bits.
    F16,
}

/// Writes tensors and string metadata as one safetensors file.
///
/// # Errors
/// A value does not fit f16, or the file cannot be written; then nothing is left behind.
pub fn write_tensors(
    file: &Path,
    tensors: &[HostTensor],
    metadata: &BTreeMap<String, String>,
    dtype: StoredDtype,
) -> Result<()> {
    let bad = |reason: String| Error::format(file, "safetensors", reason);
    let stored = tensors
        .iter()
        .map(|tensor| match dtype {
            StoredDtype::F32 => Ok(tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
            StoredDtype::F16 => tensor.values.iter().map(|&x| f16::from_f32(x)).try_fold(
                Vec::with_capacity(2 * tensor.values.len()),
                |mut bytes, x| {
                    if !x.is_finite() {
                        return Err(bad(format!("tensor `{}` has a value that f16 cannot hold", tensor.name)));
                    }
                    bytes.extend(x.to_le_bytes());
                    Ok(bytes)
                },
            ),
        })
        .collect::<Result<Vec<_>>>()?;
    let kind = match dtype {
        StoredDtype::F32 => Dtype::F32,
        StoredDtype::F16 => Dtype::F16,
    };
    let views = tensors
        .iter()
        .zip(&stored)
        .map(|(tensor, bytes)| {
            let view = TensorView::new(kind, tensor.shape.clone(), bytes).map_err(|e| bad(e.to_string()))?;
            Ok((tensor.name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| bad(e.to_string()))?;
    write_atomically(file, |out| out.write_all(&bytes))
}

/// Tensors by name, and metadata.
pub type TensorsAndMetadata = (BTreeMap<String, HostTensor>, BTreeMap<String, String>);

/// Reads a whole safetensors file of f32, f16 or bf16 tensors. `file` names it in errors, `bytes` is its content.
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
        Dtype::BF16 => Ok(bf16_from_le(data)),
        other => Err(Error::Dtype {
            path: file.to_path_buf(),
            name: name.to_string(),
            found: format!("{other:?}"),
            supported: "F32, F16, BF16",
        }),
    }
}
