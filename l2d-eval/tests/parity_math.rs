//! MATH answers as the reference extracts and counts them.

use std::path::{Path, PathBuf};

use l2d_eval::task::{Problem, Score, Task};
use l2d_eval::tasks::Math;
use serde_json::Value;

fn golden() -> Value {
    let dir = std::env::var_os("L2D_PARITY")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity"), PathBuf::from);
    serde_json::from_slice(&std::fs::read(dir.join("tasks.json")).expect("read")).expect("json")
}

fn paper(reference: &str, completion: &str) -> Score {
    let scores = Math::default().score(&Problem::new("", reference), completion).expect("a reference with an answer");
    scores["paper"].clone()
}

#[test]
fn parity_extraction() {
    for case in golden()["extraction"]["MATH"].as_array().expect("cases") {
        let completion = case["completion"].as_str().expect("a text");
        let expected = match &case["extracted"] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(format!("{:?}", number.as_f64().expect("a float"))),
            other => panic!("{other}"),
        };
        assert_eq!(paper(r"\boxed{1}", completion).extracted, expected, "{completion:?}");
    }
}

#[test]
fn parity_scoring() {
    for case in golden()["math_scoring"].as_array().expect("cases") {
        let text = |key: &str| case[key].as_str().expect("a text");
        let found = paper(text("reference"), text("completion")).correct;
        assert_eq!(found, case["counted_correct"].as_bool().expect("a bool"), "{case}");
    }
}

/// The published solutions, where they are at hand (`L2D_DATA`): nearly all hold an answer, which by every exact measure is its
/// own.
#[test]
fn published_solutions_are_right() {
    let Some(data) = std::env::var_os("L2D_DATA") else {
        eprintln!("skipped: L2D_DATA names no folder of data sets");
        return;
    };
    let task = Math::default();
    let (rows, _) = l2d_eval::rows::read_split(Path::new(&data), &task, "test").expect("read");
    assert_eq!(rows.len(), 5000);
    let mut right = [0; 2];
    for row in &rows {
        let problem = task.problem(row).expect("a row");
        assert!(task.answerable(&problem), "{}", problem.solution);
        let scores = task.score(&problem, &problem.solution).expect("scores");
        right[0] += usize::from(scores["accuracy"].correct);
        right[1] += usize::from(scores["paper"].correct);
    }
    assert_eq!(right, [5000, 5000]);
}
