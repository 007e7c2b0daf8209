//! The trained part of an L2D model in one file: safetensors with its config in the metadata. See `docs/checkpoints.md`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::safetensors::SafetensorsSource;
use super::source::TensorSource;
use super::tensor_file::{StoredDtype, parse_tensors, write_tensors};
use crate::config::{LmConfig, RopeScaling};
use crate::diffusion::{DiffusionConfig, DiffusionPath, RawDiffusionConfig};
use crate::error::{Error, Result};
use crate::lm::{Lm, host_values};
use crate::parameters::{parameters, replace_parameters};

/// Value of the metadata key `format`.
const FORMAT: &str = "l2d-adapter";
/// Version of the layout this code writes; it reads no other.
const VERSION: &str = "1";

/// Recognises a base LM: its architecture and a sample of its weights.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseFingerprint {
    /// SHA-256 of the architecture.
    pub config: String,
    /// SHA-256 of a few tensors' values, of the ends of the model.
    pub weights: String,
    /// [`weights_digest`]: every matrix has a part in it. Adapters of before it was kept have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrices: Option<String>,
    /// For people: e.g. `llama, 30 blocks of 576, vocabulary 49152`.
    pub description: String,
}

impl BaseFingerprint {
    /// The fingerprint of a loaded LM. Weights loaded in another number format, or from another quantisation, have
    /// another fingerprint: the diffusion path was trained beside the one and not the other.
    pub fn of<B: Backend>(lm: &Lm<B>) -> Self {
        let mut hash = Sha256::new();
        let mut add = |values: Vec<f32>| {
            for value in values {
                // Negative zero counts as zero: packed blocks do not keep its sign.
                hash.update((value + 0.0).to_le_bytes());
            }
        };
        const SAMPLED: usize = 16;
        let ids: Vec<i32> = (0..lm.config.vocab_size.min(SAMPLED) as i32).collect();
        add(host_values(lm.embed(Tensor::from_ints(ids.as_slice(), &lm.device()))));
        add(host_values(lm.final_norm.weight.val()));
        for block in lm.blocks.first().into_iter().chain(lm.blocks.last()) {
            add(block.query.first_rows(SAMPLED));
            add(block.mlp.down.first_rows(SAMPLED));
            add(host_values(block.attention_norm.weight.val()));
        }
        let weights = hex(&hash.finalize());
        Self {
            config: hex(&Sha256::digest(architecture(&lm.config))),
            weights,
            matrices: Some(weights_digest(lm)),
            description: describe(&lm.config),
        }
    }

    /// Whether two fingerprints are of other weights, as far as both say.
    fn other_weights(&self, other: &Self) -> bool {
        let matrices = self.matrices.as_ref().zip(other.matrices.as_ref());
        self.weights != other.weights || matrices.is_some_and(|(own, theirs)| own != theirs)
    }
}

/// SHA-256 of some rows of every matrix, embedding and head among them, and of all biases and norms: it differs whichever layers two models differ in.
pub fn weights_digest<B: Backend>(lm: &Lm<B>) -> String {
    const ROWS: usize = 4;
    let mut hash = Sha256::new();
    let mut add = |values: Vec<f32>| values.iter().for_each(|value| hash.update((value + 0.0).to_le_bytes()));
    let ids: Vec<i32> = (0..lm.config.vocab_size.min(ROWS) as i32).collect();
    add(host_values(lm.embed(Tensor::from_ints(ids.as_slice(), &lm.device()))));
    add(host_values(lm.final_norm.weight.val()));
    // A head of its own, whole or in parts: the same numbers in the same order.
    if !lm.config.tie_word_embeddings {
        match (&lm.head, &lm.shards) {
            (_, Some(shards)) => {
                for row in 0..ROWS.min(lm.config.hidden_size) {
                    shards.head.iter().for_each(|part| add(host_values(part.val().narrow(0, row, 1))));
                }
            }
            (Some(head), None) => add(head.first_rows(ROWS)),
            (None, None) => {}
        }
    }
    for block in &lm.blocks {
        let attention = [&block.query, &block.key, &block.value, &block.output];
        for linear in attention.into_iter().chain([&block.mlp.gate, &block.mlp.up, &block.mlp.down]) {
            add(linear.first_rows(ROWS));
            linear.bias.iter().for_each(|bias| add(host_values(bias.val())));
        }
        add(host_values(block.attention_norm.weight.val()));
        add(host_values(block.mlp_norm.weight.val()));
    }
    hex(&hash.finalize())
}

/// What an adapter file says about itself.
#[derive(Debug, Clone)]
pub struct AdapterInfo {
    /// The path's hyper-parameters.
    pub config: DiffusionConfig,
    /// The base it belongs to.
    pub base: BaseFingerprint,
    /// Tensor names and shapes.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Other metadata, e.g. how it was trained.
    pub notes: BTreeMap<String, String>,
}

impl AdapterInfo {
    /// Number of trained parameters.
    pub fn num_parameters(&self) -> usize {
        self.tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Says what differs, when the adapter does not belong to `base`.
    pub fn mismatch(&self, base: &BaseFingerprint) -> Option<String> {
        if self.base.config != base.config {
            Some(format!("it belongs to a model of {}, this is {}", self.base.description, base.description))
        } else if self.base.other_weights(base) {
            Some("the architecture is the same, the weights are not".into())
        } else {
            None
        }
    }
}

/// Saves a diffusion path. `notes` are kept as further metadata keys.
///
/// # Errors
/// The file cannot be written; then nothing is left behind.
pub fn save_adapter<B: Backend>(
    file: &Path,
    path: &DiffusionPath<B>,
    base: &BaseFingerprint,
    notes: &BTreeMap<String, String>,
    dtype: StoredDtype,
) -> Result<()> {
    let mut metadata = notes.clone();
    metadata.insert("format".into(), FORMAT.into());
    metadata.insert("version".into(), VERSION.into());
    metadata.insert("config".into(), to_json(&path.config.to_raw(), file)?);
    metadata.insert("base".into(), to_json(base, file)?);
    write_tensors(file, &parameters(path), &metadata, dtype)
}

/// Whether an open safetensors file calls itself an adapter.
pub fn is_adapter(source: &SafetensorsSource) -> bool {
    source.metadata().get("format").is_some_and(|format| format == FORMAT)
}

/// Reads what an adapter file says about itself in its header, without its base.
///
/// # Errors
/// Not an adapter file, or another version.
pub fn inspect_adapter(file: &Path) -> Result<AdapterInfo> {
    let source = SafetensorsSource::open(file)?;
    let notes = source.metadata().clone().into_iter().collect();
    let shape = |name: String| source.shape(&name).map(|shape| (name, shape));
    describe_adapter(file, notes, source.names().into_iter().filter_map(shape).collect())
}

/// Loads a diffusion path onto its base LM's device.
///
/// # Errors
/// Not an adapter file, another version, a missing, extra or wrongly shaped tensor, or trained on another base.
pub fn load_adapter<B: Backend>(file: &Path, lm: &Lm<B>) -> Result<DiffusionPath<B>> {
    load_adapter_of(file, lm, &BaseFingerprint::of(lm))
}

/// [`load_adapter`] for a file that belongs to `base`, where `lm` is a rounded copy of it.
pub fn load_adapter_of<B: Backend>(file: &Path, lm: &Lm<B>, base: &BaseFingerprint) -> Result<DiffusionPath<B>> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    parse_adapter(file, &bytes, lm, base)
}

/// [`load_adapter`] from a file's content; `file` is the name in errors.
pub fn load_adapter_bytes<B: Backend>(file: &Path, bytes: &[u8], lm: &Lm<B>) -> Result<DiffusionPath<B>> {
    parse_adapter(file, bytes, lm, &BaseFingerprint::of(lm))
}

fn parse_adapter<B: Backend>(
    file: &Path,
    bytes: &[u8],
    lm: &Lm<B>,
    base: &BaseFingerprint,
) -> Result<DiffusionPath<B>> {
    let (mut tensors, notes) = parse_tensors(file, bytes)?;
    let shapes = tensors.values().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let info = describe_adapter(file, notes, shapes)?;
    if let Some(reason) = info.mismatch(base) {
        return Err(Error::AdapterMismatch { path: file.to_path_buf(), reason });
    }
    // A few bytes of config may stand for a path of any size: no more is made than the file can fill. (A tensor or two that
    // are missing are better named below.)
    let (wanted, found) = (info.config.parameter_counts(&lm.config).total(), info.num_parameters());
    if wanted > 2 * found + (1 << 20) {
        let reason = format!("its config stands for {wanted} parameters beside this base, its tensors hold {found}");
        return Err(Error::format(file, "L2D adapter", reason));
    }
    let fresh = DiffusionPath::init(lm, &info.config, &mut ChaCha8Rng::seed_from_u64(0));
    let path = replace_parameters(fresh, &mut |name, shape| {
        let tensor = tensors
            .remove(name)
            .ok_or_else(|| Error::MissingTensor { path: file.to_path_buf(), name: name.to_string() })?;
        if tensor.shape != shape {
            return Err(Error::Shape {
                path: file.to_path_buf(),
                name: name.to_string(),
                expected: shape.to_vec(),
                found: tensor.shape,
            });
        }
        Ok(tensor.values)
    })?;
    match tensors.keys().next() {
        None => Ok(path),
        Some(name) => Err(Error::ExtraTensor { path: file.to_path_buf(), name: name.clone(), count: tensors.len() }),
    }
}

/// Reads the metadata (`notes`) of an adapter file with tensors of these names and shapes.
fn describe_adapter(
    file: &Path,
    mut notes: BTreeMap<String, String>,
    tensors: Vec<(String, Vec<usize>)>,
) -> Result<AdapterInfo> {
    let bad = |reason: String| Error::format(file, "safetensors", reason);
    if notes.remove("format").as_deref() != Some(FORMAT) {
        return Err(Error::format(file, "L2D adapter", "its metadata has no `format: l2d-adapter`; is this a model?"));
    }
    match notes.remove("version") {
        Some(version) if version == VERSION => {}
        other => {
            return Err(Error::Unsupported {
                path: file.to_path_buf(),
                what: "adapter version",
                found: other.unwrap_or_else(|| "none given".into()),
                supported: VERSION,
            });
        }
    }
    let mut take = |key: &str| notes.remove(key).ok_or_else(|| bad(format!("metadata key `{key}` is missing")));
    let (config, base) = (take("config")?, take("base")?);
    let config: RawDiffusionConfig =
        serde_json::from_str(&config).map_err(|e| Error::config(file, "config", e.to_string()))?;
    let base: BaseFingerprint = serde_json::from_str(&base).map_err(|e| Error::config(file, "base", e.to_string()))?;
    Ok(AdapterInfo { config: config.check(file)?, base, tensors, notes })
}

/// Everything about an architecture that changes the mathematics; token ids and the context length do not.
fn architecture(config: &LmConfig) -> String {
    // Spelt out, because the hash of this text is in every adapter file: no name of the code may change it.
    let scaling = match config.rope_scaling {
        RopeScaling::None => "None".to_string(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => format!(
            "Llama3 {{ factor: {factor:?}, low_freq_factor: {low_freq_factor:?}, high_freq_factor: \
             {high_freq_factor:?}, original_max_positions: {original_max_positions} }}"
        ),
    };
    format!(
        "{} V{} H{} F{} L{} heads{}/{}x{} eps{:e} theta{:e} {} tied{} bias{}",
        config.family.model_type(),
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.rms_norm_eps as f32,
        config.rope_theta as f32,
        scaling,
        config.tie_word_embeddings,
        config.qkv_bias,
    )
}

fn describe(config: &LmConfig) -> String {
    format!(
        "{}, {} blocks of {}, vocabulary {}",
        config.family.model_type(),
        config.num_layers,
        config.hidden_size,
        config.vocab_size
    )
}

fn to_json(value: &impl Serialize, file: &Path) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::format(file, "json", e.to_string()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
