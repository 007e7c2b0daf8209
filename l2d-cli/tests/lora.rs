//! The road of a LoRA adapter: trained, generated with, merged, and L2D on top of it.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny")
}

fn l2d(cache: &Path) -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    command.env_remove("RUST_LOG").env("L2D_CACHE", cache);
    command
}

#[test]
fn an_adapter_is_trained_merged_and_built_upon() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let rows: String =
        (1..40).map(|n| format!("{{\"question\": \"What is {n} + 1?\", \"answer\": \"{}\"}}\n", n + 1)).collect();
    std::fs::write(path("data.jsonl"), rows).expect("written");
    let train = |out: &str| {
        let mut command = l2d(folder.path());
        command
            .arg("train")
            .arg("--model")
            .arg(tiny())
            .arg("--data")
            .arg(path("data.jsonl"))
            .arg("--out")
            .arg(path(out));
        command.args(["--steps", "4", "--batch-size", "4", "--set", "warmup_steps=1", "--set", "learning_rate=0.01"]);
        command
    };
    train("lora").args(["--objective", "lora", "--set", "lora_rank=2"]).assert().success();
    assert!(path("lora/peft/adapter_config.json").exists() && path("lora/model/config.json").exists());

    // The adapter on the base and the merged models say the same.
    let merge = || {
        let mut command = l2d(folder.path());
        command.args(["convert", "merge", "--model"]).arg(tiny()).arg("--lora").arg(path("lora/peft"));
        command.arg("--out").arg(path("merged"));
        command
    };
    merge().assert().success();
    merge().assert().code(2).stderr(predicate::str::contains("there is a model already"));
    let says = |model: &Path, lora: Option<&Path>| {
        let mut command = l2d(folder.path());
        command.arg("generate").arg("--model").arg(model).args(["--temperature", "0", "--max-tokens", "8", "--raw"]);
        if let Some(lora) = lora {
            command.arg("--lora").arg(lora);
        }
        let output = command.arg("What is 7 + 1?").assert().success();
        String::from_utf8_lossy(&output.get_output().stdout).into_owned()
    };
    let expected = says(&tiny(), Some(&path("lora/peft")));
    assert_eq!(says(&path("merged"), None), expected);
    assert_eq!(says(&path("lora/model"), None), expected);

    // L2D beside the adapted base fits it, and not the bare one.
    train("on").arg("--lora").arg(path("lora/peft")).args(["--set", "diffusion.dim=16"]).assert().success();
    let generate = |lora: bool| {
        let mut command = l2d(folder.path());
        command.args(["generate", "--max-tokens", "4", "--steps", "3", "--model"]).arg(tiny());
        if lora {
            command.arg("--lora").arg(path("lora/peft"));
        }
        command.arg("--adapter").arg(path("on/adapter.safetensors")).arg("What is 7 + 1?");
        command
    };
    generate(true).assert().success();
    generate(false).assert().failure().stderr(predicate::str::contains("another base"));

    std::fs::write(path("lora/peft/adapter_config.json"), "{").expect("written");
    let mut broken = l2d(folder.path());
    broken.args(["convert", "merge", "--model"]).arg(tiny()).arg("--lora").arg(path("lora/peft"));
    broken.arg("--out").arg(path("again")).assert().failure().stderr(predicate::str::contains("adapter_config.json"));
    assert!(!path("again").exists(), "nothing half-written");
}
