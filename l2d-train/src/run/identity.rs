//! What a run is, so that it is only ever resumed as itself: its settings and its examples.

use std::collections::BTreeMap;

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use l2d_core::parameters::trained_parameters;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::TrainConfig;
use crate::error::Result;
use crate::run_dir::RunState;

/// Settings that a resumed run may change: they decide when it looks, logs, saves and ends, or change only the rounding. Of
/// `steps` and `epochs` the number of updates they give must stay.
const FREE: &[&str] = &[
    "steps",
    "epochs",
    "micro_batch_size",
    "head_chunk",
    "recompute",
    "pad_to",
    // The examples themselves are compared, wherever they were read.
    "sources",
    "bad_rows",
    "max_loss",
    "validate_every",
    "early_stop_patience",
    "early_stop_min_delta",
    "generate.every",
    "generate.batch_size",
    "log_every",
    "checkpoint_every",
    "keep_last",
];

/// The settings as JSON.
pub(super) fn settings(config: &TrainConfig) -> Result<Value> {
    serde_json::to_value(config).map_err(|e| crate::TrainError::io("config", e.into()))
}

/// Each difference between the run that was saved and the one that is to go on, `key: old -> new`.
pub(super) fn differences(saved: &RunState, now: &RunState) -> Result<Vec<String>> {
    // A setting that did not exist when the checkpoint was written had its default. (Settings that exist no more cannot be
    // read back; they are compared as they are.)
    let known = serde_json::from_value::<TrainConfig>(saved.settings.clone());
    let mut old = BTreeMap::new();
    flatten("", &known.map_or_else(|_| Ok(saved.settings.clone()), |config| settings(&config))?, &mut old);
    let mut new = BTreeMap::new();
    flatten("", &now.settings, &mut new);
    let keys = old.keys().chain(new.keys()).filter(|key| !FREE.contains(&key.as_str()));
    let keys: std::collections::BTreeSet<&String> = keys.collect();
    let written = |value: Option<&Value>| {
        value.map_or("none".into(), |value| match value {
            Value::Null => "none".into(),
            other => other.to_string(),
        })
    };
    let mut found: Vec<String> = keys
        .into_iter()
        .map(|key| (key, written(old.get(key)), written(new.get(key))))
        .filter(|(_, old, new)| old != new)
        .map(|(key, old, new)| format!("{key}: {old} -> {new}"))
        .collect();
    if saved.total_steps != now.total_steps {
        found.push(format!("number of updates: {} -> {}", saved.total_steps, now.total_steps));
    }
    if saved.data != now.data {
        found.push("the training examples (other files, model, template or data settings)".into());
    }
    Ok(found)
}

/// Values by dotted key.
fn flatten(key: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (name, value) in entries {
                flatten(&if key.is_empty() { name.clone() } else { format!("{key}.{name}") }, value, found);
            }
        }
        other => {
            found.insert(key.to_string(), other.clone());
        }
    }
}

/// What recognises trained weights: a hash of their names and bits.
pub(super) fn weights<AB: AutodiffBackend, M: AutodiffModule<AB>>(model: &M) -> String {
    let mut hash = Sha256::new();
    for tensor in trained_parameters(model) {
        hash.update(tensor.name.as_bytes());
        for value in tensor.values {
            hash.update(value.to_le_bytes());
        }
    }
    hexadecimal(&hash.finalize())
}

/// A fingerprint in hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
