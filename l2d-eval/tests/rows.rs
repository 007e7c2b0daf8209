//! Rows from real files: shards, types, and files that are broken.

use std::path::{Path, PathBuf};

use l2d_eval::Error;
use l2d_eval::Task;
use l2d_eval::rows::{Row, check_count, read_file, read_split};
use l2d_eval::tasks::Gsm8k;
use proptest::prelude::*;
use serde_json::json;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn gsm8k(file: &str) -> PathBuf {
    fixtures().join("openai__gsm8k/main").join(file)
}

fn write(bytes: &[u8], extension: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("rows.{extension}"));
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn parquet_shards_and_json_lines_are_read_in_order() {
    let (train, from) = read_split(&fixtures(), &Gsm8k::default(), "train").unwrap();
    let named: Vec<(&str, usize)> = from.iter().map(|file| (file.name.as_str(), file.rows)).collect();
    assert_eq!(named, [("train-00000-of-00002.parquet", 4), ("train-00001-of-00002.parquet", 2)]);
    assert_eq!(train.len(), 6);
    assert!(from.iter().all(|file| file.sha256.len() == 64) && from[0].sha256 != from[1].sha256);
    assert!(train[0].text("question").unwrap().starts_with("Natalia sold clips to 48"));
    assert!(train[0].text("answer").unwrap().ends_with("#### 72"));
    assert_eq!(train[5].origin(), "train-00001-of-00002.parquet: row 2");

    let (test, from) = read_split(&fixtures(), &Gsm8k::default(), "test").unwrap();
    assert_eq!((from[0].name.as_str(), from[0].rows), ("test.jsonl", test.len()));
    let error = check_count(&Gsm8k::default(), test.len()).unwrap_err().to_string();
    assert!(error.starts_with("gsm8k: split `test` has ") && error.contains("the published one has 1319"), "{error}");
    assert!(check_count(&Gsm8k::default(), 1319).is_ok());
    assert!(test[0].text("question").unwrap().starts_with("Janet’s ducks lay 16 eggs"));
}

#[test]
fn parquet_types_become_json() {
    let rows = read_file(&fixtures().join("types.parquet")).unwrap();
    let columns: Vec<_> = rows.iter().map(Row::columns).cloned().map(serde_json::Value::Object).collect();
    assert_eq!(
        columns,
        [
            json!({"text": "a", "choices": ["x", "y"], "n": 1, "x": 0.5, "ok": true, "nested": {"label": ["A"], "text": ["w"]}}),
            json!({"text": null, "choices": [], "n": 2, "x": 1.5, "ok": false, "nested": {"label": [], "text": []}}),
        ]
    );
    let error = rows[1].text("text").unwrap_err();
    assert_eq!(error.to_string(), "types.parquet: row 2: column `text` holds null, expected a string");
}

#[test]
fn a_missing_file_is_named() {
    for extension in ["parquet", "jsonl"] {
        let path = fixtures().join(format!("nowhere.{extension}"));
        let error = read_file(&path).unwrap_err();
        assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error}");
    }
}

#[test]
fn a_truncated_parquet_is_an_error_wherever_it_ends() {
    let whole = std::fs::read(gsm8k("train-00001-of-00002.parquet")).unwrap();
    for length in (0..whole.len()).step_by(7) {
        let (_dir, path) = write(&whole[..length], "parquet");
        assert!(matches!(read_file(&path), Err(Error::Parquet { .. })), "{length} of {}", whole.len());
    }
}

#[test]
fn wrong_magic_is_an_error() {
    let (_dir, path) = write(b"PAR2 this is no parquet file at all PAR2", "parquet");
    let error = read_file(&path).unwrap_err().to_string();
    assert!(error.contains("rows.parquet: not a readable parquet file"), "{error}");
    let (_dir, path) = write(b"PAR1\xff\xff\xff\x7fPAR1", "parquet");
    assert!(matches!(read_file(&path), Err(Error::Parquet { .. })));
}

proptest! {
    /// Whatever a broken file says, reading it ends with rows or a typed error.
    #[test]
    fn a_parquet_with_changed_bytes_never_panics(
        file in prop::sample::select(vec!["openai__gsm8k/main/train-00000-of-00002.parquet", "types.parquet"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = std::fs::read(fixtures().join(file)).unwrap();
        for (place, byte) in changes {
            // Most of the file is text; what is fragile are the headers and the footer at the end.
            let tail = bytes.len() / 2;
            let place = tail + place.index(bytes.len() - tail);
            bytes[place] = byte;
        }
        let (_dir, path) = write(&bytes, "parquet");
        match read_file(&path) {
            Ok(rows) => prop_assert!(rows.len() <= 6),
            Err(error) => prop_assert!(matches!(error, Error::Parquet { .. }), "{}", error),
        }
    }

    #[test]
    fn any_bytes_as_json_lines_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let (_dir, path) = write(&bytes, "jsonl");
        if let Err(error) = read_file(&path) {
            prop_assert!(matches!(error, Error::Jsonl { .. }), "{}", error);
        }
    }
}

/// The whole data set, where `L2D_DATA` names a folder that has it.
#[test]
fn all_of_gsm8k_can_be_asked_and_answers_itself() {
    let Some(dir) = std::env::var_os("L2D_DATA") else {
        println!("skipped: L2D_DATA names no data folder");
        return;
    };
    let task = Gsm8k::default();
    for (split, count) in [("train", 7473), ("test", 1319)] {
        let (rows, _) = read_split(Path::new(&dir), &Gsm8k::default(), split).unwrap();
        assert_eq!(rows.len(), count);
        for row in &rows {
            let problem = task.problem(row).unwrap();
            let scores = task.score(&problem, &problem.solution).expect("every solution has an answer");
            assert!(scores.values().all(|score| score.correct), "{}: {scores:?}", row.origin());
        }
        let folder = Path::new(&dir).join("openai__gsm8k/main");
        let jsonl = folder.join(format!("{split}.jsonl.gz"));
        if jsonl.is_file() {
            let same = read_file(&jsonl).unwrap();
            assert!(
                same.iter().map(Row::columns).eq(rows.iter().map(Row::columns)),
                "{split} differs from its parquet"
            );
        }
    }
}
