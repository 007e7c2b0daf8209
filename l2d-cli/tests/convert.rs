//! `l2d convert from-pytorch` and `to-pytorch`: there and back, and what a person reads when it does not work.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;

fn tiny(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny").join(file)
}

fn convert(way: &str) -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    command.env_remove("RUST_LOG").args(["convert", way, "--model"]).arg(tiny(""));
    command
}

#[test]
fn an_adapter_goes_to_pytorch_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let says = |adapter: &Path| {
        let mut command = Command::cargo_bin("l2d").expect("built");
        command.args(["generate", "--max-tokens", "8", "--steps", "7", "--raw", "--model"]).arg(tiny(""));
        let output = command.arg("--adapter").arg(adapter).arg("12+7=").assert().success();
        output.get_output().stdout.clone()
    };
    let expected = says(&tiny("adapter.safetensors"));
    for whole in [true, false] {
        let name = |end: &str| path(&format!("{whole}.{end}"));
        let mut out = convert("to-pytorch");
        out.arg("--adapter").arg(tiny("adapter.safetensors")).arg("--out").arg(name("safetensors"));
        if whole {
            out.arg("--whole");
        }
        out.assert().success();
        out.assert().code(2).stderr(predicate::str::contains("there is a file already"));

        let back = || {
            let mut command = convert("from-pytorch");
            command.arg("--checkpoint").arg(name("safetensors")).arg("--out").arg(name("back.safetensors"));
            command
        };
        back().assert().failure().stderr(predicate::str::contains("--sigma"));
        let told = if whole { "number for number" } else { "was not checked" };
        back().arg("--config").arg(name("json")).assert().success().stderr(predicate::str::contains(told));
        assert_eq!(says(&name("back.safetensors")), expected);
    }
}

#[test]
fn the_settings_do_not_take_the_place_of_the_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut out = convert("to-pytorch");
    out.arg("--adapter").arg(tiny("adapter.safetensors")).arg("--out").arg(folder.path().join("weights.json"));
    out.assert().code(2).stderr(predicate::str::contains("name it .safetensors"));
}

#[test]
fn a_file_that_is_no_checkpoint_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("broken.bin");
    std::fs::write(&file, b"PK\x03\x04 and no more").expect("written");
    let mut command = convert("from-pytorch");
    command.args(["--sigma", "1", "--alpha", "1", "--checkpoint"]).arg(&file);
    command.arg("--out").arg(folder.path().join("out.safetensors"));
    command
        .assert()
        .failure()
        .stderr(predicate::str::contains("broken.bin").and(predicate::str::contains("state_dict")));
    assert!(!folder.path().join("out.safetensors").exists());
    // A plain LM is no L2D checkpoint.
    let mut command = convert("from-pytorch");
    command.arg("--checkpoint").arg(tiny("")).arg("--out").arg(folder.path().join("out.safetensors"));
    command.assert().failure().stderr(predicate::str::contains("flow_token_embedder"));
}
