//! What results are results of, so that nothing is mixed up.

use std::path::Path;

use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{BaseFingerprint, inspect_adapter, weights_digest};
use l2d_core::lm::Lm;
use l2d_eval::journal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::kept::SAMPLES;
use crate::args::ModelArgs;
use crate::error::CliError;
use crate::hub::name_of;
use crate::model::Text;

/// The model behind an evaluation.
pub(super) struct Identity {
    /// Everything a completion depends on beside the settings and the prompt's text, by content and not by name.
    pub(super) key: Value,
    /// The same with names for people.
    pub(super) description: Value,
}

impl Identity {
    pub(super) fn of<B: Backend>(args: &ModelArgs, lm: &Lm<B>, text: &Text, backend: String) -> Result<Self, CliError> {
        let template = text.template.as_ref().map(|template| template.source());
        let text = json!([text.tokenizer.to_json()?, template, text.stop_tokens]);
        let mut key = json!({
            // Its digest of all matrices stands below.
            "base": BaseFingerprint { matrices: None, ..BaseFingerprint::of(lm) },
            // A merged LoRA or another finetune may leave all that the fingerprint looks at as it is.
            "weights": weights_digest(lm),
            "text": sha256(text.to_string().as_bytes()),
            "backend": backend,
            // Another version may decode otherwise.
            "l2d": env!("CARGO_PKG_VERSION"),
        });
        if let Some(format) = args.weights {
            key["format"] = format.name().into();
        }
        let mut description = key.clone();
        description["name"] = name_of(&args.model).into();
        if let Some(lora) = &args.lora {
            description["lora"] = name_of(lora).into();
        }
        if let Some(file) = &args.adapter {
            let bytes = std::fs::read(file).map_err(|e| CliError::io(file, e))?;
            key["adapter"] = sha256(&bytes).into();
            let notes = inspect_adapter(file)?.notes;
            description["adapter"] = json!({ "name": name_of(file), "sha256": key["adapter"], "notes": notes });
        }
        Ok(Self { key, description })
    }

    /// Refuses to write over the results of another model or adapter.
    pub(super) fn check_owner(&self, folder: &Path, task: &str) -> Result<(), CliError> {
        match owner_in(folder, task)? {
            owner if owner.is_object() && !same_model(&owner, &self.description) => Err(CliError::Usage(format!(
                "{} holds the results of {}: give another folder with --out",
                folder.join(format!("{task}.json")).display(),
                title(&owner),
            ))),
            _ => Ok(()),
        }
    }
}

/// The model that the results of a task in a folder are of; `None` where there are none.
fn description_in(folder: &Path, task: &str) -> Result<Option<Value>, CliError> {
    let path = folder.join(format!("{task}.json"));
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            match serde_json::from_str::<Value>(&text).ok().and_then(|mut report| Some(report.get_mut("model")?.take()))
            {
                Some(model) => Ok(Some(model)),
                None => Err(CliError::Usage(format!("{} is no report of an evaluation: move it away", path.display()))),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::io(&path, error)),
    }
}

/// The model that a task's results in a folder are of, by its report, else by its answers; null where there are none.
pub(super) fn owner_in(folder: &Path, task: &str) -> Result<Value, CliError> {
    let owner = match description_in(folder, task)? {
        Some(Value::Null) | None => journal_owner(folder, task)?,
        known => known,
    };
    Ok(owner.unwrap_or_default())
}

/// The model that a journal's answers are of: a run that was killed early has no report yet.
fn journal_owner(folder: &Path, task: &str) -> Result<Option<Value>, CliError> {
    let path = folder.join(format!("{task}{SAMPLES}"));
    if !path.is_file() {
        return Ok(None);
    }
    let last = journal::read(&path)?.pop();
    Ok(last.map(|record| record.settings["model"].clone()).filter(Value::is_object))
}

/// Whether two descriptions are of one base, with the same weights, and one adapter.
pub(super) fn same_model(a: &Value, b: &Value) -> bool {
    ["base", "weights", "adapter"].iter().all(|part| {
        let content = |value: &Value| value.get("sha256").unwrap_or(value).clone();
        content(&a[*part]) == content(&b[*part])
    })
}

/// A model by name.
pub(super) fn title(description: &Value) -> String {
    let name = description["name"].as_str().unwrap_or("another model").to_owned();
    match description["adapter"]["name"].as_str() {
        Some(adapter) => format!("{name} with {adapter}"),
        None => name,
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
