//! Hugging Face safetensors: one file, or many through `model.safetensors.index.json`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::TensorSource;
use crate::error::{Error, Result};

const SUPPORTED: &str = "F32, F16, BF16";

/// One or more memory-mapped safetensors files as a [`TensorSource`].
pub struct SafetensorsSource {
    path: PathBuf,
    shards: Vec<Bytes>,
    tensors: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
}

enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Cow<'static, [u8]>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the shard's file.
    range: Range<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsSource {
    /// Opens a folder (`model.safetensors`, else the shards named by `model.safetensors.index.json`) or one file.
    pub fn open(path: &Path) -> Result<Self> {
        let is_folder = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir();
        if !is_folder {
            return Self::from_shards(path.to_path_buf(), vec![(path.to_path_buf(), map(path)?)]);
        }
        let single = path.join("model.safetensors");
        if single.exists() {
            return Self::from_shards(path.to_path_buf(), vec![(single.clone(), map(&single)?)]);
        }
        let index_path = path.join("model.safetensors.index.json");
        if !index_path.exists() {
            let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "neither it nor its index.json is there");
            return Err(Error::io(single, missing));
        }
        Self::open_index(path, &index_path)
    }

    fn open_index(folder: &Path, index_path: &Path) -> Result<Self> {
        let broken = |reason: String| Error::format(index_path, "safetensors index", reason);
        let text = std::fs::read_to_string(index_path).map_err(|e| Error::io(index_path, e))?;
        let index: Index = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let mut parts = Path::new(name).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain || name.contains(['/', '\\']) {
                return Err(broken(format!("shard `{name}` is not a plain file name")));
            }
            let file = folder.join(name);
            files.push((file.clone(), map(&file)?));
        }
        let source = Self::from_shards(folder.to_path_buf(), files)?;
        match index.weight_map.keys().find(|name| !source.tensors.contains_key(*name)) {
            Some(name) => Err(Error::MissingTensor { path: index_path.to_path_buf(), name: name.clone() }),
            None => Ok(source),
        }
    }

    /// A whole safetensors file in memory; `name` stands for its path in errors.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, name: impl Into<PathBuf>) -> Result<Self> {
        let name = name.into();
        Self::from_shards(name.clone(), vec![(name, Bytes::Owned(bytes.into()))])
    }

    fn from_shards(path: PathBuf, files: Vec<(PathBuf, Bytes)>) -> Result<Self> {
        let mut source = Self { path, shards: Vec::new(), tensors: BTreeMap::new(), metadata: HashMap::new() };
        for (file, bytes) in files {
            // The crate checks the header's length against the buffer before it allocates, and every tensor's range.
            let (header_len, header) = SafeTensors::read_metadata(bytes.as_ref())
                .map_err(|e| Error::format(&file, "safetensors", e.to_string()))?;
            let data_start = header_len + size_of::<u64>();
            for (name, info) in header.tensors() {
                let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
                let entry = Entry { shard: source.shards.len(), dtype: info.dtype, shape: info.shape.clone(), range };
                if source.tensors.insert(name.clone(), entry).is_some() {
                    return Err(Error::format(&file, "safetensors", format!("tensor `{name}` is in two shards")));
                }
            }
            source.metadata.extend(header.metadata().clone().unwrap_or_default());
            source.shards.push(bytes);
        }
        Ok(source)
    }

    /// The `__metadata__` map of the header (of all shards together); empty when there is none.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }
}

fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: the mapping is read-only and private to this value. As with every reader of mapped weights, a program
    // that truncates the file while it is mapped makes the read fail with a signal; we never write to it ourselves
    // (files are replaced by renaming, which leaves the mapped one intact).
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    Ok(Bytes::Mapped(map))
}

impl TensorSource for SafetensorsSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|entry| entry.shape.clone())
    }

    fn dtype(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|entry| format!("{:?}", entry.dtype))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::MissingTensor { path: self.path.clone(), name: name.to_string() };
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.shards.get(entry.shard).and_then(|shard| shard.as_ref().get(entry.range.clone()));
        let bytes = bytes.ok_or_else(missing)?;
        match entry.dtype {
            Dtype::F32 => Ok(f32_from_le(bytes)),
            Dtype::F16 => Ok(f16_from_le(bytes)),
            Dtype::BF16 => Ok(bf16_from_le(bytes)),
            other => Err(Error::Dtype {
                path: self.path.clone(),
                name: name.to_string(),
                found: format!("{other:?}"),
                supported: SUPPORTED,
            }),
        }
    }
}

/// Little-endian f32 values; a tensor's bytes need not be aligned in its file.
pub(super) fn f32_from_le(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| f32::from_le_bytes(word)).collect()
}

/// Little-endian f16 values.
pub(super) fn f16_from_le(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<2>();
    words.iter().map(|&word| f16::from_le_bytes(word).to_f32()).collect()
}

/// Little-endian bf16 values.
pub(super) fn bf16_from_le(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<2>();
    words.iter().map(|&word| bf16::from_le_bytes(word).to_f32()).collect()
}
