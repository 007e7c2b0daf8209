//! Training as a process that is killed, that finds its files damaged or the disk full, that answers problems on the way, and
//! that is planned beforehand.
#![cfg(unix)]

mod common;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use common::{arguments, assert_alike, checkpoints, metrics, problems, timeless, tiny};
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;

fn train(folder: &Path, out: &Path, settings: &[&str]) -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    command.env_remove("RUST_LOG").timeout(Duration::from_secs(300)).args(arguments(folder, out, settings));
    command
}

fn spawn(folder: &Path, out: &Path, settings: &[&str], resume: bool) -> Child {
    std::process::Command::new(assert_cmd::cargo::cargo_bin("l2d"))
        .args(arguments(folder, out, settings))
        .args(resume.then_some("--resume"))
        .stderr(Stdio::null())
        .spawn()
        .expect("started")
}

fn is_saved(out: &Path) -> bool {
    checkpoints(out).iter().any(|name| name.starts_with("step-"))
}

/// Kills the process at once when `now` holds; `true` when it did before the process had ended.
fn killed_when(mut child: Child, now: &dyn Fn() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if now() {
            child.kill().expect("killed");
            return !child.wait().expect("gone").success();
        }
        if let Some(status) = child.try_wait().expect("asked") {
            assert!(status.success(), "it failed by itself");
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(240), "it never came to that");
        std::thread::sleep(Duration::from_micros(300));
    }
}

fn steps_done(out: &Path) -> u64 {
    metrics(out).iter().filter(|row| row["kind"] == "train").filter_map(|row| row["step"].as_u64()).max().unwrap_or(0)
}

#[test]
fn a_run_that_is_killed_again_and_again_has_the_losses_of_one_that_is_not() {
    for settings in [&["ema_decay=0.9"][..], &["objective=lora", "lora_rank=2"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let (whole, out) = (folder.path().join("whole"), folder.path().join("run"));
        train(folder.path(), &whole, settings).assert().success();
        let expected = timeless(&whole);
        assert_eq!(expected.iter().filter(|row| row["kind"] == "train").count(), 14);

        // While an update is made, while a checkpoint is written, while the validation after the 6th update runs, and again
        // while another checkpoint is written.
        let in_update = || is_saved(&out) && steps_done(&out) >= 3;
        let saving = |after: u64| {
            let out = &out;
            move || steps_done(out) >= after && checkpoints(out).iter().any(|name| name.starts_with(".incomplete-"))
        };
        let validating = || {
            steps_done(&out) == 6 && !metrics(&out).iter().any(|row| row["kind"] == "validation" && row["step"] == 6)
        };
        let moments: [&dyn Fn() -> bool; 4] = [&in_update, &saving(5), &validating, &saving(9)];
        let mut kills = 0;
        for (n, moment) in moments.into_iter().enumerate() {
            kills += usize::from(killed_when(spawn(folder.path(), &out, settings, n > 0), moment));
        }
        assert!(kills >= 2, "{kills} kills came in time");
        train(folder.path(), &out, settings).arg("--resume").assert().success();
        assert_eq!(timeless(&out), expected);
        let file = if settings[0].starts_with("ema") { "adapter.safetensors" } else { "model/model.safetensors" };
        let tensors = |out: &Path| l2d_core::checkpoint::read_tensors(&out.join(file)).expect("read").0;
        let (found, expected) = (tensors(&out), tensors(&whole));
        assert!(found.keys().eq(expected.keys()));
        for (name, tensor) in &found {
            assert!(tensor.values == expected[name].values, "{name}: the same weights, bit for bit");
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_named_with_the_one_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    train(folder.path(), &out, &[]).assert().success().stderr(contains("number formats").and(contains("moments")));
    let file = out.join("checkpoints/step-00000014/optimizer.safetensors");
    let bytes = std::fs::read(&file).expect("read");
    std::fs::write(&file, &bytes[..bytes.len() - 7]).expect("written");
    let again = train(folder.path(), &out, &[]).arg("--resume").assert().success();
    again.stderr(
        contains("step-00000014 is damaged: optimizer.safetensors")
            .and(contains("going on from the one before"))
            .and(contains("step-00000012")),
    );
    // The user may check for themselves.
    let sums = std::process::Command::new("sha256sum")
        .args(["--check", "--quiet", "SHA256SUMS"])
        .current_dir(out.join("checkpoints/step-00000014"))
        .status();
    assert!(sums.is_ok_and(|status| status.success()));
}

#[test]
fn a_full_disk_ends_the_run_and_leaves_the_last_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let settings = &["checkpoint_every=4"];
    assert!(killed_when(spawn(folder.path(), &out, settings, false), &|| is_saved(&out)));
    let before: Vec<String> = checkpoints(&out).into_iter().filter(|name| name.starts_with("step-")).collect();
    // No file may be larger than 40 kB or so: the system says so as it would that the disk is full.
    let limited = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 80; exec \"$@\"", "sh"])
        .arg(assert_cmd::cargo::cargo_bin("l2d"))
        .args(arguments(folder.path(), &out, settings))
        .arg("--resume")
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&limited.stderr).into_owned();
    assert_eq!(limited.status.code(), Some(1), "{said}");
    assert!(said.contains("adapter.safetensors") && said.contains("File too large"), "{said}");
    assert_eq!(checkpoints(&out), before, "nothing half-written is left");
    train(folder.path(), &out, settings).arg("--resume").assert().success();
}

#[test]
fn a_second_run_in_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let mut first = spawn(folder.path(), &out, &["checkpoint_every=1"], false);
    while !is_saved(&out) {
        std::thread::sleep(Duration::from_millis(1));
        assert!(first.try_wait().expect("asked").is_none(), "it ended before it saved");
    }
    let second = train(folder.path(), &out, &[]).arg("--resume").assert();
    first.kill().expect("killed");
    first.wait().expect("gone");
    second.code(1).stderr(contains("another run is writing to this folder"));
}

#[test]
fn a_resume_under_other_settings_names_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    train(folder.path(), &out, &[]).assert().success();
    let mut other = train(folder.path(), &out, &["adamw.beta2=0.95", "log_every=5"]);
    let refused = contains("adamw.beta2: 0.999 -> 0.95").and(contains("config.toml")).and(contains("log_every").not());
    other.arg("--resume").assert().code(1).stderr(refused);
    problems(&folder.path().join("data.jsonl"), 41);
    train(folder.path(), &out, &[]).arg("--resume").assert().code(1).stderr(contains("the training examples"));
}

#[test]
fn problems_are_answered_during_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    problems(&folder.path().join("test.jsonl"), 6);
    let data = format!("generate.data={}", folder.path().display());
    let usual =
        ["generate.task=arithmetic", &data, "generate.problems=4", "generate.every=7", "generate.max_tokens=56"];
    let out = folder.path().join("run");
    let l2d = [&usual[..], &["generate.steps=[1,3]", "best=generation"]].concat();
    let shown = contains("step 7 · arithmetic of 4 problems").and(contains("% at 3"));
    train(folder.path(), &out, &l2d).assert().success().stderr(shown);
    let rows: Vec<Value> = metrics(&out).into_iter().filter(|row| row["kind"] == "generation").collect();
    assert_eq!(rows.iter().map(|row| row["step"].as_u64()).collect::<Vec<_>>(), [Some(7), Some(14)]);
    assert!(rows.iter().all(|row| row["scores"][1]["steps"] == 3 && row["scores"][0]["problems"] == 4), "{rows:?}");
    // The embedded model has learnt this: at least one answer is right.
    assert!(rows[0]["scores"][0]["accuracy"].as_f64().is_some_and(|accuracy| accuracy > 0.0), "{rows:?}");
    for objective in ["lora", "full"] {
        let out = folder.path().join(objective);
        let set = format!("objective={objective}");
        train(folder.path(), &out, &[&usual[..], &[&set]].concat()).assert().success();
        assert_eq!(metrics(&out).iter().filter(|row| row["kind"] == "generation").count(), 2, "{objective}");
    }
    let nobody = train(folder.path(), &folder.path().join("x"), &["best=generation"]).assert().code(1);
    nobody.stderr(contains("generate.task"));
}

#[test]
fn several_runs_are_drawn_into_one_figure() {
    let folder = tempfile::tempdir().expect("a folder");
    let runs = ["first", "second"].map(|name| folder.path().join(name));
    for (run, seed) in runs.iter().zip(["1", "2"]) {
        train(folder.path(), run, &[&format!("seed={seed}")]).assert().success();
    }
    let plot = || {
        let mut command = Command::cargo_bin("l2d").expect("built");
        command.args(["plot", "losses"]).args(&runs).arg("--out").arg(folder.path().join("both.png"));
        command
    };
    plot().assert().success();
    plot().args(["--labels", "A,B", "--curves", "training,validation"]).assert().success();
    let svg = std::fs::read_to_string(folder.path().join("both.svg")).expect("drawn");
    assert!(svg.contains("A, training") && svg.contains("B, validation"));
    assert!(folder.path().join("both.png").exists());
    plot().args(["--labels", "A"]).assert().code(2).stderr(contains("1 of 2 runs"));
}

#[test]
fn a_plan_says_what_a_run_takes_and_whether_it_fits() {
    let folder = tempfile::tempdir().expect("a folder");
    arguments(folder.path(), folder.path(), &[]);
    let plan = |more: &[&str]| {
        let mut command = Command::cargo_bin("l2d").expect("built");
        command.arg("plan").arg("--model").arg(tiny()).arg("--data").arg(folder.path().join("data.jsonl"));
        command.args(["--set", "batch_size=8", "--set", "epochs=3", "--set", "validation_fraction=0"]).args(more);
        command.assert()
    };
    let json = plan(&["--json"]).success();
    let json: Value = serde_json::from_slice(&json.get_output().stdout).expect("json");
    assert_eq!(json["data"]["examples"], 40);
    assert_eq!(json["data"]["updates"], 15);
    // What `l2d train` says of the same settings.
    let expected = {
        let out = folder.path().join("run");
        let mut train = Command::cargo_bin("l2d").expect("built");
        train.arg("train").arg("--model").arg(tiny()).arg("--data").arg(folder.path().join("data.jsonl"));
        let ran = train.arg("--out").arg(out).args(["--steps", "1", "--batch-size", "1"]).assert().success();
        let said = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
        let line = said.lines().find(|line| line.starts_with("trainable parameters: ")).expect("said").to_string();
        line.split(' ').nth(2).and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    assert_eq!(json["parameters"]["trained"].as_u64(), Some(expected));
    let measured = &json["measured"];
    assert_eq!(measured["samples"].as_array().map(Vec::len), Some(2));
    assert!(measured["seconds_per_update"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert_eq!(json["fits"], true);
    assert!(measured["largest_micro_batch"].as_u64().is_some_and(|largest| largest == 8), "{measured}");

    let small = plan(&["--memory", "0.01"]).code(1);
    small.stderr(contains("does not fit").and(contains("max_tokens"))).stdout(contains("AdamW's moments"));
    plan(&["--no-measure"]).success().stdout(contains("(estimated)"));
    plan(&["--set", "freeze=[\"nothing.*\"]"]).code(1).stderr(contains("matches no trainable parameter"));
}

/// Resident memory at the end, over that at step `from`.
#[cfg(target_os = "linux")]
fn growth(steps: u64, from: u64) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    problems(&folder.path().join("data.jsonl"), 400);
    let mut words = arguments(
        folder.path(),
        &out,
        &["validate_every=100", "checkpoint_every=100", "ema_decay=0.99", "validation_fraction=0.05"],
    );
    let flag = words.iter().position(|word| word == "--steps").expect("given");
    words[flag + 1] = steps.to_string();
    let mut command = Command::cargo_bin("l2d").expect("built");
    command.env_remove("RUST_LOG").timeout(Duration::from_secs(1200)).args(words).assert().success();
    let rows = metrics(&out);
    let memory = |step: u64| {
        let row = rows.iter().find(|row| row["kind"] == "train" && row["step"] == step).expect("a row");
        row["memory"].as_f64().expect("Linux knows")
    };
    let (then, now) = (memory(from), memory(steps));
    println!("{steps} updates: {:.1} MB after {from}, {:.1} MB at the end", then / 1e6, now / 1e6);
    now / then
}

#[test]
#[cfg(target_os = "linux")]
fn memory_stays_flat() {
    let growth = growth(400, 200);
    assert!(growth < 1.05, "{growth}");
}

#[test]
#[ignore = "two thousand updates: a minute or more"]
#[cfg(target_os = "linux")]
fn memory_stays_flat_for_long() {
    let growth = growth(2000, 200);
    assert!(growth < 1.05, "{growth}");
}

/// Two replicas in one process train as one does, and stop and go on together.
#[test]
fn several_devices_train_as_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let (one, two) = (at.join("one"), at.join("two"));
    train(at, &one, &[]).assert().success();
    let both = train(at, &two, &[]).args(["--devices", "flex:0-1"]).assert().success();
    both.stderr(contains("2 ranks share each batch of 4 sequences"));
    assert_alike(&timeless(&two), &timeless(&one));
    let (one, two) = (at.join("one/adapter.safetensors"), at.join("two/adapter.safetensors"));
    assert_eq!(std::fs::metadata(one).expect("written").len(), std::fs::metadata(two).expect("written").len());

    let far = at.join("far");
    train(at, &far, &[]).args(["--devices", "flex:0-4"]).assert().code(1).stderr(contains("5 ranks share a batch"));
    train(at, &far, &[]).args(["--ranks", "2"]).assert().code(2).stderr(contains("mpirun -np 2 l2d"));
    train(at, &far, &[]).args(["--devices", "flex:1-0"]).assert().code(2).stderr(contains("runs backwards"));
    train(at, &far, &[]).args(["--devices", "cuda:0", "--backend", "flex"]).assert().code(2);
    let mut chat = Command::cargo_bin("l2d").expect("built");
    chat.args(["generate", "--devices", "flex:0-1", "1", "--model"]).arg(tiny());
    chat.assert().code(2).stderr(contains("this command computes on one"));
}

/// A binary that cannot join the others says so, rather than let each train a model of its own.
#[cfg(not(feature = "mpi"))]
#[test]
fn a_launcher_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] {
        let said = train(folder.path(), &out, &[]).env(variable, "4").assert().code(2);
        said.stderr(contains("has started 4 processes").and(contains("--features mpi")));
    }
    assert!(!out.exists());
    train(folder.path(), &out, &["steps=1"]).env("PMI_SIZE", "1").assert().success();
}
