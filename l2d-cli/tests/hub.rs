//! Downloads from a hub on this machine: a server of a few files that speaks as much of the hub's protocol as a client needs.
#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use assert_cmd::Command;
use predicates::prelude::*;
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// What a hub holds: a repository's files, by its path (`models/org/name`).
#[derive(Default)]
struct Hub {
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Only with the token.
    gated: bool,
    /// Sends other bytes than the checksum promises.
    damages: bool,
    log: Mutex<Vec<String>>,
}

impl Hub {
    fn with(repository: &str, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { repositories: BTreeMap::from([(repository.to_string(), files)]), ..Self::default() }
    }

    /// Serves until the test's process ends.
    fn serve(self) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let hub = Arc::new(self);
        let serving = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = serving.clone();
                std::thread::spawn(move || hub.answer(stream));
            }
        });
        (hub, address)
    }

    fn answer(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_string());
        }
        let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_string) else { return };
        self.log.lock().expect("not poisoned").push(path.clone());
        let header = |name: &str| {
            let found =
                lines.iter().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_string())
        };
        let mut stream = stream;
        let mut say = |status: &str, headers: &str, body: &[u8]| {
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        };
        if self.gated && header("authorization").as_deref() != Some(&format!("Bearer {TOKEN}")) {
            return say("401 Unauthorized", "", b"");
        }
        if let Some((repository, _)) = path.strip_prefix("/api/").and_then(|rest| rest.split_once("/revision/")) {
            let Some(files) = self.repositories.get(repository) else { return say("404 Not Found", "", b"") };
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "siblings": siblings, "sha": COMMIT }).to_string();
            return say("200 OK", "Content-Type: application/json\r\n", body.as_bytes());
        }
        let Some((repository, rest)) = path[1..].split_once("/resolve/") else { return say("404 Not Found", "", b"") };
        let repository =
            if repository.starts_with("datasets/") { repository.into() } else { format!("models/{repository}") };
        let (revision, name) = rest.split_once('/').expect("a revision and a file");
        let file = self.repositories.get(&repository).and_then(|files| files.get(name));
        let Some(file) = file.filter(|_| revision == COMMIT) else { return say("404 Not Found", "", b"") };
        let range = header("range").expect("the client asks for a range");
        let (first, last) = range.trim_start_matches("bytes=").split_once('-').expect("a range");
        let first: usize = first.parse().expect("a number");
        let last = last.parse().unwrap_or(file.len() - 1).min(file.len() - 1);
        let mut body = file.get(first..=last).unwrap_or_default().to_vec();
        if let (true, Some(byte)) = (self.damages && body.len() > 1, body.last_mut()) {
            *byte ^= 1;
        }
        let checksum: String = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
        let headers = format!(
            "Content-Range: bytes {first}-{last}/{}\r\nETag: \"{checksum}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
            file.len()
        );
        say("206 Partial Content", &headers, &body);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().expect("not poisoned"))
    }
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny")
}

fn model_files() -> BTreeMap<String, Vec<u8>> {
    let names =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for name in names {
        let mut bytes = Vec::new();
        std::fs::File::open(tiny().join(name)).and_then(|mut file| file.read_to_end(&mut bytes)).expect("read");
        files.insert(name.into(), bytes);
    }
    files.insert("pytorch_model.bin".into(), b"never fetched".to_vec());
    files
}

fn l2d(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::cargo_bin("l2d").expect("built");
    for variable in ["RUST_LOG", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"] {
        command.env_remove(variable);
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", endpoint).env("L2D_CACHE", home.join("tokens"));
    command
}

fn generate(home: &Path, endpoint: &str, model: &str) -> Command {
    let mut command = l2d(home, endpoint);
    command.args(["generate", "--temperature", "0", "--max-tokens", "4", "--raw", "--model", model, "12+7="]);
    command
}

#[test]
fn a_model_is_downloaded_once_and_found_again_without_the_hub() {
    let home = tempfile::tempdir().expect("a folder");
    let (hub, endpoint) = Hub::with("models/org/tiny", model_files()).serve();
    let local = generate(home.path(), &endpoint, tiny().to_str().expect("utf-8")).output().expect("ran").stdout;
    assert!(hub.asked().is_empty(), "a path asks nobody");
    generate(home.path(), &endpoint, "hf://org/tiny").assert().success().stdout(local.clone());
    let asked = hub.asked();
    assert!(asked[0] == "/api/models/org/tiny/revision/main", "{asked:?}");
    assert!(asked.iter().all(|path| !path.contains("pytorch_model.bin")), "{asked:?}");
    // The second time only the listing is asked for.
    generate(home.path(), &endpoint, "hf://org/tiny").assert().success().stdout(local.clone());
    assert_eq!(hub.asked(), ["/api/models/org/tiny/revision/main"]);
    generate(home.path(), &endpoint, "hf://org/tiny").env("HF_HUB_OFFLINE", "1").assert().success().stdout(local);
    assert!(hub.asked().is_empty());
    // A file that has gone is missed by name.
    let gone = home.path().join("hub/models--org--tiny/snapshots").join(COMMIT).join("tokenizer.json");
    std::fs::remove_file(gone).expect("removed");
    let offline = |model: &str| generate(home.path(), &endpoint, model).env("HF_HUB_OFFLINE", "1").assert().code(2);
    offline("hf://org/tiny").stderr(predicate::str::contains("`tokenizer.json` is no longer in"));
    offline("hf://org/other").stderr(predicate::str::contains("HF_HUB_OFFLINE is set"));
}

#[test]
fn a_gated_model_wants_a_token() {
    let home = tempfile::tempdir().expect("a folder");
    let (_, endpoint) = Hub { gated: true, ..Hub::with("models/org/tiny", model_files()) }.serve();
    let refused = generate(home.path(), &endpoint, "hf://org/tiny").assert().code(2);
    refused.stderr(predicate::str::contains("HF_TOKEN").and(predicate::str::contains("hf://org/tiny")));
    generate(home.path(), &endpoint, "hf://org/tiny").env("HF_TOKEN", TOKEN).assert().success();
    // Or the one that `hf auth login` has stored.
    let other = tempfile::tempdir().expect("a folder");
    std::fs::write(other.path().join("token"), TOKEN).expect("written");
    generate(other.path(), &endpoint, "hf://org/tiny").assert().success();
}

#[test]
fn damage_on_the_way_is_found() {
    let home = tempfile::tempdir().expect("a folder");
    let (_, endpoint) = Hub { damages: true, ..Hub::with("models/org/tiny", model_files()) }.serve();
    let damaged = generate(home.path(), &endpoint, "hf://org/tiny").assert().code(2);
    damaged.stderr(predicate::str::contains("arrived damaged"));
    // Nothing of it is left: a hub in order is enough.
    let (_, endpoint) = Hub::with("models/org/tiny", model_files()).serve();
    generate(home.path(), &endpoint, "hf://org/tiny").assert().success();
}

#[test]
fn data_sets_are_read_by_training_and_named_in_settings() {
    let home = tempfile::tempdir().expect("a folder");
    let row = |n: usize| format!("{{\"question\": \"{n}+1=\", \"answer\": \"{}\"}}\n", n + 1);
    let rows: String = (0..20).map(row).collect();
    let files = BTreeMap::from([
        ("README.md".to_string(), b"text".to_vec()),
        ("main/train.jsonl".to_string(), rows.into_bytes()),
        ("other/train.jsonl".to_string(), row(5).into_bytes()),
    ]);
    let (hub, endpoint) = Hub::with("datasets/org/sums", files).serve();
    let inspect = |data: &[&str]| {
        let mut command = l2d(home.path(), &endpoint);
        command.args(["data", "inspect", "--model"]).arg(tiny()).args(data);
        command
    };
    inspect(&["--data", "hf://datasets/org/sums@main/main"]).assert().success().stdout(predicate::str::contains("20"));
    assert!(hub.asked().iter().all(|path| !path.contains("other") && !path.contains("README")));
    let settings = home.path().join("data.toml");
    std::fs::write(&settings, "[[sources]]\npath = \"hf://datasets/org/sums\"\nsubset = \"main\"\n").expect("written");
    inspect(&["--config", settings.to_str().expect("utf-8")]).assert().success().stdout(predicate::str::contains("20"));
    // Half a data set is not taken for a whole one.
    let listings = home.path().join("hub/datasets--org--sums/l2d");
    std::fs::remove_dir_all(listings).expect("removed");
    let offline = inspect(&["--data", "hf://datasets/org/sums"]).env("HF_HUB_OFFLINE", "1").assert().code(2);
    offline.stderr(predicate::str::contains("whole is not known"));
}

#[test]
fn what_is_not_there_is_named() {
    let home = tempfile::tempdir().expect("a folder");
    let mut files = model_files();
    files.remove("model.safetensors");
    files.insert("a-Q4.gguf".into(), b"GGUF".to_vec());
    files.insert("b-Q8.gguf".into(), b"GGUF".to_vec());
    let (_, endpoint) = Hub::with("models/org/ggufs", files).serve();
    let fails = |model: &str, says: &str| {
        generate(home.path(), &endpoint, model).assert().code(2).stderr(predicate::str::contains(says));
    };
    fails("hf://org/none", "no such repository");
    fails("hf://org/ggufs", "add the name of one");
    fails("hf://org/ggufs/c.gguf", "a-Q4.gguf");
    fails("hf://org", "an address is hf://");
    // Nobody listens there.
    let unreachable = generate(home.path(), "http://127.0.0.1:9", "hf://org/tiny").assert().code(2);
    unreachable.stderr(predicate::str::contains("HF_HUB_OFFLINE=1"));
    // A file of it is fetched, and is then the model's to judge.
    generate(home.path(), &endpoint, "hf://org/ggufs/a-Q4.gguf").assert().code(1);
}

#[test]
fn each_tasks_own_data_set_is_fetched() {
    let home = tempfile::tempdir().expect("a folder");
    let row = |n: u32| {
        let choices = serde_json::json!({ "text": ["1", "2"], "label": ["A", "B"] });
        serde_json::json!({ "question": format!("What is {n}?"), "choices": choices, "answerKey": "A" }).to_string()
            + "\n"
    };
    let files = BTreeMap::from([
        ("ARC-Easy/test.jsonl".to_string(), row(1).into_bytes()),
        ("ARC-Easy/validation.jsonl".to_string(), (row(2) + &row(3)).into_bytes()),
    ]);
    let (hub, endpoint) = Hub::with("datasets/allenai/ai2_arc", files).serve();
    let eval = |task: &str| {
        let mut command = l2d(home.path(), &endpoint);
        command.args(["eval", "--data", "hub", "--shots", "1", "--samples", "0", "--write-out", "--tasks", task]);
        command.arg("--model").arg(tiny());
        command
    };
    let shown = eval("arc_easy").assert().success();
    shown.stdout(predicates::str::contains("What is 2?").and(predicates::str::contains("What is 1?")));
    assert!(hub.asked().iter().any(|path| path.contains("ARC-Easy/test.jsonl")));
    eval("piqa").assert().failure().stderr(predicates::str::contains("datasets/ybisk/piqa"));
}
