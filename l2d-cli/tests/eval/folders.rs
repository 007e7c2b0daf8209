//! Folders that hold more than one run, or less than a whole one: what is scored again, put together or compared is what was run.

use std::path::Path;

use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};

use super::{eval, l2d, on, problems, report, tiny};

fn runs(report: &Value) -> Vec<(String, Value, Value)> {
    let runs = report["runs"].as_array().expect("runs").clone();
    let run = |run: &Value| {
        (run["series"].as_str().expect("text").to_owned(), run["samples"].clone(), run["interrupted"].clone())
    };
    runs.iter().map(run).collect()
}

#[test]
fn runs_of_other_settings_and_fewer_rows_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 6);
    let data = at.to_str().expect("text");
    eval(at, "out", &[]).assert().success();
    let hash = report(&at.join("out"), "arithmetic")["task"]["prompt_hash"].clone();
    on(at, "rescore", &["out"], &["--data", data]).assert().success();
    assert_eq!(report(&at.join("out"), "arithmetic")["task"]["prompt_hash"], hash);
    eval(at, "out", &["--temperature", "0.3", "--limit", "4"]).assert().success();
    let again = on(at, "rescore", &["out"], &["--data", data]).assert().success();
    again.stdout(
        contains("base, temperature 0.3 at 1 step, seed 0 answered 4 of the 6 questions.")
            .and(contains("better on").and(contains("of 4 questions")))
            .and(contains("called off").not())
            .and(contains("6 of 6 rows asked")),
    );
    let both = report(&at.join("out"), "arithmetic");
    let expected = [("base, temperature 1.0", 6), ("base, temperature 0.3", 4)];
    assert_eq!(runs(&both), expected.map(|(series, samples)| (series.to_owned(), json!(samples), json!(false))));
    for (series, samples) in expected {
        let entry = &both["results"][format!("arithmetic@{series},steps=1,seed=0")];
        assert!(entry["accuracy,none"].is_number(), "{samples} of {series}: {}", both["results"]);
    }
    assert_eq!(both["task"]["prompt_hash"], Value::Null, "four questions have another");

    // Asked for fewer tokens: the task has one number, each run its own.
    eval(at, "lengths", &[]).assert().success();
    let mut short = l2d();
    short.arg("eval").arg("--model").arg(tiny()).args(["--tasks", "arithmetic", "--max-tokens", "9"]);
    short.arg("--data").arg(at).arg("--out").arg(at.join("lengths")).assert().success();
    let lengths = on(at, "rescore", &["lengths"], &["--data", data]).assert().success();
    lengths.stdout(
        contains("at most 56 new tokens in the first run, the others as their names say")
            .and(contains("base, max new tokens 9 at 1 step")),
    );
}

#[test]
fn parts_are_of_one_evaluation_and_each_counts_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 9);
    let data = at.to_str().expect("text").to_owned();
    for (out, part) in [("a", "1/3"), ("b", "2/3"), ("c", "3/3"), ("twos", "1/2")] {
        eval(at, out, &["--shard", part]).assert().success().stdout(contains(format!("(part {part})")));
    }
    let merge = |parts: &[&str], more: &[&str], out: &str| {
        let out = at.join(out).display().to_string();
        on(at, "merge", parts, &[&["--data", &data, "--out", &out], more].concat()).assert()
    };
    merge(&["a", "b", "a"], &[], "x").code(2).stderr(contains("are one folder: name every part once"));
    std::fs::create_dir(at.join("copy")).expect("made");
    std::fs::copy(at.join("a/arithmetic.samples.jsonl"), at.join("copy/arithmetic.samples.jsonl")).expect("copied");
    merge(&["copy", "b", "c"], &[], "x").code(2).stderr(contains("copy/arithmetic.asked.jsonl is not there"));
    std::fs::copy(at.join("a/arithmetic.asked.jsonl"), at.join("copy/arithmetic.asked.jsonl")).expect("copied");
    merge(&["a", "copy", "b", "c"], &[], "x").code(2).stderr(contains("are part 1/3: name every part once"));
    merge(&["a", "c"], &[], "x").code(2).stderr(contains("--shard 2/3 is not among the parts"));
    merge(&["a", "twos"], &[], "x").code(2).stderr(contains("is part 1/2, and").and(contains("one of 3")));
    assert!(!at.join("x/arithmetic.samples.jsonl").exists());
    let some = merge(&["a", "c"], &["--partial"], "some").success();
    some.stdout(contains("6 of 6 rows asked (the split has 9)")).stderr(contains("without --shard 2/3"));
    merge(&["c", "a", "b"], &[], "all").success().stdout(contains("9 of 9 rows asked;"));

    // Other rows, or asked otherwise.
    problems(at, 8);
    eval(at, "others", &["--shard", "2/3"]).assert().success();
    merge(&["a", "others", "c"], &[], "x").code(2).stderr(contains("asked otherwise").and(contains(": the rows")));
    problems(at, 9);
    let mut short = l2d();
    short.arg("eval").arg("--model").arg(tiny()).args(["--tasks", "arithmetic", "--max-tokens", "9", "--shard", "2/3"]);
    short.arg("--data").arg(at).arg("--out").arg(at.join("short")).assert().success();
    merge(&["a", "short", "c"], &[], "x").code(2).stderr(contains("max new tokens 56, there 9"));
    eval(at, "cold", &["--shard", "2/3", "--temperature", "0.3"]).assert().success();
    merge(&["a", "cold", "c"], &[], "x").code(2).stderr(contains("temperature 1.0, there 0.3"));
    eval(at, "few", &["--shard", "2/3", "--limit", "5"]).assert().success();
    merge(&["a", "few", "c"], &[], "x").code(2).stderr(contains("all of the rows, there first 5"));
    // A look at a few of its rows does not make it another part.
    eval(at, "c", &["--shard", "3/3", "--limit", "5"]).assert().success();
    merge(&["a", "b", "c"], &[], "x").code(2).stderr(contains("first 5"));
    eval(at, "c", &["--shard", "3/3"]).assert().success();
    // A part that was scored again, or begun and not finished, is the part it was.
    on(at, "rescore", &["b"], &["--data", &data]).assert().success().stdout(contains("(part 2/3)"));
    let path = at.join("b/arithmetic.samples.jsonl");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.lines().next().expect("a line").to_owned() + "\n").expect("written");
    on(at, "rescore", &["b"], &["--data", &data]).assert().success();
    merge(&["a", "b"], &[], "x").code(2).stderr(contains("--shard 3/3 is not among the parts"));
    let whole = merge(&["a", "b", "c"], &[], "cut").success();
    whole.stdout(
        contains("9 of 9 rows asked;").and(contains("answered 7 of the 9 questions")).and(contains("called off")),
    );
}

#[test]
fn finished_runs_of_other_sizes_are_finished_and_kept_scores_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 6);
    let data = at.to_str().expect("text").to_owned();
    eval(at, "out", &[]).assert().success();
    eval(at, "out", &["--limit", "3", "--repeats", "2"]).assert().success();
    on(at, "rescore", &["out"], &["--data", &data]).assert().success();
    assert_eq!(runs(&report(&at.join("out"), "arithmetic")), [("base".to_owned(), json!(9), json!(false))]);
    let before = report(&at.join("out"), "arithmetic")["runs"][0]["metrics"].clone();
    eval(at, "out", &["--predict-only"]).assert().success();
    let kept = report(&at.join("out"), "arithmetic");
    assert!(before[0]["mean"].is_number() && kept["runs"][0]["metrics"][0]["samples"] == 6, "{kept}");
    eval(at, "out", &["--predict-only", "--seed", "4"]).assert().success();
    assert_eq!(report(&at.join("out"), "arithmetic")["runs"][0]["metrics"], json!([]), "nothing is scored of that");
}

/// A task whose file is not called as it is, with options.
pub(crate) fn own_task(at: &Path) -> String {
    let rows: String = (0..6)
        .map(|i| format!("{{\"a\": {i}, \"options\": [\"{}\", \"{}\"], \"place\": {}}}\n", i * 2, i * 3 + 1, i % 2))
        .collect();
    std::fs::write(at.join("test.jsonl"), rows).expect("written");
    let task = r#"
        name = "doubles"
        version = 1
        max_new_tokens = 8
        question = "{{ a }}+{{ a }}"
        answer = "{{ options[place] }}"
        [data]
        folder = "."
        [[metrics]]
        name = "bare"
        [likelihood]
        context = "{{ a }}+{{ a }}="
        options = "options"
        index = "{{ place }}"
    "#;
    let path = at.join("twice-as-much.toml");
    std::fs::write(&path, task).expect("written");
    path.display().to_string()
}

/// Asks the questions of a task's file.
fn asked(at: &Path, task: &str, out: &str, more: &[&str]) {
    let mut command = l2d();
    command.args(["eval", "--tasks", task, "--model"]).arg(tiny()).arg("--data").arg(at);
    command.arg("--out").arg(at.join(out)).args(more).assert().success();
}

#[test]
fn tasks_of_ones_own_are_scored_again_and_put_together_by_their_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let task = own_task(at);
    let data = at.to_str().expect("text").to_owned();
    let run = |out: &str, more: &[&str]| asked(at, &task, out, more);
    for (out, part) in [("a", "1/2"), ("b", "2/2")] {
        run(out, &["--likelihood", "--shard", part]);
        run(out, &["--shard", part]);
    }
    let named = ["--data", &data, "--tasks", &task];
    let again = on(at, "rescore", &["a"], &named).assert().success();
    again.stdout(contains("## doubles (version 1)").and(contains("## doubles_likelihood (version 1)")));
    let out = at.join("whole").display().to_string();
    on(at, "merge", &["a", "b"], &[&named[..], &["--out", &out]].concat()).assert().success();
    for name in ["doubles", "doubles_likelihood"] {
        assert_eq!(report(&at.join("whole"), name)["runs"][0]["samples"], 6, "{name}");
    }
    on(at, "compare", &["whole", "whole"], &["--tasks", &task]).assert().code(2).stderr(contains("nothing to compare"));
    let unnamed = on(at, "rescore", &["a"], &["--data", &data]).assert().code(2);
    unnamed.stderr(contains("doubles is no task of this program").and(contains("--tasks FILE.toml")));
    let none = on(at, "rescore", &["a"], &["--data", &data, "--tasks", "gsm8k"]).assert().code(2);
    none.stderr(contains("gsm8k.samples.jsonl is not there: the folder has no answers of gsm8k"));
}

#[test]
fn other_versions_of_a_task_are_other_runs_and_a_merge_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let task = own_task(at);
    let data = at.to_str().expect("text").to_owned();
    let run = |out: &str, more: &[&str]| asked(at, &task, out, more);
    run("out", &[]);
    let text = std::fs::read_to_string(&task).expect("read");
    let edit = |from: &str, to: &str| {
        std::fs::write(&task, text.replace("version = 1", "version = 2").replace(from, to)).expect("written")
    };
    edit("name = \"bare\"", "name = \"bare\"");
    run("out", &["--limit", "3"]);
    let named = ["--data", &*data, "--tasks", &task];
    on(at, "rescore", &["out"], &named).assert().success();
    let both = runs(&report(&at.join("out"), "doubles"));
    let expected = [("base, version 1", 6), ("base, version 2", 3)];
    assert_eq!(both, expected.map(|(series, samples)| (series.to_owned(), json!(samples), json!(false))));
    // Another question: what answered the old one is in no run.
    edit("question = \"{{ a }}", "question = \"What is {{ a }}");
    on(at, "compare", &["out", "out"], &["--tasks", &task]).assert().success().stdout(contains("version 1"));
    let path = at.join("out/doubles.samples.jsonl");
    let journal = std::fs::read_to_string(&path).expect("read");
    let first: String =
        journal.lines().filter(|line| line.contains("\"version\":1")).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, first).expect("written");
    run("out", &[]);
    let again = on(at, "rescore", &["out"], &named).assert().success();
    again.stderr(contains("6 answers are to other questions than version 2"));
    assert_eq!(runs(&report(&at.join("out"), "doubles")), [("base".to_owned(), json!(6), json!(false))]);

    // The second task cannot be found by its name: nothing of the first stays.
    std::fs::write(&task, &text).expect("written");
    for (out, part) in [("a", "1/2"), ("b", "2/2")] {
        run(out, &["--shard", part]);
        std::fs::copy(at.join("test.jsonl"), at.join("kept.jsonl")).expect("copied");
        problems(at, 6);
        eval(at, out, &["--shard", part]).assert().success();
        std::fs::copy(at.join("kept.jsonl"), at.join("test.jsonl")).expect("copied");
    }
    let out = at.join("whole").display().to_string();
    problems(at, 6);
    std::fs::create_dir(&out).expect("made");
    // Another task's, which begins alike.
    std::fs::write(at.join("whole/arithmetic-hard.json"), "{}").expect("written");
    let unnamed = on(at, "merge", &["a", "b"], &["--data", &data, "--out", &out]).assert().code(2);
    unnamed.stderr(contains("doubles is no task of this program"));
    assert_eq!(std::fs::read_dir(&out).expect("made").count(), 1);
}

#[test]
fn what_adaptive_solvers_took_is_drawn_of_several_runs_and_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(at, 3);
    let adapter = tiny().join("adapter.safetensors").display().to_string();
    eval(at, "out", &["--adapter", &adapter, "--solver", "bosh3", "--seeds", "1,2"]).assert().success();
    let chart = at.join("out/evaluations.svg");
    let text = std::fs::read_to_string(&chart).expect("drawn");
    assert!(text.contains("bosh3: evaluations per token"), "{text}");
    std::fs::remove_file(&chart).expect("removed");
    on(at, "rescore", &["out"], &["--data", at.to_str().expect("text")]).assert().success();
    assert_eq!(std::fs::read_to_string(&chart).expect("drawn again"), text);
}
