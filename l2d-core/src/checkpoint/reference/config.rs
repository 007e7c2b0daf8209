//! The hyper-parameters of an authors' checkpoint: most follow from its tensors' shapes, the rest from the run's settings.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::checkpoint::TensorSource;
use crate::diffusion::{DiffusionConfig, RawDiffusionConfig, Variant};
use crate::error::{Error, Result};

/// What a checkpoint's tensors do not say. A value here wins over the one in [`ReferenceConfig`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReferenceOverrides {
    /// Standard deviation of the noise, `noise_rescaling` there.
    pub sigma: Option<f64>,
    /// `flow_lora_alpha` there.
    pub alpha: Option<f64>,
    /// Names of the guidance classes, in the order of the table's rows; `class0`, ... when empty.
    pub classes: Vec<String>,
}

/// The settings a model of the authors' code was built with, as one flat JSON object.
#[derive(Debug, Clone)]
pub struct ReferenceConfig {
    path: PathBuf,
    values: Map<String, Value>,
}

/// Settings that this model has one value of.
fn fixed() -> [(&'static str, Value); 14] {
    [
        ("noise_schedule", json!("identity")),
        ("flow_representation_space", json!("mapping")),
        ("flow_representation_num_layers", json!(1)),
        ("flow_representation_normalize", json!(true)),
        ("flow_representation_rescaling", json!("mult")),
        ("flow_to_lm_translation_depth", json!(2)),
        ("flow_to_lm_timestep_rescaling", json!(1.0)),
        ("flow_to_lm_rescale_in_float32", json!(true)),
        ("preserve_behavior_at_flow_start", json!(true)),
        ("modulate_hidden_states", json!(false)),
        ("full_dit_modulation", json!(true)),
        ("timestep_modulation_num_layers", json!(2)),
        ("freeze_modulation_at_flow_start", json!(false)),
        ("separate_flow_params", json!(true)),
    ]
}

impl ReferenceConfig {
    /// Reads a JSON file. Keys that do not concern the model's mathematics are passed over: the authors' runs have many.
    ///
    /// # Errors
    /// Not a JSON object, or a setting that this model does not have.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let values: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| Error::format(path, "json", e.to_string()))?;
        for (key, wanted) in fixed() {
            let same = |found: &Value| match (found.as_f64(), wanted.as_f64()) {
                (Some(found), Some(wanted)) => found == wanted,
                _ => *found == wanted,
            };
            match values.get(key) {
                None | Some(Value::Null) => {}
                Some(found) if same(found) => {}
                Some(found) => {
                    return Err(Error::config(path, key, format!("{found} is not supported, only {wanted} is")));
                }
            }
        }
        Ok(Self { path: path.to_path_buf(), values })
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(Error::config(&self.path, key, format!("{value} is not a number"))),
            },
        }
    }

    /// A size that the tensors say too.
    fn agrees(&self, key: &str, tensors: usize) -> Result<()> {
        match self.number(key)? {
            Some(number) if number != tensors as f64 => {
                Err(Error::config(&self.path, key, format!("{number}, but the checkpoint's tensors have {tensors}")))
            }
            _ => Ok(()),
        }
    }
}

/// The settings of a path, for the reference's constructor.
pub fn reference_config(config: &DiffusionConfig) -> Value {
    let mut all: Map<String, Value> = fixed().into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    let mut set = |key: &str, value: Value| all.insert(key.to_string(), value);
    set("flow_representation_dim", json!(config.dim));
    set("flow_to_lm_hidden_size", json!(config.translation_hidden));
    set("timestep_modulation_hidden_size", json!(config.conditioning));
    set("timestep_modulation_freq_embedding_size", json!(config.time_features));
    set("noise_rescaling", json!(config.sigma));
    set("guidance_modulation_num_classes", json!(config.classes.len()));
    let low_rank = matches!(config.variant, Variant::Lora { .. });
    set("separate_flow_params_with_lora", json!(low_rank));
    if let Variant::Lora { rank, alpha } = config.variant {
        set("flow_lora_rank", json!(rank));
        set("flow_lora_alpha", json!(alpha));
    }
    Value::Object(all)
}

/// The config of the path in `source`, whose names begin with `prefix`.
pub(super) fn derive(
    source: &dyn TensorSource,
    prefix: &str,
    config: Option<&ReferenceConfig>,
    overrides: &ReferenceOverrides,
) -> Result<DiffusionConfig> {
    let matrix = |name: &str| -> Result<[usize; 2]> {
        let name = format!("{prefix}{name}");
        match source.shape(&name).as_deref() {
            Some(&[rows, columns]) => Ok([rows, columns]),
            Some(found) => Err(Error::Shape {
                path: source.path().to_path_buf(),
                name,
                expected: vec![0, 0],
                found: found.to_vec(),
            }),
            None => Err(Error::MissingTensor { path: source.path().to_path_buf(), name }),
        }
    };
    let [dim, _] = matrix("model.flow_token_embedder.embedder.layers_module.0.weight")?;
    let [conditioning, time_features] = matrix("model.timestep_embedder.mlp.0.weight")?;
    let [translation_hidden, _] = matrix("model.flow_to_lm_encoder.embedder.layers_module.0.weight")?;
    let unsaid = |key: &str| {
        let reason = "the checkpoint's tensors do not say it: it must be given, or stand in the run's settings";
        Error::config(config.map_or(source.path(), |config| &config.path), key, reason)
    };
    let given = |value: Option<f64>, key: &str| -> Result<f64> {
        let value = match (value, config) {
            (Some(value), _) => Some(value),
            (None, Some(config)) => config.number(key)?,
            (None, None) => None,
        };
        value.ok_or_else(|| unsaid(key))
    };
    let factor = "model.layers.0.self_attn.flow_q_proj.A";
    let variant = if source.shape(&format!("{prefix}{factor}")).is_some() {
        let [_, rank] = matrix(factor)?;
        Variant::Lora { rank, alpha: given(overrides.alpha, "flow_lora_alpha")? }
    } else {
        Variant::Full
    };
    let table = "model.data_label_embedder.weight";
    let classes = match source.shape(&format!("{prefix}{table}")) {
        None => 0,
        // The last row is "no class".
        Some(_) => matrix(table)?[0].saturating_sub(1),
    };
    let names = if overrides.classes.is_empty() {
        (0..classes).map(|i| format!("class{i}")).collect()
    } else {
        overrides.classes.clone()
    };
    if names.len() != classes {
        let reason = format!("{} names for the {classes} classes of the checkpoint", names.len());
        return Err(Error::config(source.path(), "classes", reason));
    }
    let derived = RawDiffusionConfig {
        dim,
        translation_hidden: Some(translation_hidden),
        conditioning,
        time_features,
        sigma: given(overrides.sigma, "noise_rescaling")?,
        variant,
        classes: names,
    }
    .check(source.path())?;
    if let Some(config) = config {
        config.agrees("flow_representation_dim", derived.dim)?;
        config.agrees("flow_to_lm_hidden_size", derived.translation_hidden)?;
        config.agrees("timestep_modulation_hidden_size", derived.conditioning)?;
        config.agrees("timestep_modulation_freq_embedding_size", derived.time_features)?;
        config.agrees("guidance_modulation_num_classes", derived.classes.len())?;
        if let Variant::Lora { rank, .. } = derived.variant {
            config.agrees("flow_lora_rank", rank)?;
        }
    }
    Ok(derived)
}
