//! Reading training data: what is kept, what is dropped, what is refused.

use std::io::Write;
use std::path::PathBuf;

use l2d_train::data::{Batch, BatchOrder, Columns, Dataset, Example, Template, Turn, read_conversations};
use l2d_train::{TrainConfig, TrainError};
use proptest::prelude::*;

/// One token per character, 0 before a prompt and 1 after a response.
struct Characters;

impl Template for Characters {
    fn render(&self, context: &[Turn], response: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        if response.contains('!') {
            return Err("no shouting".into());
        }
        let prompt = context.iter().flat_map(|turn| turn.content.chars()).map(u32::from);
        let response = response.chars().map(u32::from).chain([1]);
        Ok((std::iter::once(0).chain(prompt).collect(), response.collect()))
    }
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    let mut out = std::fs::File::create(&path).expect("created");
    if name.ends_with(".gz") {
        let mut gz = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
        gz.write_all(text.as_bytes()).expect("written");
        gz.finish().expect("finished");
    } else {
        out.write_all(text.as_bytes()).expect("written");
    }
    path
}

const CHAT: &str = r#"{"messages":[{"role":"user","content":"ab"},{"role":"assistant","content":"c"},{"role":"user","content":"d"},{"role":"assistant","content":"ef"}]}"#;
const PAIR: &str = r#"{"question":"q","answer":"aa","other":3}"#;

#[test]
fn every_assistant_turn_is_an_example_and_a_folder_is_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    file(&folder, "a.jsonl", &format!("{CHAT}\n\n"));
    file(&folder, "b.jsonl.gz", PAIR);
    file(&folder, "notes.txt", "not data");
    let rows = read_conversations(&[folder.path().to_path_buf()], &Columns::default()).expect("read");
    let dataset = Dataset::build(&rows, &Characters, &[], 100).expect("built");
    let text = |example: &Example| {
        let chars = |tokens: &[u32]| tokens.iter().filter_map(|&t| char::from_u32(t)).collect::<String>();
        (chars(&example.tokens[..example.prompt]), chars(&example.tokens[example.prompt..]))
    };
    let found: Vec<_> = dataset.examples.iter().map(text).collect();
    let expected = [("\0ab", "c\u{1}"), ("\0abcd", "ef\u{1}"), ("\0q", "aa\u{1}")];
    assert_eq!(found, expected.map(|(a, b)| (a.to_string(), b.to_string())));
    assert_eq!(dataset.stats.labels, 2 + 3 + 3);
    let second = &dataset.examples[1];
    assert_eq!(second.labels().collect::<Vec<_>>(), [(4, 'e' as u32), (5, 'f' as u32), (6, 1)]);
}

#[test]
fn long_examples_are_dropped_and_counted_and_nothing_left_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, "a.jsonl", &format!("{CHAT}\n{PAIR}\n"));
    let rows = read_conversations(&[path], &Columns::default()).expect("read");
    let dataset = Dataset::build(&rows, &Characters, &[], 5).expect("built");
    assert_eq!((dataset.stats.examples, dataset.stats.too_long), (2, 1));
    let error = Dataset::build(&rows, &Characters, &[], 3).expect_err("nothing fits");
    assert!(matches!(error, TrainError::NoData(_)));
    assert!(error.to_string().contains("3 examples are longer than max_tokens = 3"), "{error}");
}

#[test]
fn a_broken_row_is_named_by_file_and_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let refuse = |text: &str| {
        let path = file(&folder, "rows.jsonl", text);
        read_conversations(&[path], &Columns::default()).expect_err("refused").to_string()
    };
    let broken = refuse(&format!("{PAIR}\n{CHAT}\n{{\"messages\": [\n"));
    assert!(broken.contains("rows.jsonl, row 3"), "{broken}");
    let column = refuse("{\"prompt\":\"x\"}");
    assert!(column.contains("row 1") && column.contains("this row has: prompt"), "{column}");
    let role = refuse("{\"messages\":[{\"content\":\"x\"}]}");
    assert!(role.contains("role"), "{role}");
    let kind = refuse("{\"question\":1,\"answer\":\"x\"}");
    assert!(kind.contains("`question` is not a string"), "{kind}");
}

#[test]
fn missing_files_empty_folders_and_truncated_archives_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |path: PathBuf| read_conversations(&[path], &Columns::default()).expect_err("refused").to_string();
    assert!(read(folder.path().join("absent.jsonl")).contains("absent.jsonl"));
    assert!(read(folder.path().to_path_buf()).contains("no .jsonl"));
    let path = file(&folder, "cut.jsonl.gz", &format!("{CHAT}\n").repeat(200));
    let whole = std::fs::read(&path).expect("read");
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    assert!(read(path).contains("cut.jsonl.gz, row"));
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_the_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    // 80 MiB of one line, 80 kB packed.
    let path = file(&folder, "endless.jsonl.gz", &format!("{PAIR}\n{}", "[".repeat(80 << 20)));
    let error = read_conversations(&[path], &Columns::default()).expect_err("refused").to_string();
    assert!(error.contains("endless.jsonl.gz, row 2: the line is longer than 64 MiB"), "{error}");
}

#[test]
fn null_is_an_absent_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let mixed = file(
        &folder,
        "mixed.jsonl",
        "{\"messages\":null,\"question\":\"q\",\"answer\":\"a\",\"kind\":null}\n\
         {\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"question\":null,\"answer\":null,\"kind\":\"math\"}\n",
    );
    let columns = Columns { class: Some("kind".into()), ..Default::default() };
    let rows = read_conversations(std::slice::from_ref(&mixed), &columns).expect("read");
    assert_eq!(rows.iter().map(|row| row.turns.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(rows.iter().map(|row| row.class.as_deref()).collect::<Vec<_>>(), [None, Some("math")]);
    let absent = Columns { class: Some("sort".into()), ..Default::default() };
    let error = read_conversations(&[mixed], &absent).expect_err("refused").to_string();
    assert!(error.contains("row 1: no column `sort`"), "{error}");
}

#[test]
fn classes_and_their_column_belong_together() {
    let mut config = TrainConfig::default();
    config.diffusion.classes = vec!["math".into()];
    assert!(config.check().expect_err("no column").to_string().contains("columns.class"));
    config.columns.class = Some("kind".into());
    config.check().expect("both");
    config.diffusion.classes.clear();
    assert!(config.check().expect_err("no classes").to_string().contains("diffusion.classes"));
}

#[test]
fn template_errors_and_unknown_classes_name_the_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, "a.jsonl", "\n{\"question\":\"q\",\"answer\":\"no!\",\"kind\":\"art\"}\n");
    let rows = read_conversations(std::slice::from_ref(&path), &Columns::default()).expect("read");
    let error = Dataset::build(&rows, &Characters, &[], 100).expect_err("template");
    assert!(error.to_string().contains("a.jsonl, row 2: no shouting"), "{error}");
    let columns = Columns { class: Some("kind".into()), ..Default::default() };
    let rows = read_conversations(&[path], &columns).expect("read");
    let error = Dataset::build(&rows, &Characters, &["math".into()], 100).expect_err("class");
    assert!(error.to_string().contains("a.jsonl, row 2: class `art` is none of: math"), "{error}");
}

#[test]
fn an_order_is_a_permutation_per_epoch_and_can_be_entered_anywhere() {
    let mut order = BatchOrder::new(7, 10);
    let two_epochs = order.take(0, 20);
    for epoch in two_epochs.chunks(10) {
        let mut sorted = epoch.to_vec();
        sorted.sort();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }
    assert_ne!(two_epochs[..10], two_epochs[10..]);
    for start in [0, 3, 9, 10, 14] {
        assert_eq!(BatchOrder::new(7, 10).take(start as u64, 5), two_epochs[start..start + 5]);
    }
    assert_ne!(BatchOrder::new(8, 10).take(0, 10), two_epochs[..10]);
}

proptest! {
    #[test]
    fn no_line_makes_the_reader_panic(text in "\\PC{0,80}") {
        let folder = tempfile::tempdir().expect("a folder");
        let path = file(&folder, "x.jsonl", &text);
        let _ = read_conversations(&[path], &Columns::default());
    }

    #[test]
    fn a_batch_keeps_every_label(lengths in proptest::collection::vec((2usize..9, 1usize..8), 1..6)) {
        let examples: Vec<Example> = lengths
            .iter()
            .map(|&(length, prompt)| Example {
                tokens: (0..length as u32).collect(),
                prompt: prompt.min(length - 1),
                class: None, conversation: 0,
            })
            .collect();
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), None);
        let labelled = batch.labelled();
        let width = examples.iter().map(|e| e.tokens.len() - 1).max().expect("not empty");
        for (example, (row, labels)) in examples.iter().zip(labelled.tokens.iter().zip(labelled.labels)) {
            prop_assert_eq!(row.len(), width);
            prop_assert_eq!(&row[..example.tokens.len() - 1], &example.tokens[..example.tokens.len() - 1]);
            for &(position, target) in labels {
                prop_assert_eq!(example.tokens[position + 1], target);
                prop_assert_eq!(row[position], example.tokens[position]);
            }
            prop_assert_eq!(labels.len(), example.num_labels());
        }
    }
}
