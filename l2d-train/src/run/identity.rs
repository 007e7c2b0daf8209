//! What makes a run the same run: all that its losses depend on but the model.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::TrainConfig;
use crate::data::ExampleSource;

/// Settings and data of a run, as its checkpoints keep them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Settings that losses depend on, under their dotted keys.
    settings: Map<String, Value>,
    /// SHA-256 of the examples and their order.
    data: String,
}

/// Settings that may change between a run and its resumption: what is watched and kept, and what fits into memory (which
/// changes the rounding alone: a run that ran out of memory may go on with less).
const FREE: [&str; 10] = [
    "epochs",
    "micro_batch_size",
    "head_chunk",
    "recompute",
    "validate_every",
    "log_every",
    "checkpoint_every",
    "keep_last",
    "early_stop_patience",
    "early_stop_min_delta",
];

impl Identity {
    /// That of a run of `total_steps` updates over `examples`.
    pub(super) fn of(config: &TrainConfig, total_steps: u64, examples: &dyn ExampleSource) -> Self {
        // The number of updates is what counts, however it was asked for.
        let config = TrainConfig { steps: Some(total_steps), ..config.clone() };
        let mut settings = Map::new();
        flatten("", serde_json::to_value(&config).unwrap_or_default(), &mut settings);
        settings.retain(|key, _| !FREE.contains(&key.as_str()));
        let data = examples.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { settings, data }
    }

    /// What is different now, each in words; empty if nothing is.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        let show = |value: Option<&Value>| value.map_or_else(|| "absent".into(), Value::to_string);
        let mut keys: Vec<&String> = self.settings.keys().chain(now.settings.keys()).collect();
        keys.sort();
        keys.dedup();
        let mut found: Vec<String> = keys
            .into_iter()
            .filter(|key| self.settings.get(*key) != now.settings.get(*key))
            .map(|key| format!("{key} was {}, is {}", show(self.settings.get(key)), show(now.settings.get(key))))
            .collect();
        if self.data != now.data {
            found.push("the training examples are others (files, template, tokenizer, or what is held back)".into());
        }
        found
    }
}

fn flatten(prefix: &str, value: Value, into: &mut Map<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                flatten(&key, value, into);
            }
        }
        Value::Null => {}
        other => {
            into.insert(prefix.to_string(), other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Example;

    #[test]
    fn differences_are_named_and_free_settings_are_none() {
        let examples = vec![Example { tokens: vec![1, 2], prompt: 1, class: None, conversation: 0 }];
        let config = TrainConfig::default();
        let first = Identity::of(&config, 10, &examples);
        let free = TrainConfig { log_every: 7, micro_batch_size: Some(2), epochs: 3.0, ..config.clone() };
        assert!(first.differences(&Identity::of(&free, 10, &examples)).is_empty());
        let mut other = TrainConfig { learning_rate: 2e-3, ..config };
        other.diffusion.sigma = 16.0;
        let other = Identity::of(&other, 12, &vec![examples[0].clone(); 2]);
        let found = first.differences(&other);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], "diffusion.sigma was 64.0, is 16.0");
        assert_eq!(found[1], "learning_rate was 0.0001, is 0.002");
        assert_eq!(found[2], "steps was 10, is 12");
        let json = serde_json::to_string(&first).expect("json");
        assert_eq!(serde_json::from_str::<Identity>(&json).expect("read"), first);
    }
}
