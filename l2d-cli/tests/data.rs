//! `l2d data inspect`, and where `l2d train` gets its examples from.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;

const PAIR: &str = "{\"question\":\"12*3\",\"answer\":\"12*3=36\"}\n";

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny")
}

fn l2d(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    command.env_remove("RUST_LOG").env("L2D_CACHE", folder.join("cache")).timeout(std::time::Duration::from_secs(300));
    command
}

fn inspect(folder: &Path, data: &Path) -> Command {
    let mut command = l2d(folder);
    command.args(["data", "inspect", "--model"]).arg(tiny()).arg("--data").arg(data);
    command
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn a_data_set_is_counted_drawn_and_shown_with_its_labelled_part_marked() {
    let folder = tempfile::tempdir().expect("a folder");
    let no_reply = "{\"messages\":[{\"role\":\"user\",\"content\":\"9*9\"}]}\n";
    let data = write(folder.path().join("rows.jsonl"), &format!("{PAIR}{no_reply}{PAIR}"));
    let shown = inspect(folder.path(), &data).args(["--examples", "1"]).assert().success();
    shown
        .stdout(contains("rows     3").and(contains("examples 2")).and(contains("1 without a reply")))
        .stdout(contains("longest").and(contains("####")))
        // The reply with its end, and nothing of the prompt.
        .stdout(contains("[[12*3=36").and(contains("]]")).and(contains("[[12*3]]").not()))
        .stdout(contains("\u{1b}[").not())
        .stderr(contains("tokenised in"));
    let json = inspect(folder.path(), &data).arg("--json").assert().success().stderr(contains("found tokenised in"));
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).expect("json");
    assert_eq!(report["total"]["examples"], 2);
    assert_eq!(report["total"]["dropped"]["no_reply"], 1);
    assert_eq!(report["examples"].as_array().map(Vec::len), Some(2));
    let pieces = report["examples"][0]["pieces"].as_array().expect("pieces");
    let labelled: String =
        pieces.iter().filter(|piece| piece["labelled"] == true).filter_map(|piece| piece["text"].as_str()).collect();
    assert!(labelled.starts_with("12*3=36"), "{labelled}");
}

#[test]
fn a_set_without_a_labelled_position_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = write(folder.path().join("rows.jsonl"), "{\"messages\":[{\"role\":\"user\",\"content\":\"9*9\"}]}\n");
    inspect(folder.path(), &data)
        .assert()
        .code(1)
        .stderr(contains("no example to learn from").and(contains("1 without a reply")));
    let long = write(folder.path().join("long.jsonl"), PAIR);
    let mut command = inspect(folder.path(), &long);
    command.args(["--max-tokens", "4"]).assert().code(1).stderr(contains("1 examples are longer than max_tokens = 4"));
    inspect(folder.path(), &folder.path().join("absent.jsonl")).assert().code(1).stderr(contains("absent.jsonl"));
    let mut without = l2d(folder.path());
    without.args(["data", "inspect", "--model"]).arg(tiny()).assert().code(2).stderr(contains("--data"));
}

#[test]
fn damaged_tokens_are_made_again_and_it_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = write(folder.path().join("rows.jsonl"), PAIR);
    inspect(folder.path(), &data).assert().success();
    let cache = folder.path().join("cache/tokens");
    let key = std::fs::read_dir(&cache).expect("a cache").next().expect("one").expect("read").path();
    std::fs::write(key.join("tokens.bin"), "no tokens").expect("written");
    let again = inspect(folder.path(), &data).assert().success();
    again.stderr(contains("was damaged (tokens.bin does not have its checksum); made again"));
    inspect(folder.path(), &data).assert().success().stderr(contains("found tokenised"));
}

/// Rows as SmolTalk has them, in its folders; the filter's column is in one subset alone.
fn smoltalk(folder: &Path) -> PathBuf {
    let root = folder.join("smoltalk");
    let row = |question: &str, category: &str| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{question}\"}},{{\"role\":\"assistant\",\"content\":\"7\"}}]{category}}}\n"
        )
    };
    for subset in ["self-oss-instruct", "metamathqa-50k", "numina-cot-100k", "openhermes-100k"] {
        write(root.join(format!("data/{subset}/train.jsonl")), &row("3+4", "").repeat(3));
        write(root.join(format!("data/{subset}/test.jsonl")), "not to be read");
    }
    let ultra: String = ["math", "editing", "role-playing", "coding", "creative-writing"]
        .map(|category| row("3+4", &format!(",\"category\":\"{category}\"")))
        .concat();
    write(root.join("data/smol-magpie-ultra/train.jsonl"), &ultra);
    root
}

#[test]
fn the_smoltalk_preset_filters_categories_and_gives_classes() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = smoltalk(folder.path());
    let preset = tiny().join("../configs/data/smoltalk.toml");
    let json = inspect(folder.path(), &root).arg("--config").arg(&preset).arg("--json").assert().success();
    let report: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).expect("json");
    assert_eq!(report["total"]["examples"], 14);
    assert_eq!(report["total"]["dropped"], serde_json::json!({"excluded": 3}));
    assert_eq!(report["classes"], serde_json::json!({"coding": 3, "general knowledge": 5, "math": 6}));
    std::fs::remove_dir_all(root.join("data/numina-cot-100k")).expect("removed");
    let refused = inspect(folder.path(), &root).arg("--config").arg(&preset).assert().code(1);
    refused.stderr(contains("no subset `numina-cot-100k`"));
}

#[test]
fn a_run_takes_its_sources_from_the_settings_and_goes_on_from_what_it_wrote_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = smoltalk(folder.path());
    let out = folder.path().join("run");
    let settings =
        "[[sources]]\nsubset = \"metamathqa-50k\"\nweight = 3\n[[sources]]\nsubset = \"openhermes-100k\"\nweight = 1\n";
    let settings = write(folder.path().join("mine.toml"), settings);
    let train = |config: &Path, steps: &str| {
        let mut command = l2d(folder.path());
        command.args(["train", "--model"]).arg(tiny()).arg("--out").arg(&out).arg("--config").arg(config);
        command.args([
            "--batch-size",
            "2",
            "--steps",
            steps,
            "--set",
            "diffusion.dim=8",
            "--set",
            "diffusion.conditioning=8",
        ]);
        command.args([
            "--set",
            "diffusion.time_features=8",
            "--set",
            "diffusion.variant={kind=\"lora\",rank=2,alpha=2.0}",
        ]);
        command
    };
    train(&settings, "2").assert().code(2).stderr(contains("--data"));
    train(&settings, "2").arg("--data").arg(&root).assert().success().stderr(contains("6 examples"));
    let written = out.join("config.toml");
    // All is written down: no --data, and with the same one.
    let again = train(&written, "2").arg("--resume").assert().success();
    again.stderr(contains("found tokenised"));
    train(&written, "2")
        .arg("--resume")
        .arg("--data")
        .arg(&root)
        .assert()
        .code(2)
        .stderr(contains("others than these"));
    std::fs::remove_dir_all(folder.path().join("cache")).expect("removed");
    train(&written, "2").arg("--resume").assert().success().stderr(contains("tokenised in"));
    // Other examples are another run.
    write(root.join("data/openhermes-100k/train.jsonl"), PAIR);
    train(&written, "2").arg("--resume").assert().code(1).stderr(contains("the training examples"));
}

#[test]
fn two_starts_in_one_cache_do_not_harm_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = write(folder.path().join("rows.jsonl"), &PAIR.repeat(5000));
    let runs: Vec<_> = (0..3)
        .map(|_| {
            let (folder, data) = (folder.path().to_path_buf(), data.clone());
            std::thread::spawn(move || {
                inspect(&folder, &data).arg("--json").assert().success().get_output().stdout.clone()
            })
        })
        .collect();
    let outputs: Vec<_> = runs.into_iter().map(|run| run.join().expect("ran")).collect();
    assert!(outputs.iter().all(|output| *output == outputs[0]));
    let left: Vec<_> = std::fs::read_dir(folder.path().join("cache/tokens")).expect("read").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
