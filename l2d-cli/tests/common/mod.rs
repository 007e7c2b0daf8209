//! What the tests of training runs share.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::{Path, PathBuf};

use serde_json::Value;

pub(crate) fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny")
}

/// Problems of the embedded model's kind.
pub(crate) fn problems(path: &Path, count: usize) {
    let rows: String = (0..count)
        .map(|i| {
            let (a, b) = (100 + 7 * i % 900, 11 + i % 80);
            format!("{{\"question\":\"{a}*{b}\",\"answer\":\"{a}*{b}={}\"}}\n", a * b)
        })
        .collect();
    std::fs::write(path, rows).expect("written");
}

/// A small diffusion path, a dozen updates, and something due at almost each of them.
pub(crate) fn arguments(folder: &Path, out: &Path, settings: &[&str]) -> Vec<String> {
    let data = folder.join("data.jsonl");
    if !data.exists() {
        problems(&data, 40);
    }
    let mut arguments: Vec<String> = ["train", "--batch-size", "4", "--steps", "14"].map(String::from).to_vec();
    for (flag, path) in [("--model", &tiny()), ("--data", &data), ("--out", &out.to_path_buf())] {
        arguments.extend([flag.to_string(), path.display().to_string()]);
    }
    let usual = [
        "diffusion.dim=8",
        "diffusion.conditioning=8",
        "diffusion.time_features=8",
        "diffusion.variant={kind=\"lora\",rank=2,alpha=2.0}",
        "learning_rate=1e-3",
        "warmup_steps=2",
        "validation_fraction=0.3",
        "validate_every=3",
        "checkpoint_every=2",
    ];
    for setting in usual.iter().chain(settings) {
        arguments.extend(["--set".to_string(), setting.to_string()]);
    }
    arguments
}

/// The lines of a run's metrics, as far as they are whole.
pub(crate) fn metrics(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The same without what depends on the clock and the machine.
pub(crate) fn timeless(out: &Path) -> Vec<Value> {
    let timed = |key: &str| key.starts_with("seconds") || key.ends_with("per_second") || key.ends_with("memory");
    let mut rows = metrics(out);
    rows.iter_mut().for_each(|row| row.as_object_mut().expect("an object").retain(|key, _| !timed(key)));
    rows
}

pub(crate) fn checkpoints(out: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out.join("checkpoints")).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The same rows of metrics, but for rounding.
pub(crate) fn assert_alike(found: &[Value], expected: &[Value]) {
    fn alike(found: &Value, expected: &Value) -> bool {
        match (found, expected) {
            (Value::Number(a), Value::Number(b)) => {
                let (a, b) = (a.as_f64().expect("a number"), b.as_f64().expect("a number"));
                (a - b).abs() <= 1e-5 * b.abs().max(1.0)
            }
            (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
            }
            (a, b) => a == b,
        }
    }
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(alike(found, expected), "{found}\nagainst\n{expected}");
    }
}
