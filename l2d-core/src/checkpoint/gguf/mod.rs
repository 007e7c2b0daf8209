//! One GGUF file (llama.cpp's format) as a [`TensorSource`] with Hugging Face names, shapes and row order.
//!
//! The `anamnesis` crate parses the header under hard limits (a hostile count, length or offset is an error before
//! anything is allocated for it) and decodes the block formats; this module adds what is particular to language models:
//! the architecture, the tensor names, llama's row permutation and the tokenizer.

mod metadata;
mod names;
mod rope_table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anamnesis::remember::gguf::dequantize_gguf_blocks;
use anamnesis::{AnamnesisError, F32Out, GgufTensorInfo, GgufType, ParsedGguf};

use self::metadata::Metadata;
use self::names::RowOrder;
use super::TensorSource;
use super::safetensors::{bf16_from_le, f16_from_le, f32_from_le};
use crate::config::{LmConfig, OneOrMany, RawLmConfig};
use crate::cpu::{BlockKind, Blocks};
use crate::error::{Error, Result};
use crate::text::{BpeVocabulary, TokenKind};

const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

/// A memory-mapped GGUF file.
pub struct GgufSource {
    path: PathBuf,
    file: ParsedGguf,
    config: LmConfig,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    /// Name in the file.
    stored_name: String,
    /// Row-major shape: GGUF writes the fastest axis first.
    shape: Vec<usize>,
    dtype: GgufType,
    rows: RowOrder,
}

impl GgufSource {
    /// Maps and checks a file: header, architecture, tensor table. No weight is read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = anamnesis::parse_gguf(path).map_err(|e| parse_error(path, e))?;
        Self::new(path.to_path_buf(), file)
    }

    /// A whole GGUF file in memory; `name` stands for its path in errors.
    pub fn from_bytes(bytes: Vec<u8>, name: impl Into<PathBuf>) -> Result<Self> {
        let name = name.into();
        let file = anamnesis::parse_gguf_bytes(bytes).map_err(|e| parse_error(&name, e))?;
        Self::new(name, file)
    }

    fn new(path: PathBuf, file: ParsedGguf) -> Result<Self> {
        let config = read_config(&path, &file)?;
        let mut tensors = BTreeMap::new();
        for info in file.tensor_info().iter().filter(|info| info.name != rope_table::TENSOR) {
            let entry = Entry {
                stored_name: info.name.clone(),
                shape: info.shape.iter().rev().copied().collect(),
                dtype: info.dtype,
                rows: names::row_order(&info.name, &config),
            };
            if tensors.insert(names::hugging_face_name(&info.name), entry).is_some() {
                return Err(Error::format(&path, "gguf", format!("tensor `{}` is there twice", info.name)));
            }
        }
        Ok(Self { path, file, config, tensors })
    }

    /// The architecture, from the metadata.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// `tokenizer.chat_template`, if the file has one.
    pub fn chat_template(&self) -> Result<Option<&str>> {
        self.metadata().string("tokenizer.chat_template")
    }

    /// The padding token, if the file names one.
    pub fn pad_token_id(&self) -> Result<Option<u32>> {
        self.metadata().token_id("tokenizer.ggml.padding_token_id")
    }

    /// The byte-pair vocabulary (`tokenizer.ggml.*`).
    pub fn vocabulary(&self) -> Result<BpeVocabulary<'_>> {
        let metadata = self.metadata();
        let model = metadata.required_string("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(Error::Unsupported {
                path: self.path.clone(),
                what: "tokenizer.ggml.model",
                found: model.to_string(),
                supported: "gpt2",
            });
        }
        let tokens = metadata.required_strings("tokenizer.ggml.tokens")?;
        let kinds = match metadata.integers("tokenizer.ggml.token_type")? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(types) if types.len() != tokens.len() => {
                let reason = format!("{} types for {} tokens", types.len(), tokens.len());
                return Err(Error::config(&self.path, "tokenizer.ggml.token_type", reason));
            }
            Some(types) => types.into_iter().map(token_kind).collect(),
        };
        Ok(BpeVocabulary {
            pre_tokenizer: metadata.string("tokenizer.ggml.pre")?.unwrap_or("none given"),
            tokens,
            kinds,
            merges: metadata.required_strings("tokenizer.ggml.merges")?,
            bos_token_id: self.config.bos_token_id,
            add_bos: metadata.boolean("tokenizer.ggml.add_bos_token")?,
        })
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.path, self.file.metadata())
    }
}

/// llama.cpp's `llama_token_type`.
fn token_kind(code: i64) -> TokenKind {
    match code {
        2 | 3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        _ => TokenKind::Normal,
    }
}

fn parse_error(path: &Path, error: AnamnesisError) -> Error {
    match error {
        AnamnesisError::Io(source) => Error::io(path, source),
        other => Error::format(path, "gguf", other.to_string()),
    }
}

/// Control tokens that end a turn by their spelling, as llama.cpp has it: many chat models name only one end token, and not
/// the one their template closes a turn with.
fn spelt_end_tokens(metadata: &Metadata<'_>) -> Vec<u32> {
    const ENDS: &[&str] =
        &["<|eot_id|>", "<|im_end|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"];
    // What is wrong with these lists is for the tokenizer to say.
    let (Ok(tokens), Ok(Some(types))) =
        (metadata.required_strings("tokenizer.ggml.tokens"), metadata.integers("tokenizer.ggml.token_type"))
    else {
        return Vec::new();
    };
    let ends =
        tokens.iter().zip(types).enumerate().filter(|(_, (token, kind))| {
            matches!(token_kind(*kind), TokenKind::Control) && ENDS.contains(&token.as_str())
        });
    ends.map(|(id, _)| id as u32).collect()
}

/// Builds the config the Hugging Face folder of the same model would have, then checks it like any other.
fn read_config(path: &Path, file: &ParsedGguf) -> Result<LmConfig> {
    let metadata = Metadata::new(path, file.metadata());
    let architecture = metadata.required_string("general.architecture")?;
    let find = |name: &str| file.tensor_info().iter().find(|info| info.name == name);
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let size = |suffix: &str| metadata.size(&key(suffix));

    let hidden_size = size("embedding_length")?;
    let num_heads = size("attention.head_count")?;
    let head_dim = size("attention.key_length")?;
    let value_dim = size("attention.value_length")?;
    let refuse = |what: &'static str, found: String, supported: &'static str| {
        Err(Error::Unsupported { path: path.to_path_buf(), what, found, supported })
    };
    if value_dim != head_dim {
        return refuse("attention.value_length", format!("{value_dim:?}"), "the same as attention.key_length");
    }
    let head_dim = head_dim.or_else(|| hidden_size.zip(num_heads).and_then(|(h, n)| h.checked_div(n)));
    if let Some(rotated) = size("rope.dimension_count")?
        && Some(rotated) != head_dim
    {
        return refuse("rope.dimension_count", rotated.to_string(), "the head size");
    }
    if let Some(experts) = size("expert_count")?.filter(|&n| n > 0) {
        return refuse("expert_count", experts.to_string(), "0");
    }
    let max_position_embeddings = size("context_length")?;
    if let Some(window) = size("attention.sliding_window")?
        && Some(window) < max_position_embeddings
    {
        return refuse("attention.sliding_window", window.to_string(), "none");
    }
    // llama.cpp takes a factor without a type for linear scaling; 0 and 1 are none.
    match metadata.string(&key("rope.scaling.type"))? {
        Some("none") => {}
        Some(kind) if kind != "linear" => {
            return refuse("rope.scaling.type", kind.to_string(), "none, or a rope_freqs tensor");
        }
        _ => {
            for name in ["rope.scaling.factor", "rope.scale_linear"] {
                if let Some(factor) = metadata.float(&key(name))?.filter(|&factor| factor != 0.0 && factor != 1.0) {
                    return refuse("linear rope scaling", format!("{name} = {factor}"), "none, or a rope_freqs tensor");
                }
            }
        }
    }
    let rope_theta = metadata.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let rope_scaling = match find(rope_table::TENSOR) {
        None => None,
        Some(info) => {
            let table = read_tensor(path, file, &info.name, info.dtype, &info.shape)?;
            Some(rope_table::recognise(path, &table, rope_theta)?)
        }
    };

    let mut end_tokens = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let id = metadata.token_id(&format!("tokenizer.ggml.{name}_token_id"))?;
        end_tokens.extend(id.filter(|id| !end_tokens.contains(id)));
    }
    for id in spelt_end_tokens(&metadata) {
        if !end_tokens.contains(&id) {
            end_tokens.push(id);
        }
    }
    if end_tokens.is_empty() {
        tracing::warn!("{}: no end token is named; answers end at the limit of tokens alone", path.display());
    }
    let embedding_rows = |info: &GgufTensorInfo| info.shape.last().copied();
    let raw = RawLmConfig {
        model_type: Some(architecture.to_string()),
        vocab_size: find("token_embd.weight").and_then(embedding_rows),
        hidden_size,
        intermediate_size: size("feed_forward_length")?,
        num_hidden_layers: size("block_count")?,
        num_attention_heads: num_heads,
        num_key_value_heads: size("attention.head_count_kv")?,
        head_dim,
        rms_norm_eps: metadata.float(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: Some(rope_theta),
        rope_scaling,
        max_position_embeddings,
        tie_word_embeddings: Some(find("output.weight").is_none()),
        bos_token_id: metadata.token_id("tokenizer.ggml.bos_token_id")?.map(OneOrMany::One),
        eos_token_id: Some(OneOrMany::Many(end_tokens)),
        ..RawLmConfig::default()
    };
    raw.check(path)
}

/// Reads and decodes one tensor as it lies in the file. `shape` in either order.
fn read_tensor(path: &Path, file: &ParsedGguf, name: &str, dtype: GgufType, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = file.tensors().find(|tensor| tensor.name == name);
    let tensor = tensor.ok_or_else(|| Error::MissingTensor { path: path.to_path_buf(), name: name.to_string() })?;
    let bytes = tensor.data.as_ref();
    match dtype {
        GgufType::F32 => Ok(f32_from_le(bytes)),
        GgufType::F16 => Ok(f16_from_le(bytes)),
        GgufType::BF16 => Ok(bf16_from_le(bytes)),
        GgufType::Q4_0
        | GgufType::Q4_1
        | GgufType::Q5_0
        | GgufType::Q5_1
        | GgufType::Q8_0
        | GgufType::Q4_K
        | GgufType::Q5_K
        | GgufType::Q6_K => {
            // The table was checked against the file's length, so this product is at most some 8 times that.
            let elements = shape.iter().product();
            let mut values = Vec::with_capacity(elements);
            dequantize_gguf_blocks::<F32Out, _>(bytes, dtype, elements, |block| {
                let (words, _) = block.as_chunks::<4>();
                values.extend(words.iter().map(|&word| f32::from_le_bytes(word)));
                Ok(())
            })
            .map_err(|e| parse_error(path, e))?;
            Ok(values)
        }
        other => Err(Error::Dtype {
            path: path.to_path_buf(),
            name: name.to_string(),
            found: format!("{other:?}"),
            supported: SUPPORTED,
        }),
    }
}

impl TensorSource for GgufSource {
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
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::MissingTensor { path: self.path.clone(), name: name.to_string() })?;
        let values = read_tensor(&self.path, &self.file, &entry.stored_name, entry.dtype, &entry.shape)?;
        Ok(entry.rows.restore(values, &entry.shape))
    }

    fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        let kind = match entry.dtype {
            GgufType::Q4_0 => BlockKind::Q4_0,
            GgufType::Q4_1 => BlockKind::Q4_1,
            GgufType::Q5_0 => BlockKind::Q5_0,
            GgufType::Q5_1 => BlockKind::Q5_1,
            GgufType::Q8_0 => BlockKind::Q8_0,
            GgufType::Q4_K => BlockKind::Q4K,
            GgufType::Q5_K => BlockKind::Q5K,
            GgufType::Q6_K => BlockKind::Q6K,
            _ => return Ok(None),
        };
        // A block that spans two rows is legal in a file and not in a product.
        let &[rows, inputs] = entry.shape.as_slice() else { return Ok(None) };
        if !inputs.is_multiple_of(kind.numbers()) {
            return Ok(None);
        }
        let missing = || Error::MissingTensor { path: self.path.clone(), name: name.to_string() };
        let tensor = self.file.tensors().find(|tensor| tensor.name == entry.stored_name).ok_or_else(missing)?;
        let bytes = tensor.data.as_ref();
        let expected = rows * (inputs / kind.numbers()) * kind.bytes();
        if bytes.len() != expected {
            let reason = format!("`{name}` has {} bytes where its shape needs {expected}", bytes.len());
            return Err(Error::format(&self.path, "gguf", reason));
        }
        Ok(Some(Blocks { kind, bytes: entry.rows.restore(bytes.to_vec(), &entry.shape) }))
    }
}
