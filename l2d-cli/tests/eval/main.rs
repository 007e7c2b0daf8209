//! `l2d eval` as a person meets it: parts of a run, scoring again, comparing, programs, and what is refused.

mod folders;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny")
}

fn l2d() -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    command.env_remove("RUST_LOG").timeout(Duration::from_secs(300));
    command
}

/// Problems of the embedded model's kind as `test.jsonl`.
fn problems(folder: &Path, count: u32) {
    let rows: String = (0..count)
        .map(|i| (100 + 37 * i, 11 + 5 * i))
        .map(|(a, b)| format!("{{\"question\":\"{a}*{b}\",\"answer\":\"{a}*{b}={}\"}}\n", a * b))
        .collect();
    std::fs::write(folder.join("test.jsonl"), rows).expect("written");
}

fn eval(folder: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = l2d();
    command.arg("eval").arg("--model").arg(tiny()).args(["--tasks", "arithmetic", "--max-tokens", "56"]);
    command.arg("--data").arg(folder).arg("--out").arg(folder.join(out)).args(more);
    command
}

fn on(folder: &Path, what: &str, at: &[&str], more: &[&str]) -> Command {
    let mut command = l2d();
    command.args(["eval", what]);
    command.args(at.iter().map(|part| folder.join(part)));
    command.args(more);
    command
}

fn report(folder: &Path, task: &str) -> Value {
    let path = folder.join(format!("{task}.json"));
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).expect("json")
}

#[test]
fn parts_merge_into_the_whole_and_answers_are_scored_again_without_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 9);
    let data = at.to_str().expect("text");
    let grid = ["--steps", "1", "--seeds", "3,4", "--batch-size", "4"];
    let whole = eval(at, "whole", &grid).assert().success();
    whole.stdout(contains("| seed |").and(contains("base at 1 step, seed 4 − base at 1 step, seed 3")));
    for part in ["1/2", "2/2"] {
        let out = format!("part-{}", &part[..1]);
        eval(at, &out, &[&grid[..], &["--shard", part]].concat()).assert().success();
    }
    let merge = ["--out", &format!("{data}/merged"), "--data", data];
    on(at, "merge", &["part-1", "part-2"], &merge).assert().success().stdout(contains("9 of 9 rows asked"));
    on(at, "merge", &["part-1", "part-2"], &merge).assert().code(2).stderr(contains("is there already"));
    let (merged, whole) = (report(&at.join("merged"), "arithmetic"), report(&at.join("whole"), "arithmetic"));
    for run in 0..2 {
        assert_eq!(merged["runs"][run]["metrics"], whole["runs"][run]["metrics"]);
        assert_eq!(merged["runs"][run]["interrupted"], false);
    }
    assert_eq!(merged["results"]["arithmetic@steps=1,seed=4"], whole["results"]["arithmetic@steps=1,seed=4"]);

    // Kept now, scored later.
    let kept = eval(at, "kept", &[&grid[..], &["--predict-only"]].concat()).assert().success();
    kept.stdout(contains("18 answers in").and(contains("l2d eval rescore")));
    assert!(at.join("kept/arithmetic.json").exists() && !at.join("kept/arithmetic.md").exists());
    on(at, "compare", &["kept", "whole"], &["--metric", "accuracy"]).assert().code(2).stderr(contains("rescore"));
    on(at, "rescore", &["kept"], &["--data", data]).assert().success().stdout(contains("9 of 9 rows asked"));
    let kept = report(&at.join("kept"), "arithmetic");
    assert_eq!(kept["runs"][0]["metrics"], whole["runs"][0]["metrics"]);
    assert_eq!(kept["task"]["max_new_tokens"], 56, "as it was asked, not as it usually is");
    assert_eq!((&kept["task"]["prompt_hash"], &kept["model"]), (&whole["task"]["prompt_hash"], &whole["model"]));
    // The journal has the scores now.
    on(at, "compare", &["kept", "whole"], &[]).assert().success().stdout(contains("+0.0 points"));
    for extension in ["md", "csv", "json"] {
        assert!(at.join(format!("kept/arithmetic.{extension}")).exists(), "{extension}");
    }

    // Question by question, on those that both were asked.
    let compare = on(at, "compare", &["whole", "merged"], &[]).assert().success();
    compare.stdout(contains("whole/base at 1, seed 3 − ").and(contains("merged/base at 1, seed 3: +0.0 points")));
    let common = on(at, "compare", &["whole", "part-1"], &[]).assert().success();
    common.stdout(contains("of 5 questions (in common of 9 and 5)"));
    let none = on(at, "compare", &["part-2", "part-1"], &[]).assert().code(2);
    none.stdout(contains("have no question in common")).stderr(contains("nothing to compare"));

    // Other rows than those that were answered.
    problems(at, 8);
    let fewer = on(at, "rescore", &["whole"], &["--data", data]).assert().failure();
    fewer.stderr(contains("the split has only 8 rows").and(contains("arithmetic.samples.jsonl")));
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 60);
    eval(at, "whole", &["--batch-size", "2"]).assert().success();
    let journal = at.join("cut/arithmetic.samples.jsonl");
    let lines = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    let mut running = std::process::Command::new(assert_cmd::cargo::cargo_bin("l2d"))
        .args(["eval", "--tasks", "arithmetic", "--max-tokens", "56", "--batch-size", "2", "--model"])
        .arg(tiny())
        .arg("--data")
        .arg(at)
        .arg("--out")
        .arg(at.join("cut"))
        .spawn()
        .expect("started");
    let begun = Instant::now();
    while lines() < 4 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    running.kill().expect("killed");
    running.wait().expect("ended");
    let finished = lines();
    assert!((4..60).contains(&finished), "{finished} of 60 were finished when it was killed");
    eval(at, "cut", &["--batch-size", "2"]).assert().success();
    let (cut, whole) = (report(&at.join("cut"), "arithmetic"), report(&at.join("whole"), "arithmetic"));
    // The last line may have been cut off.
    let resumed = cut["runs"][0]["resumed"].as_u64().expect("a number") as usize;
    assert!(resumed == finished || resumed + 1 == finished, "{resumed} of {finished}");
    assert_eq!(cut["runs"][0]["metrics"], whole["runs"][0]["metrics"]);
    assert_eq!(lines(), 60, "no answer twice");

    // Of the killed one alone the folder says how much it was to ask.
    let text = std::fs::read_to_string(&journal).expect("read");
    let kept: String = text.lines().take(finished).map(|line| format!("{line}\n")).collect();
    std::fs::write(&journal, kept).expect("written");
    std::fs::remove_file(at.join("cut/arithmetic.json")).expect("removed");
    let data = at.to_str().expect("text");
    let again = on(at, "rescore", &["cut"], &["--data", data]).assert().success();
    again.stdout(contains("60 of 60 rows asked").and(contains(format!("answered {finished} of the 60 questions"))));
    assert_eq!(report(&at.join("cut"), "arithmetic")["runs"][0]["interrupted"], true);
    // Nothing that is run later in the folder changes that.
    eval(at, "cut", &["--temperature", "0.3", "--limit", "4"]).assert().success();
    on(at, "rescore", &["cut"], &["--data", data]).assert().success();
    let both = report(&at.join("cut"), "arithmetic");
    assert_eq!((&both["runs"][0]["interrupted"], &both["runs"][1]["interrupted"]), (&json!(true), &json!(false)));
}

#[test]
fn a_damaged_journal_is_named_and_a_full_disk_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 4);
    eval(at, "out", &[]).assert().success();
    let journal = at.join("out/arithmetic.samples.jsonl");
    let text = std::fs::read_to_string(&journal).expect("read");
    std::fs::write(&journal, text.replacen("\"row\"", "\"rom\"", 1)).expect("written");
    let said = || contains("arithmetic.samples.jsonl: line ").and(contains("move the file away"));
    eval(at, "out", &[]).assert().failure().stderr(said());
    on(at, "rescore", &["out"], &["--data", at.to_str().expect("text")]).assert().failure().stderr(said());

    // A limit on the size of files stands for a disk that is full: what was asked does not fit, then the answers do not.
    for (kilobytes, file) in [(1, "arithmetic.asked.jsonl"), (4, "arithmetic.samples.jsonl")] {
        let script = format!(
            "ulimit -f {kilobytes}; trap '' XFSZ; exec {} eval --model {} --tasks arithmetic --max-tokens 56 --data {} --out {}",
            assert_cmd::cargo::cargo_bin("l2d").display(),
            tiny().display(),
            at.display(),
            at.join("full").display()
        );
        let full = Command::new("bash").args(["-c", &script]).timeout(Duration::from_secs(300)).assert().failure();
        full.stderr(contains("File too large").and(contains(file)));
        assert!(!at.join("full/arithmetic.json").exists());
    }
    eval(at, "full", &[]).assert().success();
    assert_eq!(report(&at.join("full"), "arithmetic")["runs"][0]["samples"], 4);
}

#[test]
fn a_task_of_ones_own_is_asked_and_scored() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 4);
    let task = at.join("products.toml");
    let text = r#"
        name = "products"
        version = 1
        rows = 4
        max_new_tokens = 56
        question = "{{ question }}"
        answer = "{{ answer.split('=')[1] }}"
        [data]
        folder = "."
        [[metrics]]
        name = "last_number"
        description = "the last number"
        extract = '([0-9]+)\s*$'
        take = "last"
        compare = "number"
    "#;
    std::fs::write(&task, text).expect("written");
    let run = |more: &[&str]| {
        let mut command = l2d();
        command.arg("eval").arg("--model").arg(tiny()).arg("--tasks").arg(&task).arg("--data").arg(at);
        command.arg("--out").arg(at.join("out")).args(more);
        command
    };
    run(&[]).assert().success().stdout(contains("## products (version 1)").and(contains("last_number %")));
    let data = at.to_str().expect("text");
    on(at, "rescore", &["out"], &["--data", data, "--tasks", task.to_str().expect("text")]).assert().success();
    // The embedded model's arithmetic is the same by this task and by the built-in one.
    eval(at, "out", &[]).assert().success();
    let (own, built_in) = (report(&at.join("out"), "products"), report(&at.join("out"), "arithmetic"));
    assert_eq!(own["runs"][0]["metrics"][0]["correct"], built_in["runs"][0]["metrics"][0]["correct"]);

    // Another number of rows than it says it has.
    problems(at, 5);
    run(&[]).assert().failure().stderr(contains("has 5 rows here, the published one has 4"));
    run(&["--any-row-count"]).assert().success().stdout(contains("**The split has 5 rows here and 4 as published"));
    std::fs::write(&task, text.replace("compare", "compares")).expect("written");
    run(&[]).assert().failure().stderr(contains("products.toml").and(contains("unknown field `compares`")));
}

/// A journal of MBPP with two answers to its first row, one of them wrong.
fn code_journal(at: &Path) {
    let row = json!({"task_id": 11, "text": "Add one.", "code": "def f(x):\n    return x + 1", "test_setup_code": "",
        "test_list": ["assert f(1) == 2", "assert f(-1) == 0"], "challenge_test_list": []});
    std::fs::write(at.join("test.jsonl"), row.to_string() + "\n").expect("written");
    let answer = |sample: usize, text: &str| {
        let completion =
            json!({"text": text, "tokens": 9, "prompt_tokens": 9, "evaluations": 9, "finish": "end_of_turn"});
        json!({"key": format!("{sample:032x}"), "task": "mbpp", "row": 0, "sample": sample, "seed": 0,
            "settings": {"model": {}, "diffusion": {"evaluations": 1}}, "reference": "", "completion": completion,
            "question": "\"\"\"\nAdd one.\nassert f(1) == 2\n\"\"\"\n", "scores": {}, "seconds": 0.1})
        .to_string()
            + "\n"
    };
    std::fs::create_dir_all(at.join("out")).expect("made");
    let journal = answer(0, "def f(x):\n    return x + 1") + &answer(1, "```python\ndef f(x):\n    return 2\n```");
    std::fs::write(at.join("out/mbpp.samples.jsonl"), journal).expect("written");
}

#[test]
fn programs_run_in_a_sandbox_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    code_journal(at);
    let rescore =
        |more: &[&str]| on(at, "rescore", &["out"], &[&["--data", at.to_str().expect("text")], more].concat());
    let first = rescore(&[]).output().expect("run");
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    if !first.status.success() && said.contains("no sandbox:") && std::env::var_os("L2D_REQUIRE_SANDBOX").is_none() {
        eprintln!("skipped: {said}");
        return;
    }
    assert!(first.status.success(), "{said}");
    let report = report(&at.join("out"), "mbpp");
    let metrics = &report["runs"][0]["metrics"];
    for metric in metrics.as_array().expect("metrics") {
        assert_eq!(metric["correct"], 1, "{metric}");
    }
    assert_eq!(report["results"]["mbpp"]["pass@2,none"], 1.0);
    assert_eq!(report["environment"]["sandbox"], "required");
    assert_eq!(report["environment"]["layers"]["seccomp"], true);

    rescore(&["--sandbox", "off"]).assert().success().stderr(contains("are NOT in a sandbox"));
    rescore(&["--sandbox", "offf"]).assert().code(2).stderr(contains("there is required, best-effort, off"));
    let none = rescore(&["--python", "/no/such/python3"]).assert().failure();
    none.stderr(contains("no python3 that can be run in the sandbox: /no/such/python3"));
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 4);
    let refused = |more: &[&str], said: &str| {
        eval(at, "out", more).assert().failure().stderr(contains(said.to_owned()));
    };
    refused(&["--profile", "papr"], "no profile `papr` (there is paper, exact, harness)");
    refused(&["--samples", "2,9"], "row 9 is asked for, and the split has 4");
    refused(&["--samples", "2-"], "`2-` is no row number or range");
    refused(&["--shard", "3/2"], "`3/2` is no I/N");
    refused(&["--shots", "2"], "arithmetic has no split for shots");
    refused(&["--guidance", "2"], "--guidance means nothing for the plain LM");
    refused(&["--along-t"], "--adapter");
    refused(&["--published", "/no/such/file.toml"], "/no/such/file.toml");
    refused(&["--repeats", "0"], "invalid value '0' for '--repeats <N>'");
    let adapter = tiny().join("adapter.safetensors");
    let adapter = adapter.to_str().expect("text");
    for no_grid in [&["--steps", "1"][..], &["--solver", "dopri5"]] {
        refused(&[&["--adapter", adapter, "--along-t"], no_grid].concat(), "--along-t compares times of a grid");
    }
    refused(&["--adapter", adapter, "--guidance", "2"], "this adapter was trained without guidance classes");
    let mut generate = l2d();
    generate.args(["generate", "--adapter", adapter, "--guidance", "1,2", "1*1", "--model"]).arg(tiny());
    generate.assert().code(2).stderr(contains("--guidance takes one strength here"));
    on(at, "rescore", &["nothing"], &["--data", at.to_str().expect("text")])
        .assert()
        .failure()
        .stderr(contains("nothing"));
    let mut long = l2d();
    long.args(["eval", "--tasks", "arithmetic", "--max-tokens", "100000", "--model"]).arg(tiny()).arg("--data").arg(at);
    long.arg("--out").arg(at.join("out"));
    long.assert().failure().stderr(contains("no question is left: the shortest prompt with 0 shots has"));
    let likelihood = |more: &[&str]| {
        let mut command = l2d();
        command.args(["eval", "--tasks", "arithmetic", "--likelihood", "--model"]).arg(tiny()).arg("--data").arg(at);
        command.arg("--out").arg(at.join("out")).args(more);
        command.assert().failure()
    };
    likelihood(&[]).stderr(contains("it has no options to score by log-likelihood"));
    likelihood(&["--temperature", "0.5"]).stderr(contains("--likelihood draws no tokens"));
    for idle in [["--seeds", "1,2"], ["--seed", "3"], ["--python", "python3"], ["--sandbox", "off"]] {
        likelihood(&idle).stderr(contains("cannot be used with"));
    }
    for (flags, twice) in [
        (["--seeds", "1,2,1"], "--seeds names 1 twice"),
        (["--steps", "1,1"], "--steps names 1 twice"),
        (["--tasks", "gsm8k,gsm8k"], "--tasks names gsm8k twice"),
    ] {
        refused(&flags, twice);
    }
    if !cfg!(feature = "hub") {
        let mut hub = l2d();
        hub.args(["eval", "--tasks", "gsm8k", "--data", "hub", "--model"]).arg(tiny()).arg("--out").arg(at.join("out"));
        hub.assert().failure().stderr(contains("hf://datasets/openai/gsm8k").and(contains("--features hub")));
    }
    let mut task = l2d();
    task.args(["eval", "--tasks", "humanevl", "--data", ".", "--model"]).arg(tiny());
    task.assert().failure().stderr(contains("no task `humanevl` (there is humaneval, "));
}

#[test]
fn options_are_scored_by_likelihood() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let task = folders::own_task(at);
    let run = |out: &str, more: &[&str]| {
        let mut command = l2d();
        command.args(["eval", "--likelihood", "--model"]).arg(tiny()).args(["--tasks", &task]);
        command.arg("--data").arg(at).arg("--out").arg(at.join(out)).args(more);
        command.assert().success()
    };
    run("whole", &[]).stdout(contains("doubles_likelihood").and(contains("acc_norm %")));
    let whole = report(&at.join("whole"), "doubles_likelihood");
    assert_eq!(whole["runs"][0]["samples"], 6);
    assert_eq!(whole["configs"]["doubles_likelihood"]["output_type"], "multiple_choice");
    run("whole", &[]);
    assert_eq!(report(&at.join("whole"), "doubles_likelihood")["runs"][0]["resumed"], 6);
    let journal = std::fs::read_to_string(at.join("whole/doubles_likelihood.samples.jsonl")).expect("read");
    let first: Value = serde_json::from_str(journal.lines().next().expect("a line")).expect("json");
    let likelihoods: Vec<f64> =
        first["likelihoods"].as_array().expect("two").iter().map(|l| l.as_f64().expect("a number")).collect();
    assert!(likelihoods.len() == 2 && likelihoods.iter().all(|l| *l < 0.0), "{likelihoods:?}");
}

#[test]
fn what_is_asked_can_be_read_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 4);
    let shown = eval(at, "out", &["--write-out", "--samples", "1,3"]).assert().success();
    let text = String::from_utf8_lossy(&shown.get_output().stdout).into_owned();
    assert!(
        text.contains("### arithmetic row 1, ") && text.contains("137*16") && text.contains("### arithmetic row 3")
    );
    assert!(!text.contains("row 0,") && !at.join("out").exists(), "{text}");
    let tasks = l2d().args(["eval", "tasks"]).assert().success();
    tasks.stdout(contains("gsm8k ").and(contains("openai/gsm8k/main, test, 1319 rows; 5 shots")));
}

#[test]
fn answers_along_the_time_and_several_strengths_of_a_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 4);
    let adapter = tiny().join("adapter.safetensors");
    let adapter = adapter.to_str().expect("text");
    eval(at, "out", &["--adapter", adapter, "--steps", "1,7", "--along-t", "--repeats", "2"]).assert().success();
    let report = report(&at.join("out"), "arithmetic");
    assert!(report["runs"][0].get("along").is_none(), "the plain LM has no time");
    let along = report["runs"][1]["along"].as_array().expect("times");
    // Seven evaluations with midpoint: three steps, whose beginnings and middles are guessed at.
    assert_eq!(along.len(), 6, "{along:?}");
    let times: Vec<f64> = along.iter().map(|at| at["t"].as_f64().expect("a time")).collect();
    assert!(times.is_sorted() && times[0] == 0.0 && times[5] < 1.0, "{times:?}");
    assert!(along.iter().all(|at| (0.0..=1.0).contains(&at["agreement"].as_f64().expect("a share"))));
    assert_eq!(report["runs"][1]["pass_at_k"].as_array().expect("two").len(), 2);
}

#[test]
fn strengths_of_guidance_are_compared_by_each_tasks_class() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 4);
    let train = |classes: &str, out: &str| {
        let names: Vec<&str> = classes.split(',').collect();
        let row = |i: usize| {
            let class = names[i % names.len()];
            format!("{{\"question\":\"{i}*2\",\"answer\":\"{i}*2={}\",\"kind\":\"{class}\"}}\n", 2 * i)
        };
        std::fs::write(at.join("train.jsonl"), (100..130).map(row).collect::<String>()).expect("written");
        let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let settings = format!(
            "steps = 2\nbatch_size = 4\n[diffusion]\nclasses = [{}]\n[columns]\nclass = \"kind\"\n",
            quoted.join(", ")
        );
        std::fs::write(at.join("train.toml"), settings).expect("written");
        let mut command = l2d();
        command.env("L2D_CACHE", at.join("cache")).args(["train", "--model"]).arg(tiny());
        command.arg("--data").arg(at.join("train.jsonl")).arg("--config").arg(at.join("train.toml"));
        command.arg("--out").arg(at.join(out)).assert().success();
        at.join(out).join("adapter.safetensors").to_str().expect("text").to_owned()
    };
    let guided = train("math,coding,general knowledge", "run");
    let ran = eval(at, "out", &["--adapter", &guided, "--steps", "1,3", "--guidance", "0,2"]).assert().success();
    ran.stdout(contains("| guidance |").and(contains("L2D at 3 steps, guidance 2, seed 0 − L2D at 1 step, seed 0")));
    let report = report(&at.join("out"), "arithmetic");
    let label = |run: usize| (report["runs"][run]["steps"].clone(), report["runs"][run]["guidance"].clone());
    assert_eq!(
        [label(0), label(1), label(2)],
        [(json!(1), json!(null)), (json!(3), json!(0.0)), (json!(3), json!(2.0))]
    );
    assert_eq!(report["runs"][1]["settings"]["generation"]["class"], "the task's");
    assert!(at.join("out/arithmetic-guidance.png").exists());

    let others = train("sums,products", "others");
    let refused = eval(at, "out2", &["--adapter", &others, "--steps", "3", "--guidance", "2"]).assert().code(2);
    refused.stderr(contains("--class math: this adapter's classes are sums, products"));
}

/// Answers are those of a model, its weights and its settings, and are never taken for another's.
#[test]
fn answers_are_not_taken_for_anothers() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 6);
    let data = at.to_str().expect("text");
    eval(at, "out", &[]).assert().success();
    eval(at, "out", &[]).assert().success();
    let resumed = |folder: &str| -> Vec<u64> {
        let report = report(&at.join(folder), "arithmetic");
        let runs = report["runs"].as_array().expect("runs").clone();
        runs.iter().map(|run| run["resumed"].as_u64().expect("a number")).collect()
    };
    assert_eq!(resumed("out"), [6], "nothing has changed");
    // Whatever changes an answer begins anew.
    for flags in [["--temperature", "0.3"], ["--weights", "bf16"], ["--seed", "5"], ["--top-k", "2"]] {
        let mut changed = eval(at, "out", &flags);
        match flags {
            // Rounded, it is another model.
            ["--weights", _] => drop(changed.assert().code(2).stderr(contains("give another folder"))),
            _ => {
                changed.assert().success();
                assert_eq!(resumed("out"), [0], "{flags:?}");
            }
        }
    }

    // A LoRA of the middle of the model alone, which no sample of its ends sees.
    let mut train = l2d();
    train.env("L2D_CACHE", at).args(["train", "--objective", "lora", "--steps", "3", "--batch-size", "4", "--model"]);
    train.arg(tiny()).arg("--data").arg(at.join("test.jsonl")).arg("--out").arg(at.join("run"));
    for setting in ["trainable=[\"*value*\"]", "lora_rank=2", "learning_rate=0.05", "warmup_steps=1"] {
        train.args(["--set", setting]);
    }
    train.assert().success();
    let lora = at.join("run/peft").display().to_string();
    let other = eval(at, "out", &["--lora", &lora]).assert().code(2);
    other.stderr(contains("arithmetic.json holds the results of").and(contains("give another folder with --out")));
    // Neither where an early end left no report.
    std::fs::remove_file(at.join("out/arithmetic.json")).expect("removed");
    eval(at, "out", &["--lora", &lora]).assert().code(2).stderr(contains("give another folder"));
    eval(at, "lora", &["--lora", &lora]).assert().success();
    assert_eq!(resumed("lora"), [0]);

    // Two settings in one folder are two runs to whoever compares.
    eval(at, "one", &["--temperature", "0.3"]).assert().success();
    let compared = on(at, "compare", &["out", "one"], &["--metric", "accuracy"]).assert().success();
    let lines = String::from_utf8_lossy(&compared.get_output().stdout).into_owned();
    assert_eq!(lines.trim().lines().count(), 4, "temperatures 1 and 0.3, top-k, and another seed: {lines}");
    assert!(lines.contains("out/base, temperature 0.3, top k 0 at 1") && lines.contains("+0.0 points"), "{lines}");
    on(at, "compare", &["out", "out"], &["--metric", "accuracy"]).assert().success();

    // A merge that fails can be made good.
    on(at, "merge", &["one"], &["--out", &format!("{data}/whole"), "--data", "/no/such/data"]).assert().failure();
    on(at, "merge", &["one"], &["--out", &format!("{data}/whole"), "--data", data]).assert().success();
    std::fs::write(at.join("one/arithmetic.json"), "[]").expect("written");
    on(at, "rescore", &["one"], &["--data", data]).assert().code(2).stderr(contains("is no report of an evaluation"));
    eval(at, "x", &["--write-out", "--profile", "nonsense"]).assert().failure().stderr(contains("nonsense"));

    // The same rows by number, and other questions.
    let path = at.join("lora/arithmetic.samples.jsonl");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.replace("\"question\":\"1", "\"question\":\"9")).expect("written");
    let asked = on(at, "compare", &["out", "lora"], &["--metric", "accuracy"]).assert().code(2);
    asked.stderr(contains("another question"));
}
