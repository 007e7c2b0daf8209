//! The architecture of a base LM: `config.json` of a Hugging Face folder (or the metadata of a GGUF file), checked once.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The model families this crate runs. SmolLM2 is `Llama`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2 and 3.x, SmolLM2: no biases.
    Llama,
    /// Qwen 2 and 2.5: biases on the query, key and value projections.
    Qwen2,
}

impl Family {
    /// The `model_type` of `config.json`, which is also GGUF's `general.architecture`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    /// The entry of `architectures` in `config.json`, which converters and engines choose their code by.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeScaling {
    /// Plain rotary embedding.
    None,
    /// Llama 3.1's rule: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths longer than `original_max_positions / low_freq_factor` count as low frequencies.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_max_positions / high_freq_factor` count as high frequencies.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_max_positions: usize,
    },
}

/// A checked architecture: every number is in range and consistent with the others.
///
/// Made by [`LmConfig::from_json`] or from a [`RawLmConfig`] by [`RawLmConfig::check`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LmConfig {
    /// Model family.
    pub family: Family,
    /// Rows of the embedding table, `V`.
    pub vocab_size: usize,
    /// Width of the residual stream, `H`.
    pub hidden_size: usize,
    /// Width of the gated MLP, `F`.
    pub intermediate_size: usize,
    /// Number of blocks, `L`.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Size of one head; even.
    pub head_dim: usize,
    /// Added to the mean square in RMS normalisation.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Context length.
    pub max_positions: usize,
    /// The LM head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Beginning-of-sequence token, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence; may be empty.
    pub eos_token_ids: Vec<u32>,
}

/// `config.json` as it is written. Unknown keys pass: Hugging Face configs carry dozens that concern training or other
/// libraries; those that would change the mathematics are named here and checked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RawLmConfig {
    /// `llama` or `qwen2`.
    pub model_type: Option<String>,
    /// `V`.
    pub vocab_size: Option<usize>,
    /// `H`.
    pub hidden_size: Option<usize>,
    /// `F`.
    pub intermediate_size: Option<usize>,
    /// `L`.
    pub num_hidden_layers: Option<usize>,
    /// Query heads.
    pub num_attention_heads: Option<usize>,
    /// Key/value heads; as many as query heads when absent.
    pub num_key_value_heads: Option<usize>,
    /// Head size; `hidden_size / num_attention_heads` when absent.
    pub head_dim: Option<usize>,
    /// RMS epsilon.
    pub rms_norm_eps: Option<f64>,
    /// Rotary base; 10000 when absent.
    pub rope_theta: Option<f64>,
    /// Rotary scaling.
    pub rope_scaling: Option<RawRopeScaling>,
    /// Newer configs hold the rotary base and scaling here.
    pub rope_parameters: Option<RawRopeScaling>,
    /// Context length.
    pub max_position_embeddings: Option<usize>,
    /// Tied head; false when absent.
    pub tie_word_embeddings: Option<bool>,
    /// Biases in attention (Llama: on all four projections, which we do not support).
    pub attention_bias: Option<bool>,
    /// Biases in the MLP (not supported).
    pub mlp_bias: Option<bool>,
    /// Activation of the MLP; only `silu`.
    pub hidden_act: Option<String>,
    /// Sliding-window attention (not supported).
    pub use_sliding_window: Option<bool>,
    /// Beginning of sequence.
    pub bos_token_id: Option<OneOrMany>,
    /// End of sequence: one id or several.
    pub eos_token_id: Option<OneOrMany>,
    /// Stored weights are quantised by another library (not supported).
    pub quantization_config: Option<serde_json::Value>,
}

/// `rope_scaling` (or `rope_parameters`) as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RawRopeScaling {
    /// `llama3` or `default`.
    pub rope_type: Option<String>,
    /// The older name of `rope_type`; some configs carry both.
    pub r#type: Option<String>,
    /// See [`RopeScaling::Llama3`].
    pub factor: Option<f64>,
    /// See [`RopeScaling::Llama3`].
    pub low_freq_factor: Option<f64>,
    /// See [`RopeScaling::Llama3`].
    pub high_freq_factor: Option<f64>,
    /// See [`RopeScaling::Llama3`].
    pub original_max_position_embeddings: Option<usize>,
    /// Only in `rope_parameters`.
    pub rope_theta: Option<f64>,
}

/// A token id, or a list of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One id.
    One(u32),
    /// Several ids.
    Many(Vec<u32>),
}

impl OneOrMany {
    /// The ids as a list.
    pub fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// Upper bounds on sizes. They keep the number of parameters (a dozen products of two widths in each layer) far from
/// overflow and turn a corrupt file into an error instead of an allocation; the largest known Llama (405B) has hidden
/// size 16,384 and 126 blocks.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 4096;
const MAX_VOCAB: usize = 1 << 24;

impl RawLmConfig {
    /// Checks every number and fills the defaults Hugging Face fills. `path` is named in errors.
    pub fn check(self, path: &Path) -> Result<LmConfig> {
        let fail = |key: &str, reason: String| Error::config(path, key, reason);
        let family = match self.model_type.as_deref() {
            Some("llama") => Family::Llama,
            Some("qwen2") => Family::Qwen2,
            other => {
                return Err(Error::Unsupported {
                    path: path.to_path_buf(),
                    what: "model_type",
                    found: other.unwrap_or("none given").to_string(),
                    supported: "llama, qwen2",
                });
            }
        };
        let size = |key: &str, value: Option<usize>, max: usize| match value {
            None => Err(fail(key, "missing".into())),
            Some(n) if n == 0 || n > max => Err(fail(key, format!("{n} is outside 1..={max}"))),
            Some(n) => Ok(n),
        };
        let vocab_size = size("vocab_size", self.vocab_size, MAX_VOCAB)?;
        let hidden_size = size("hidden_size", self.hidden_size, MAX_WIDTH)?;
        let intermediate_size = size("intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        let num_layers = size("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        let num_heads = size("num_attention_heads", self.num_attention_heads, MAX_WIDTH)?;
        let num_kv_heads = size("num_key_value_heads", self.num_key_value_heads.or(Some(num_heads)), MAX_WIDTH)?;
        if num_heads % num_kv_heads != 0 {
            return Err(fail("num_key_value_heads", format!("{num_kv_heads} does not divide {num_heads} query heads")));
        }
        let head_dim = match self.head_dim {
            Some(n) => size("head_dim", Some(n), MAX_WIDTH)?,
            None if hidden_size % num_heads == 0 => hidden_size / num_heads,
            None => {
                return Err(fail("head_dim", format!("absent, and {num_heads} heads do not divide {hidden_size}")));
            }
        };
        if num_heads * head_dim > MAX_WIDTH {
            let reason = format!("{num_heads} heads of {head_dim} are wider than {MAX_WIDTH}");
            return Err(fail("num_attention_heads", reason));
        }
        if head_dim % 2 != 0 {
            return Err(fail("head_dim", format!("{head_dim} is odd; rotary embedding rotates pairs")));
        }
        let rms_norm_eps = self.rms_norm_eps.unwrap_or(1e-6);
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(fail("rms_norm_eps", format!("{rms_norm_eps} is outside (0, 1)")));
        }
        let scaling = self.rope_scaling.or_else(|| self.rope_parameters.clone());
        let rope_theta =
            self.rope_theta.or_else(|| self.rope_parameters.as_ref().and_then(|p| p.rope_theta)).unwrap_or(10_000.0);
        if !(rope_theta.is_finite() && rope_theta > 1.0) {
            return Err(fail("rope_theta", format!("{rope_theta} is not a finite number above 1")));
        }
        let rope_scaling = match scaling {
            None => RopeScaling::None,
            Some(raw) => raw.check(path)?,
        };
        let max_positions = self.max_position_embeddings.unwrap_or(2048);
        if max_positions == 0 || max_positions > i32::MAX as usize {
            return Err(fail("max_position_embeddings", format!("{max_positions} is out of range")));
        }
        let refuse = |key: &'static str, found: String, supported: &'static str| {
            Err(Error::Unsupported { path: path.to_path_buf(), what: key, found, supported })
        };
        if family == Family::Llama && self.attention_bias == Some(true) {
            return refuse("attention_bias", "true".into(), "false for model_type llama");
        }
        if self.mlp_bias == Some(true) {
            return refuse("mlp_bias", "true".into(), "false");
        }
        if self.use_sliding_window == Some(true) {
            return refuse("use_sliding_window", "true".into(), "false");
        }
        if let Some(act) = self.hidden_act.filter(|act| act != "silu") {
            return refuse("hidden_act", act, "silu");
        }
        if self.quantization_config.is_some() {
            return refuse("quantization_config", "present".into(), "unquantised safetensors, or a GGUF file");
        }
        Ok(LmConfig {
            family,
            vocab_size,
            hidden_size,
            intermediate_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            max_positions,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: family == Family::Qwen2,
            bos_token_id: self.bos_token_id.and_then(|ids| ids.into_vec().first().copied()),
            eos_token_ids: self.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default(),
        })
    }
}

impl RawRopeScaling {
    fn check(self, path: &Path) -> Result<RopeScaling> {
        let positive = |key: &str, value: Option<f64>| match value {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            other => {
                Err(Error::config(path, format!("rope_scaling.{key}"), format!("{other:?} is not a positive number")))
            }
        };
        match self.rope_type.as_deref().or(self.r#type.as_deref()) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("llama3") => {
                let scaling = RopeScaling::Llama3 {
                    factor: positive("factor", self.factor)?,
                    low_freq_factor: positive("low_freq_factor", self.low_freq_factor)?,
                    high_freq_factor: positive("high_freq_factor", self.high_freq_factor)?,
                    original_max_positions: self.original_max_position_embeddings.filter(|&n| n > 0).ok_or_else(
                        || Error::config(path, "rope_scaling.original_max_position_embeddings", "missing or zero"),
                    )?,
                };
                if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
                    && high_freq_factor <= low_freq_factor
                {
                    return Err(Error::config(path, "rope_scaling.high_freq_factor", "must exceed low_freq_factor"));
                }
                Ok(scaling)
            }
            Some(other) => Err(Error::Unsupported {
                path: path.to_path_buf(),
                what: "rope_scaling.rope_type",
                found: other.to_string(),
                supported: "default, llama3",
            }),
        }
    }
}

impl LmConfig {
    /// Parses and checks the text of a `config.json`; `path` is named in errors.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let raw: RawLmConfig =
            serde_json::from_str(text).map_err(|e| Error::format(path, "config.json", e.to_string()))?;
        raw.check(path)
    }

    /// Width of all query heads together.
    pub fn query_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Number of weights, a tied head counted once.
    pub fn num_parameters(&self) -> usize {
        let (h, f, q, kv) = (self.hidden_size, self.intermediate_size, self.query_size(), self.kv_size());
        let attention = 2 * h * q + 2 * h * kv + if self.qkv_bias { q + 2 * kv } else { 0 };
        let block = attention + 3 * h * f + 2 * h;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        heads * self.vocab_size * h + self.num_layers * block + h
    }
}
