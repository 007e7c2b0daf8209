//! Low-rank adapters of the base LM in the format of Hugging Face's PEFT: a folder with `adapter_config.json` and
//! `adapter_model.safetensors`, whose tensors are called `base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight`
//! (`[r, in]`) and `...lora_B.weight` (`[out, r]`).

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::atomic::write_atomically;
use super::tensor_file::{StoredDtype, read_tensors, write_tensors};
use crate::error::{Error, Result};
use crate::lm::{HostTensor, Linear, Lm, Lora, host_values};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.model.layers.";
/// PEFT's names of a block's linear layers, in the order of [`linears`].
const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// What of `adapter_config.json` decides the numbers. Other keys are PEFT's own affairs.
#[derive(Debug, Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: Map<String, Value>,
    #[serde(default)]
    alpha_pattern: Map<String, Value>,
}

/// Values by patterns of module names, in the file's order.
type Patterns<T> = Vec<(Regex, T)>;

impl PeftConfig {
    fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(CONFIG);
        let text = std::fs::read(&file).map_err(|e| Error::io(&file, e))?;
        let config: Self =
            serde_json::from_slice(&text).map_err(|e| Error::format(&file, "PEFT adapter config", e.to_string()))?;
        let refuse = |key: &str, reason: &str| Err(Error::config(&file, key, reason));
        if config.peft_type != "LORA" {
            return refuse("peft_type", &format!("{} is not LORA, the one kind that is supported", config.peft_type));
        }
        if config.use_dora {
            return refuse("use_dora", "DoRA is not supported: merge it with PEFT's merge_and_unload first");
        }
        if config.fan_in_fan_out {
            return refuse("fan_in_fan_out", "weights of transposed layers are not supported");
        }
        if config.bias.as_deref().is_some_and(|bias| bias != "none") {
            return refuse("bias", "trained biases are not supported: merge them with PEFT's merge_and_unload first");
        }
        if config.modules_to_save.as_ref().is_some_and(|modules| !modules.is_empty()) {
            return refuse(
                "modules_to_save",
                "whole trained modules are not supported: merge with merge_and_unload first",
            );
        }
        if config.r == 0 || !config.lora_alpha.is_finite() {
            return refuse("r", "a rank of at least 1 and a finite lora_alpha are needed");
        }
        Ok(config)
    }

    /// `rank_pattern` and `alpha_pattern`. PEFT takes the first whose key, a regular expression, matches the module's name
    /// from a dot, or its beginning, to its end.
    fn patterns(&self, file: &Path) -> Result<(Patterns<usize>, Patterns<f64>)> {
        fn read<T>(
            file: &Path,
            key: &str,
            map: &Map<String, Value>,
            value: impl Fn(&Value) -> Option<T>,
        ) -> Result<Patterns<T>> {
            let bad = |name: &str, reason: String| Error::config(file, format!("{key}.{name}"), reason);
            map.iter()
                .map(|(name, found)| {
                    let pattern = Regex::new(&format!(r"^(?:.*\.)?(?:{name})$"));
                    let pattern =
                        pattern.map_err(|_| bad(name, "this is no regular expression that is supported".into()))?;
                    Ok((pattern, value(found).ok_or_else(|| bad(name, format!("{found} is no such number")))?))
                })
                .collect()
        }
        let rank = |value: &Value| value.as_u64().filter(|&rank| rank > 0).map(|rank| rank as usize);
        Ok((
            read(file, "rank_pattern", &self.rank_pattern, rank)?,
            read(file, "alpha_pattern", &self.alpha_pattern, Value::as_f64)?,
        ))
    }

    /// Rank and scale of the module of that name.
    fn of(&self, module: &str, patterns: &(Patterns<usize>, Patterns<f64>)) -> (usize, f64) {
        let rank = patterns.0.iter().find(|(key, _)| key.is_match(module)).map_or(self.r, |(_, rank)| *rank);
        let alpha =
            patterns.1.iter().find(|(key, _)| key.is_match(module)).map_or(self.lora_alpha, |(_, alpha)| *alpha);
        (rank, if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 })
    }
}

/// A block's linear layers, in the order of [`MODULES`].
fn linears<B: Backend>(lm: &mut Lm<B>, layer: usize) -> [&mut Linear<B>; 7] {
    let block = &mut lm.blocks[layer];
    let mlp = &mut block.mlp;
    [&mut block.query, &mut block.key, &mut block.value, &mut block.output, &mut mlp.gate, &mut mlp.up, &mut mlp.down]
}

/// Adds a PEFT adapter to a dense LM and merges it into the weights: `W + (alpha / r) A B` in f32.
///
/// # Errors
/// The folder is no LoRA adapter, asks for what is not supported, has tensors that the model has no place for or of other
/// shapes, or misses a partner.
pub fn merge_peft<B: Backend>(folder: &Path, mut lm: Lm<B>) -> Result<Lm<B>> {
    let config = PeftConfig::read(folder)?;
    let patterns = config.patterns(&folder.join(CONFIG))?;
    let file = folder.join(WEIGHTS);
    let (mut tensors, _) = read_tensors(&file)?;
    let device = lm.device();
    let mut merged = 0;
    for layer in 0..lm.blocks.len() {
        for (linear, module) in linears(&mut lm, layer).into_iter().zip(MODULES) {
            let [inputs, outputs] = linear.shape();
            let (rank, scale) = config.of(&format!("model.layers.{layer}.{module}"), &patterns);
            let mut take = |factor: &str, shape: [usize; 2]| -> Result<Option<Vec<f32>>> {
                let name = format!("{PREFIX}{layer}.{module}.lora_{factor}.weight");
                match tensors.remove(&name) {
                    None => Ok(None),
                    Some(tensor) if tensor.shape == shape => Ok(Some(tensor.values)),
                    Some(HostTensor { shape: found, .. }) => {
                        Err(Error::Shape { path: file.clone(), name, expected: shape.to_vec(), found })
                    }
                }
            };
            let (a, b) = match (take("A", [rank, inputs])?, take("B", [outputs, rank])?) {
                (None, None) => continue,
                (Some(a), Some(b)) => (a, b),
                (a, _) => {
                    let missing = if a.is_some() { "B" } else { "A" };
                    let name = format!("{PREFIX}{layer}.{module}.lora_{missing}.weight");
                    return Err(Error::MissingTensor { path: file.clone(), name });
                }
            };
            let tensor = |values, shape: [usize; 2]| Tensor::<B, 2>::from_data(TensorData::new(values, shape), &device);
            // A contiguous copy on its side: `[in, r]` and `[r, out]`.
            let lora = Lora::new(tensor(a, [rank, inputs]).transpose(), tensor(b, [outputs, rank]).transpose(), scale);
            let bias = linear.bias.as_ref().map(|bias| bias.val());
            *linear = Linear::new(linear.dense() + lora.delta(), bias);
            merged += 1;
        }
    }
    if let Some(name) = tensors.keys().next() {
        return Err(Error::ExtraTensor { path: file, name: name.clone(), count: tensors.len() });
    }
    if merged == 0 {
        return Err(Error::format(&file, "PEFT adapter", "it holds no correction of any layer of this model"));
    }
    Ok(lm)
}

/// Writes the corrections of an LM as a PEFT adapter; `base` is the name or path of the base, for people and for PEFT's
/// `AutoPeftModel`.
///
/// # Errors
/// No layer has a correction, corrections of several ranks, or a file cannot be written.
pub fn save_peft<B: Backend>(folder: &Path, mut lm: Lm<B>, base: &str) -> Result<()> {
    let mut tensors = Vec::new();
    let mut modules: Vec<&str> = Vec::new();
    let mut settings: Option<(usize, f64)> = None;
    let file = folder.join(WEIGHTS);
    let layers = lm.blocks.len();
    for layer in 0..layers {
        for (linear, module) in linears(&mut lm, layer).into_iter().zip(MODULES) {
            let Some(lora) = &linear.lora else { continue };
            let ([inputs, rank], [_, outputs]) = (lora.a.shape().dims::<2>(), lora.b.shape().dims::<2>());
            let this = (rank, lora.scale * rank as f64);
            if *settings.get_or_insert(this) != this {
                return Err(Error::format(
                    &file,
                    "PEFT adapter",
                    "corrections of several ranks or alphas cannot be written",
                ));
            }
            let name = |factor: &str| format!("{PREFIX}{layer}.{module}.lora_{factor}.weight");
            let on_side = |x: Tensor<B, 2>| host_values(x.transpose());
            tensors.push(HostTensor { name: name("A"), shape: vec![rank, inputs], values: on_side(lora.a.val()) });
            tensors.push(HostTensor { name: name("B"), shape: vec![outputs, rank], values: on_side(lora.b.val()) });
            let short = module.rsplit('.').next().unwrap_or(module);
            if !modules.contains(&short) {
                modules.push(short);
            }
        }
    }
    let Some((rank, alpha)) = settings else {
        return Err(Error::format(&file, "PEFT adapter", "no layer of this model has a correction"));
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_tensors(&file, &tensors, &metadata, StoredDtype::F32)?;
    let config: Value = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": false,
        "use_dora": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "modules_to_save": null,
        "target_modules": modules,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": true,
    });
    // Last: a folder without a config is no adapter.
    write_atomically(&folder.join(CONFIG), |out| writeln!(out, "{config:#}"))
}
