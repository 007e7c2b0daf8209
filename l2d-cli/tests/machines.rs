//! What a machine has, what it has not, and what is said of either.

use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny")
}

fn l2d() -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    command.env_remove("RUST_LOG").timeout(Duration::from_secs(300));
    command
}

#[test]
fn the_doctor_says_what_there_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.json");
    let said = l2d().args(["doctor", "--quick", "--json"]).arg(&file).assert().success();
    said.stdout(contains("backends  flex").and(contains("threads")).and(contains("sandbox for programs")));
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("json");
    assert_eq!(report["backends"][0], "flex");
    assert!(report["cpu"]["threads"].as_u64().is_some_and(|threads| threads > 0));
    assert!(report["cpu"]["product_rate"].is_null(), "nothing is measured in a hurry");
}

#[test]
fn rates_are_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.json");
    l2d().args(["doctor", "--json"]).arg(&file).assert().success().stdout(contains("products in f32"));
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("json");
    for rate in ["product_rate", "bandwidth"] {
        assert!(report["cpu"][rate].as_f64().is_some_and(|rate| rate > 1e8), "{rate}: {report}");
    }
}

#[test]
fn a_model_is_warmed_up_shape_by_shape() {
    let warmup = |more: &[&str]| {
        let mut command = l2d();
        command.args(["warmup", "--model"]).arg(tiny()).args(more);
        command
    };
    let adapter = tiny().join("adapter.safetensors").display().to_string();
    let said =
        warmup(&["--adapter", &adapter, "--batch", "1,2", "--prompt", "40", "--steps", "1,3"]).assert().success();
    // Two budgets, two batches, prompts of 16 and 32.
    let rows = |text: &str| text.lines().filter(|line| line.starts_with("| ")).count() == 1 + 2 * 2 * 2;
    said.stdout(predicate::function(rows)).stderr(contains("ready after"));
    warmup(&["--prompt", "100000"]).assert().code(2).stderr(contains("this model's context has room for"));
    warmup(&["--batch", "0"]).assert().code(2);
}

#[test]
fn random_weights_of_any_shape_are_measured() {
    let mut bench = l2d();
    bench.args(["bench", "decode", "--random", "--tokens", "3", "--repeats", "1", "--prompt", "8", "--model"]);
    bench.arg(shape(300, 64).path()).assert().success().stdout(contains("| 15 | 1 | 8 |"));
}

/// A folder with a config and a tokenizer, and no weights.
fn shape(vocabulary: usize, hidden: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(tiny().join(name), folder.path().join(name)).expect("copied");
    }
    let text = std::fs::read(tiny().join("config.json")).expect("a config");
    let mut config: Value = serde_json::from_slice(&text).expect("json");
    for (key, value) in [("vocab_size", vocabulary), ("hidden_size", hidden), ("num_hidden_layers", 1)] {
        config[key] = value.into();
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    folder
}

#[test]
#[cfg(all(unix, feature = "wgpu"))]
fn a_machine_without_a_driver_is_told_what_to_look_for() {
    let mut generate = l2d();
    generate.env("VK_ICD_FILENAMES", "/no/such/driver.json").args(["generate", "--backend", "wgpu", "1", "--model"]);
    let said = generate.arg(tiny()).assert().code(1);
    said.stderr(contains("no usable device for the backend `wgpu`").and(contains("hint: is there a GPU")));
    let mut doctor = l2d();
    doctor.env("VK_ICD_FILENAMES", "/no/such/driver.json").args(["doctor", "--quick"]);
    doctor.assert().success().stdout(contains("cannot be used"));
    let mut far = l2d();
    far.args(["generate", "--devices", "wgpu:9", "1", "--model"]).arg(tiny());
    far.assert().code(2).stderr(contains("there is no device wgpu:9"));
}

/// On a driver that computes on the CPU and binds 128 MiB at a time.
#[test]
#[cfg(all(unix, feature = "wgpu"))]
fn a_tensor_that_a_device_cannot_hold_is_an_error() {
    let doctor = l2d().args(["doctor", "--quick"]).output().expect("started");
    if !String::from_utf8_lossy(&doctor.stdout).contains("llvmpipe") {
        eprintln!("skipped: the device is another than the one whose limit is known");
        return;
    }
    // 154 MB of embeddings.
    let shape = shape(120_000, 320);
    let mut bench = l2d();
    bench.args(["bench", "decode", "--random", "--backend", "wgpu", "--model"]).arg(shape.path());
    let said = bench.assert().code(1);
    said.stderr(contains("holds no tensor of that size: 153.6 MB asked for").and(contains("hint: training:")));
    let mut generate = l2d();
    generate.args(["generate", "--backend", "wgpu", "--weights", "q4_1", "1", "--model"]).arg(tiny());
    generate.assert().code(2).stderr(contains("wgpu has f32, f16 and bf16"));
}
