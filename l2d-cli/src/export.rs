//! A finetuned or pretrained LM as a Hugging Face folder, wherever its base came from.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{StoredDtype, write_atomically, write_tensors};
use l2d_core::config::{LmConfig, RopeScaling};
use l2d_core::lm::Lm;
use serde_json::{Value, json};

use crate::error::CliError;
use crate::model::Text;

/// Writes `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
pub(crate) fn export_model<B: Backend>(
    folder: &Path,
    lm: &Lm<B>,
    text: &Text,
    dtype: StoredDtype,
) -> Result<(), CliError> {
    std::fs::create_dir_all(folder).map_err(|e| CliError::io(folder, e))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_tensors(&folder.join("model.safetensors"), &lm.export(), &metadata, dtype)?;
    write_text(&folder.join("tokenizer.json"), &text.tokenizer.to_json()?)?;
    let mut tokenizer_config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    let special = &text.special_tokens;
    let entries = [
        ("bos_token", special.bos.clone()),
        ("eos_token", special.eos.clone()),
        ("pad_token", special.pad.clone()),
        ("unk_token", special.unk.clone()),
        ("chat_template", text.template.as_ref().map(|template| template.source().to_string())),
    ];
    for (key, value) in entries.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        tokenizer_config[key] = value.into();
    }
    write_json(&folder.join("tokenizer_config.json"), &tokenizer_config)?;
    let generation = serde_json::to_value(&text.generation).map_err(|e| CliError::io(folder, e.into()))?;
    write_json(&folder.join("generation_config.json"), &generation)?;
    // Last: a folder without config.json is not taken for a model.
    write_json(&folder.join("config.json"), &config_json(&lm.config, dtype))
}

/// `config.json` in Hugging Face's keys.
pub(crate) fn config_json(config: &LmConfig, dtype: StoredDtype) -> Value {
    let mut json = json!({
        "architectures": [config.family.architecture()],
        "model_type": config.family.model_type(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": config.eos_token_ids,
        "torch_dtype": match dtype {
            StoredDtype::F32 => "float32",
            StoredDtype::F16 => "float16",
        },
    });
    if let Some(bos) = config.bos_token_id {
        json["bos_token_id"] = bos.into();
    }
    if let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } =
        config.rope_scaling
    {
        json["rope_scaling"] = json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        });
    }
    json
}

fn write_json(path: &Path, value: &Value) -> Result<(), CliError> {
    write_text(path, &format!("{value:#}\n"))
}

fn write_text(path: &Path, text: &str) -> Result<(), CliError> {
    Ok(write_atomically(path, |out| out.write_all(text.as_bytes()))?)
}
