//! The binary as a person meets it: what goes to stdout, what a wrong request says, and with which exit code.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny")
}

fn l2d() -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    // What the tests tokenise stays out of the user's own cache.
    command
        .env_remove("RUST_LOG")
        .env("L2D_CACHE", env!("CARGO_TARGET_TMPDIR"))
        .timeout(std::time::Duration::from_secs(300));
    command
}

fn generate(model: &Path) -> Command {
    let mut command = l2d();
    command.arg("generate").arg("--model").arg(model);
    command
}

/// A copy of the embedded model's folder, to be damaged.
fn copy_of_tiny() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        std::fs::copy(tiny().join(name), folder.path().join(name)).expect("copied");
    }
    folder
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(path).expect("read")).expect("json");
    edit(&mut json);
    std::fs::write(path, json.to_string()).expect("written");
}

/// A jsonl file of a few problems of the embedded model's kind.
fn data(folder: &Path) -> PathBuf {
    let path = folder.join("data.jsonl");
    let rows: String = (0..12)
        .map(|i| {
            let (a, b) = (100 + 7 * i, 11 + i);
            format!("{{\"question\":\"{a}*{b}\",\"answer\":\"{a}*{b}={}\"}}\n", a * b)
        })
        .collect();
    std::fs::write(&path, rows).expect("written");
    path
}

fn train(model: &Path, data: &Path, out: &Path) -> Command {
    let mut command = train_for(model, data, out);
    command.args(["--steps", "3"]);
    command
}

fn train_for(model: &Path, data: &Path, out: &Path) -> Command {
    let mut command = l2d();
    command.arg("train").arg("--model").arg(model).arg("--data").arg(data).arg("--out").arg(out);
    command.args(["--batch-size", "4", "--set", "diffusion.dim=8", "--set", "diffusion.conditioning=8"]);
    command.args(["--set", "diffusion.time_features=8", "--set", "diffusion.variant={kind=\"lora\",rank=2,alpha=2.0}"]);
    command
}

#[test]
fn speed_is_measured_and_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let mut bench = l2d();
    bench.args(["bench", "decode", "--model"]).arg(tiny()).args(["--tokens", "4", "--repeats", "1"]);
    let mut refused = l2d();
    refused.args(["bench", "decode", "--model"]).arg(tiny()).args(["--batch", "0"]);
    refused.assert().code(2).stderr(contains("--batch"));
    bench
        .args(["--batch", "1,3", "--prompt", "8", "--json"])
        .arg(&json)
        .assert()
        .success()
        .stdout(contains("| 1 | 3 | 8 |"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["runs"].as_array().unwrap().len(), 2);
    assert!(report["memory_bandwidth"].as_f64().unwrap() > 1e6 && report["weight_bytes"].as_u64().unwrap() > 0);
    assert!(report["runs"][1]["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["runs"][1]["tokens"], 12);
    assert_eq!((&report["kv_cache"], &report["diffusion"]), (&"f32".into(), &serde_json::Value::Null));
}

#[test]
fn a_trace_shows_the_way_to_each_token() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = tiny().join("adapter.safetensors");
    let mut command = generate(&tiny());
    command.arg("--adapter").arg(&adapter).args(["--steps", "7", "--max-tokens", "5", "--trace"]);
    command.arg(folder.path().join("way")).arg("3+4*2").assert().success().stderr(contains("way.html"));
    let lines = std::fs::read_to_string(folder.path().join("way.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["type"], &lines[0]["steps"]), (&"settings".into(), &7.into()));
    assert!(lines.len() > 1 && lines[1..].iter().all(|line| line["guesses"].as_array().unwrap().len() == 6));
    assert!(std::fs::read_to_string(folder.path().join("way.html")).unwrap().contains("\"prompt\":\"3+4*2\""));
}

#[test]
fn an_adaptive_solver_takes_the_evaluations_it_needs() {
    let adapter = tiny().join("adapter.safetensors");
    let run = |flags: &[&str]| {
        let mut command = generate(&tiny());
        command.arg("--adapter").arg(&adapter).args(["--max-tokens", "3"]).args(flags).arg("3+4*2").assert()
    };
    let evaluations = |flags: &[&str]| -> f64 {
        let output = run(flags).success().get_output().stderr.clone();
        let line = String::from_utf8(output).unwrap();
        let (before, _) = line.split_once(" evaluations each").expect("a count");
        before.rsplit(' ').next().unwrap().parse().expect("a number")
    };
    let loose = evaluations(&["--solver", "dopri5", "--atol", "1e-2", "--rtol", "1e-2"]);
    let tight = evaluations(&["--solver", "dopri5", "--atol", "1e-5", "--rtol", "1e-5", "--first-step", "auto"]);
    assert!(loose >= 7.0 && tight > loose, "{loose} {tight}");
    for (flags, reason) in [
        (&["--solver", "bosh3", "--steps", "15"][..], "--steps means nothing with --solver bosh3"),
        (&["--solver", "bosh3", "--atol", "0"], "atol must be a finite number above 0"),
        (&["--solver", "bosh3", "--first-step", "soon"], "a number or `auto`"),
        (&["--solver", "bosh3", "--decode", "parallel"], "--decode parallel"),
        (&["--solver", "heun2", "--rtol", "1e-3", "--steps", "15"], "is for the adaptive solvers"),
        (&["--solver", "bosh3", "--max-evaluations", "8"], "new token 0"),
    ] {
        run(flags).failure().stderr(contains(reason));
    }
}

#[test]
fn several_answers_log_probabilities_and_searches_come_as_json() {
    let lines = |flags: &[&str]| -> Vec<serde_json::Value> {
        let mut command = generate(&tiny());
        let output = command.args(["--max-tokens", "4", "--json"]).args(flags).arg("3+4*2").assert().success();
        let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let three = lines(&["-n", "3", "--temperature", "3"]);
    assert_eq!(three.len(), 3);
    assert_ne!(three[0]["tokens"], three[1]["tokens"], "each answer has its own random numbers");
    assert_eq!(lines(&["--temperature", "3"])[0], three[0], "the first is the one there is without -n");
    let likely = lines(&["--logprobs", "2", "--temperature", "0"]);
    let first = &likely[0]["logprobs"][0];
    assert_eq!((&first["id"], &first["logprob"]), (&first["top"][0]["id"], &first["top"][0]["logprob"]));
    let found = lines(&["--beams", "3", "--length-exponent", "0"]);
    assert_eq!(found[0]["hypotheses"].as_array().unwrap().len(), 3);
    assert!(found[0]["hypotheses"][0]["score"].as_f64() >= found[0]["hypotheses"][1]["score"].as_f64());
    let adapter = tiny().join("adapter.safetensors");
    let adapter = adapter.to_str().unwrap();
    let diffused = lines(&["--adapter", adapter, "--steps", "7", "--beams", "3"]);
    assert!(diffused[0]["path_evaluations"].as_u64() >= Some(6));

    let banned = likely[0]["tokens"][0].as_u64().unwrap();
    let biased = lines(&["--temperature", "0", "--logit-bias", &format!("{banned}=-inf")]);
    assert_ne!(biased[0]["tokens"][0].as_u64(), Some(banned));
    for (flags, reason) in [
        (&["--logprobs", "1", "--json", "--adapter", adapter][..], "no log-probability"),
        (&["--logit-bias", "99999999=1"], "token of a logit bias"),
        (&["--logit-bias", "x=1"], "no token number"),
        (&["--beams", "0"], "hypotheses is 0"),
        (&["--beams", "2", "--top-k", "5"], "top_k is 5"),
        (&["--beams", "2", "--trace", "x"], "cannot be used with"),
        (&["--presence-penalty", "nan"], "presence_penalty"),
        (&["--length-exponent", "1"], "--beams"),
    ] {
        generate(&tiny()).args(flags).arg("3+4*2").assert().failure().stderr(contains(reason));
    }
}

#[test]
fn weights_may_be_kept_in_any_format() {
    let answer = |weights: &[&str]| {
        let mut command = generate(&tiny());
        let output =
            command.args(["--temperature", "0", "--max-tokens", "12"]).args(weights).arg("12+7").output().unwrap();
        assert!(output.status.success(), "{weights:?}");
        output.stdout
    };
    // Stored in half precision: the same numbers in any format that holds them.
    let stored = answer(&[]);
    assert_eq!(answer(&["--weights", "f32"]), stored);
    for weights in ["f16", "bf16", "q8_0", "q4_1"] {
        answer(&["--weights", weights]);
    }
    answer(&["--kv-cache", "f16"]);
    assert_eq!(answer(&["--kv-cache", "f32"]), stored);
    generate(&tiny()).args(["--kv-cache", "q4", "x"]).assert().code(2).stderr(contains("f16"));
    generate(&tiny()).args(["--weights", "q2", "x"]).assert().code(2).stderr(contains("q4_1"));
    generate(&tiny()).args(["--class", "maths", "x"]).assert().code(2).stderr(contains("--adapter"));
    generate(&tiny()).args(["--guidance", "2", "x"]).assert().code(2).stderr(contains("--class"));
}

#[test]
fn flags_without_effect_and_numbers_out_of_range_are_refused() {
    let adapter = tiny().join("adapter.safetensors");
    let diffused = |flags: &[&str]| {
        let mut command = generate(&tiny());
        command.arg("--adapter").arg(&adapter).args(flags).args(["--max-tokens", "2", "3*4"]);
        command.assert()
    };
    for flags in [["--velocity", "argmax"], ["--solver", "heun2"], ["--decode", "sequential"]] {
        diffused(&[&flags[..], &["--steps", "1"]].concat())
            .code(2)
            .stderr(contains(flags[0]).and(contains("--steps 1")));
    }
    // The solver's own next budget where none is asked for.
    diffused(&["--solver", "rk4"]).success().stderr(contains("17 evaluations each"));
    diffused(&["--solver", "rk4", "--steps", "15"]).code(2).stderr(contains("13 and 17"));
    diffused(&["--velocity-temperature", "-1"]).code(2).stderr(contains("velocity temperature is -1"));
    diffused(&["--final-time", "1.5"]).code(2).stderr(contains("1.5"));
    diffused(&["--solver", "dopri5", "--atol", "0"]).code(2).stderr(contains("atol"));
    diffused(&["--top-p", "2"]).code(2).stderr(contains("top_p is 2"));
    diffused(&["--repetition-penalty", "1e-50"]).code(2).stderr(contains("repetition_penalty"));

    let mut chat = l2d();
    chat.args(["chat", "--top-p", "2", "--model"]).arg(tiny()).write_stdin("hello\n");
    chat.assert().code(2).stderr(contains("top_p is 2"));
    let bench = |flags: &[&str]| {
        let mut command = l2d();
        command.args(["bench", "decode", "--model"]).arg(tiny()).arg("--adapter").arg(&adapter).args(flags);
        command.assert().code(2)
    };
    bench(&["--tokens", "1"]).stderr(contains("--tokens must be at least 2"));
    bench(&["--repeats", "0"]).stderr(contains("--repeats"));
    bench(&["--class", "maths"]).stderr(contains("without guidance classes"));
}

#[test]
fn the_answer_alone_goes_to_stdout_and_a_seed_repeats_it() {
    let run = |seed: &str| {
        let output = generate(&tiny()).args(["--seed", seed, "--temperature", "1", "345*67"]).output().expect("ran");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stderr).contains("tokens/s"));
        String::from_utf8(output.stdout).expect("text")
    };
    let answer = run("1");
    assert!(answer.starts_with("345*7=") && answer.ends_with('\n'), "{answer}");
    assert_eq!(answer, run("1"));
}

#[test]
fn the_shipped_adapter_decodes_in_steps_and_fits_its_base() {
    let adapter = tiny().join("adapter.safetensors");
    let mut command = generate(&tiny());
    command.arg("--adapter").arg(&adapter).args(["--steps", "7", "345*67"]);
    command.assert().success().stdout(contains("345*7=")).stderr(contains("7 evaluations"));
    l2d()
        .arg("inspect")
        .arg(tiny().join("model.safetensors"))
        .assert()
        .success()
        .stdout(contains("no L2D adapter").and(contains("1,624,512")).and(contains("F16")));
    l2d().arg("inspect").arg(tiny()).arg(&adapter).assert().success().stdout(
        contains("base language model").and(contains("L2D adapter")).and(contains("fits")).and(contains("1,624,512")),
    );
}

#[test]
fn evaluations_at_once_and_one_after_the_other_give_one_answer() {
    let adapter = tiny().join("adapter.safetensors");
    let run = |flags: &[&str]| {
        let mut command = generate(&tiny());
        command.arg("--adapter").arg(&adapter).args(["--steps", "15", "--seed", "4"]).args(flags).arg("627*83");
        let output = command.output().expect("ran");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let figures = String::from_utf8(output.stderr).expect("text");
        let rounds = figures.split(" in ").find_map(|part| part.split_once(" rounds")).expect("rounds").0;
        (String::from_utf8(output.stdout).expect("text"), rounds.parse::<f64>().expect("a number"))
    };
    let (sequential, rounds) = run(&["--decode", "sequential"]);
    assert_eq!(rounds, 14.0);
    let (parallel, rounds) = run(&[]);
    assert_eq!(parallel, sequential);
    assert!(rounds < 5.0, "{rounds}");
    let mut expectation = generate(&tiny());
    expectation.arg("--adapter").arg(&adapter).args(["--velocity", "expectation", "--decode", "parallel", "1*1"]);
    expectation.assert().code(2).stderr(contains("--decode parallel"));
    generate(&tiny()).args(["--decode", "sequential", "x"]).assert().code(2).stderr(contains("--adapter"));
}

#[test]
fn steps_without_an_adapter_and_budgets_no_solver_meets_are_explained() {
    generate(&tiny()).args(["--steps", "15", "x"]).assert().code(2).stderr(contains("--adapter"));
    let mut even = generate(&tiny());
    even.arg("--adapter").arg(tiny().join("adapter.safetensors")).args(["--steps", "4", "x"]);
    even.assert().failure().stderr(contains("3").and(contains("5")));
    generate(&tiny()).args(["--top-p", "2", "x"]).assert().failure().stderr(contains("top_p"));
}

#[test]
fn a_backend_that_is_not_compiled_in_names_the_feature() {
    if cfg!(feature = "metal") {
        return;
    }
    generate(&tiny()).args(["--backend", "metal", "x"]).assert().code(2).stderr(contains("--features metal"));
}

#[test]
fn missing_truncated_and_foreign_models_are_named() {
    generate(Path::new("no/such/model")).arg("x").assert().code(1).stderr(contains("no/such/model"));

    let folder = copy_of_tiny();
    let weights = folder.path().join("model.safetensors");
    let whole = std::fs::read(&weights).expect("read");
    std::fs::write(&weights, &whole[..whole.len() / 2]).expect("written");
    generate(folder.path()).arg("x").assert().code(1).stderr(contains("model.safetensors"));

    let gguf = folder.path().join("x.gguf");
    std::fs::write(&gguf, b"JUNKJUNKJUNKJUNK").expect("written");
    generate(&gguf).arg("x").assert().code(1).stderr(contains("GGUF").and(contains("x.gguf")));
}

#[test]
fn a_config_that_does_not_match_its_weights_is_named_by_tensor() {
    let folder = copy_of_tiny();
    edit_json(&folder.path().join("config.json"), |config| config["intermediate_size"] = 500.into());
    let failed = generate(folder.path()).arg("x").assert().code(1);
    failed.stderr(contains("mlp.gate_proj.weight").and(contains("[512, 192]")).and(contains("hint:")));

    let folder = copy_of_tiny();
    edit_json(&folder.path().join("config.json"), |config| config["num_hidden_layers"] = 3.into());
    generate(folder.path()).arg("x").assert().code(1).stderr(contains("model.layers.3"));
    edit_json(&folder.path().join("config.json"), |config| config["num_hidden_layers"] = 5.into());
    generate(folder.path()).arg("x").assert().code(1).stderr(contains("is missing"));
    edit_json(&folder.path().join("config.json"), |config| config["model_type"] = "mamba".into());
    generate(folder.path()).arg("x").assert().code(1).stderr(contains("mamba").and(contains("llama, qwen2")));
}

#[test]
fn templates_and_tokenizers_that_do_not_fit_are_explained() {
    let folder = copy_of_tiny();
    let path = folder.path().join("tokenizer_config.json");
    edit_json(&path, |config| config["chat_template"] = "{{ raise_exception('only poems') }}".into());
    generate(folder.path()).arg("x").assert().code(1).stderr(contains("only poems").and(contains("--raw")));
    generate(folder.path()).args(["--raw", "--max-tokens", "2", "x"]).assert().success();
    edit_json(&path, |config| config["chat_template"] = "<|nosuch|>{{ messages[0].content }}".into());
    generate(folder.path()).arg("x").assert().code(1).stderr(contains("<|nosuch|>"));
}

#[test]
fn a_prompt_longer_than_the_context_says_both_lengths() {
    let long = "1".repeat(400);
    let failed = generate(&tiny()).arg(long).assert().code(1);
    failed.stderr(contains("context holds 256").and(contains("shorten the prompt")));
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let folder = copy_of_tiny();
    edit_json(&folder.path().join("config.json"), |config| config["rope_theta"] = 20000.0.into());
    let mut command = generate(folder.path());
    command.arg("--adapter").arg(tiny().join("adapter.safetensors")).arg("x");
    command.assert().code(1).stderr(contains("another base").and(contains("l2d inspect")));
}

#[test]
fn training_writes_a_run_that_generates_and_resumes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, out) = (data(folder.path()), folder.path().join("run"));
    train(&tiny(), &data, &out).assert().success().stderr(contains("12 examples").and(contains("wrote")));
    for name in ["adapter.safetensors", "config.toml", "metrics.jsonl", "checkpoints/step-00000003/state.json"] {
        assert!(out.join(name).exists(), "{name}");
    }
    generate(&tiny())
        .arg("--adapter")
        .arg(out.join("adapter.safetensors"))
        .args(["--steps", "3", "123*45"])
        .assert()
        .success();
    train(&tiny(), &data, &out).assert().code(1).stderr(contains("--resume"));
    train(&tiny(), &data, &out).arg("--resume").assert().success();
}

#[test]
fn the_lm_itself_can_be_trained_and_is_written_as_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(folder.path());
    for (objective, extra) in [("full", "--from-scratch"), ("lora", "--f16")] {
        let out = folder.path().join(objective);
        train(&tiny(), &data, &out).args(["--objective", objective, extra]).assert().success();
        l2d().arg("inspect").arg(out.join("model")).assert().success().stdout(contains("1,624,512"));
        generate(&out.join("model")).args(["--max-tokens", "4", "123*45"]).assert().success();
    }
    let out = folder.path().join("x");
    train(&tiny(), &data, &out).arg("--from-scratch").assert().code(2).stderr(contains("--objective full"));
}

#[test]
fn bad_training_data_and_settings_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = data(folder.path());
    let out = folder.path().join("run");
    let broken = folder.path().join("broken.jsonl");
    std::fs::write(&broken, "{\"question\":\"1\",\"answer\":\"2\"}\n{\"question\":\n").expect("written");
    train(&tiny(), &broken, &out).assert().code(1).stderr(contains("broken.jsonl, row 2"));
    train(&tiny(), &folder.path().join("absent.jsonl"), &out).assert().code(1).stderr(contains("absent.jsonl"));
    train(&tiny(), &good, &out).args(["--max-tokens", "5"]).assert().code(1).stderr(contains("12 examples are longer"));
    train(&tiny(), &good, &out).args(["--set", "colour=1"]).assert().code(2).stderr(contains("colour"));
    let config = folder.path().join("c.toml");
    std::fs::write(&config, "learnin_rate = 1.0\n").expect("written");
    train(&tiny(), &good, &out).arg("--config").arg(&config).assert().code(2).stderr(contains("learnin_rate"));
    train(&tiny(), &good, &out).args(["--learning-rate", "-1"]).assert().code(1).stderr(contains("learning_rate"));
    train(&tiny(), &good, &good).assert().code(1).stderr(contains("data.jsonl"));
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(folder.path());
    let out = folder.path().join("run");
    let mut command = train_for(&tiny(), &data, &out);
    command.args([
        "--learning-rate",
        "1e30",
        "--set",
        "warmup_steps=0",
        "--set",
        "clip_norm=0",
        "--set",
        "checkpoint_every=1",
    ]);
    command.args(["--objective", "full", "--steps", "20"]);
    // The first update ruins the weights; its checkpoint is named, whether as good (the loss is a number still, its gradient
    // is not) or as the one that failed.
    let stopped = contains("step 2: the ").and(contains("; stopped, the last good checkpoint is "));
    command.assert().code(1).stderr(stopped.and(contains("step-00000001")));
}

#[test]
fn evaluation_reports_missing_data_and_unknown_tasks() {
    let folder = tempfile::tempdir().expect("a folder");
    let eval = |task: &str| {
        let mut command = l2d();
        command.arg("eval").arg("--model").arg(tiny()).args(["--tasks", task, "--steps", "1"]);
        command.arg("--data").arg(folder.path()).arg("--out").arg(folder.path().join("out"));
        command
    };
    eval("nosuchtask").assert().failure().stderr(contains("gsm8k"));
    eval("gsm8k").assert().failure().stderr(contains("gsm8k").and(contains("test")));
}

/// Held-out problems as `l2d eval --tasks arithmetic` reads them.
fn test_split(folder: &Path) -> PathBuf {
    let rows: String = [(347, 28), (512, 64), (999, 99), (120, 35)]
        .map(|(a, b)| format!("{{\"question\":\"{a}*{b}\",\"answer\":\"{a}*{b}={}\"}}\n", a * b))
        .concat();
    std::fs::write(folder.join("test.jsonl"), rows).expect("written");
    folder.to_path_buf()
}

#[test]
fn an_evaluation_goes_on_where_it_was_and_keeps_to_its_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, out) = (test_split(folder.path()), folder.path().join("out"));
    let eval = |adapter: bool, more: &[&str]| {
        let mut command = l2d();
        command.arg("eval").arg("--model").arg(tiny()).args(["--tasks", "arithmetic"]);
        command.arg("--data").arg(&data).arg("--out").arg(&out).args(["--max-tokens", "56"]).args(more);
        if adapter {
            command.arg("--adapter").arg(tiny().join("adapter.safetensors"));
        }
        command.assert()
    };
    let report = || -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(out.join("arithmetic.json")).expect("a report")).expect("json")
    };
    eval(true, &["--steps", "1,3"]).success().stdout(contains("|     3 |").and(contains("at most 56 new tokens")));
    let first = report();
    assert_eq!(first["runs"][1]["samples"], 4);
    assert_eq!(first["runs"][1]["resumed"], 0);
    for extension in ["md", "svg", "png", "samples.jsonl"] {
        assert!(out.join(format!("arithmetic.{extension}")).exists(), "{extension}");
    }
    // The same again: every answer is there already; one more number of steps: only its own are new.
    eval(true, &["--steps", "3,7"]).success();
    let second = report();
    assert_eq!(second["runs"][0]["resumed"], 4);
    assert_eq!(second["runs"][1]["resumed"], 0);
    assert_eq!(second["runs"][0]["metrics"], first["runs"][1]["metrics"]);
    // Another model's results do not replace these.
    eval(false, &[]).code(2).stderr(contains("holds the results of").and(contains("--out")));
    assert_eq!(report(), second);
}

#[test]
fn flags_without_effect_are_refused() {
    let adapter = tiny().join("adapter.safetensors");
    generate(&tiny()).args(["--velocity", "argmax", "1*1"]).assert().code(2).stderr(contains("--adapter"));
    let mut argmax = generate(&tiny());
    argmax.arg("--adapter").arg(&adapter).args(["--velocity", "argmax", "--cool", "1,0.8", "1*1"]);
    argmax.assert().code(2).stderr(contains("--cool").and(contains("argmax")));
    let mut both = generate(&tiny());
    both.arg("--adapter").arg(&adapter).args(["--velocity-temperature", "0.5", "--cool", "1,0.8", "1*1"]);
    both.assert().code(2).stderr(contains("cannot be used with"));
}

#[test]
fn a_conversation_takes_commands_and_ends_with_its_input() {
    let mut chat = l2d();
    chat.arg("chat").arg("--model").arg(tiny()).arg("--adapter").arg(tiny().join("adapter.safetensors"));
    chat.args(["--steps", "3", "--max-tokens", "56"]);
    let assert = chat.write_stdin("/nonsense\n/steps 4\n347*28\n/reset\n/steps 1\n120*35\n").assert().success();
    let output = assert.get_output();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let answers: Vec<&str> = stdout.lines().collect();
    assert!(matches!(answers[..], [a, b] if a.starts_with("347*") && b.starts_with("120*")), "{stdout}");
    // Midpoint cannot spend an even number; the budget stays.
    assert!(
        stderr.contains("[3 steps] > ") && stderr.contains("[1 step] > ") && !stderr.contains("[4 steps]"),
        "{stderr}"
    );
}

#[test]
fn a_full_context_leaves_the_conversation_alive() {
    let mut chat = l2d();
    chat.arg("chat").arg("--model").arg(tiny());
    let long = "1".repeat(400);
    let assert = chat.write_stdin(format!("{long}\n120*35\n")).assert().success();
    let output = assert.get_output();
    assert!(String::from_utf8_lossy(&output.stderr).contains("/reset begins a new one"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("120*"));
}

#[test]
fn the_quick_start_ends_with_table_plot_and_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut quickstart = l2d();
    quickstart.args(["quickstart", "--seconds", "1", "--problems", "6", "--out"]).arg(folder.path());
    quickstart.assert().success().stdout(
        contains("L2D, live")
            .and(contains("L2D, shipped"))
            .and(contains("base, greedy"))
            .and(contains("| steps |"))
            .and(contains("Problems that only one of 1 and 15 evaluations gets right")),
    );
    for name in ["quickstart.json", "quickstart.md", "quickstart.svg", "quickstart.png", "live-adapter.safetensors"] {
        assert!(folder.path().join(name).exists(), "{name}");
    }
    l2d().args(["quickstart", "--problems", "5000"]).assert().code(2).stderr(contains("4048"));
    l2d().args(["quickstart", "--problems", "0"]).assert().code(2);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::io::{BufRead, BufReader, Read};
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("l2d"))
        .args(["inspect", "--tensors"])
        // More than a pipe holds.
        .args(vec![tiny(); 40])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let mut errors = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("text");
    assert!(child.wait().expect("ended").success(), "{errors}");
    assert_eq!(errors, "");
}

#[test]
fn going_on_where_nothing_is_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = data(folder.path());
    let out = folder.path().join("mistyped");
    train(&tiny(), &data, &out).arg("--resume").assert().code(2).stderr(contains("no folder"));
    assert!(!out.exists());
    std::fs::create_dir(&out).expect("made");
    train(&tiny(), &data, &out).arg("--resume").assert().code(1).stderr(contains("no checkpoint in this folder"));
}

#[test]
fn help_names_every_command() {
    let help = l2d().arg("--help").assert().success();
    help.stdout(
        contains("quickstart")
            .and(contains("train"))
            .and(contains("generate"))
            .and(contains("chat"))
            .and(contains("eval"))
            .and(contains("inspect")),
    );
}
