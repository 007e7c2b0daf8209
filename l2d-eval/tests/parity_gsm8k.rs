//! GSM8K answers as the reference extracts and counts them.

use std::path::{Path, PathBuf};

use l2d_eval::Task;
use l2d_eval::task::{Problem, Score};
use l2d_eval::tasks::Gsm8k;
use serde_json::Value;

fn golden() -> Value {
    let dir = std::env::var_os("L2D_PARITY")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity"), PathBuf::from);
    let path = dir.join("tasks.json");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("valid json")
}

fn paper(reference: &str, completion: &str) -> Score {
    let problem = Problem::new("", reference.to_owned());
    Gsm8k::default().score(&problem, completion).expect("a reference with an answer")["paper"].clone()
}

#[test]
fn parity_extraction() {
    let golden = golden();
    let cases = golden["extraction"]["gsm8k"].as_array().expect("cases");
    assert!(!cases.is_empty());
    for case in cases {
        let completion = case["completion"].as_str().expect("text");
        assert_eq!(paper("#### 1", completion).extracted.as_deref(), case["extracted"].as_str(), "{completion:?}");
    }
}

#[test]
fn parity_scoring() {
    let golden = golden();
    let cases = golden["gsm8k_scoring"].as_array().expect("cases");
    assert!(!cases.is_empty());
    for case in cases {
        let text = |key: &str| case[key].as_str().expect("text");
        let score = paper(text("reference"), text("completion"));
        assert_eq!(Some(score.correct), case["counted_correct"].as_bool(), "{case}");
    }
}
