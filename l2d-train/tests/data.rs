//! Reading training data: what is kept, what is dropped, what is refused.

mod common;

use common::{Characters, file, refusal, rows_of, tokenise};
use l2d_train::data::{
    BadRows, Batch, BatchOrder, Columns, DropReason, Example, MixedOrder, Schema, SourceConfig, files_of,
};
use l2d_train::{TrainConfig, TrainError};
use proptest::prelude::*;

const CHAT: &str = r#"{"messages":[{"role":"user","content":"ab"},{"role":"assistant","content":"c"},{"role":"user","content":"d"},{"role":"assistant","content":"ef"}]}"#;
const PAIR: &str = r#"{"question":"q","answer":"aa","other":3}"#;

#[test]
fn every_assistant_turn_is_an_example_and_a_folder_is_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    file(&folder, "a.jsonl", &format!("{CHAT}\n\n"));
    file(&folder, "b.jsonl.gz", PAIR);
    file(&folder, "notes.txt", "not data");
    let (store, _) = tokenise(&[SourceConfig::of(folder.path())]).expect("read");
    let expected = [("\0ab", "c\u{1}"), ("\0abcd", "ef\u{1}"), ("\0q", "aa\u{1}")];
    assert_eq!(rows_of(&store), expected.map(|(a, b)| (a.to_string(), b.to_string())));
    assert_eq!(store.stats().labels, 2 + 3 + 3);
    let second = store.get(1).expect("read");
    assert_eq!(second.labels().collect::<Vec<_>>(), [(4, 'e' as u32), (5, 'f' as u32), (6, 1)]);
    assert_eq!(store.entries().iter().map(|entry| entry.conversation).collect::<Vec<_>>(), [0, 0, 1]);
}

#[test]
fn every_layout_of_rows_is_recognised_row_by_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = [
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}],"prompt":"x"}"#,
        r#"{"conversations":[{"from":"system","value":"s"},{"from":"human","value":"u"},{"from":"gpt","value":"a"}]}"#,
        r#"{"question":"u","answer":"a"}"#,
        r#"{"prompt":"u","completion":"a"}"#,
        r#"{"prompt":[{"role":"user","content":"u"},{"role":"assistant","content":"b"},{"role":"user","content":"v"}],"completion":[{"role":"assistant","content":"a"}]}"#,
        r#"{"instruction":"u","input":"","output":"a"}"#,
        r#"{"instruction":"u","input":"v","output":"a"}"#,
    ];
    let path = file(&folder, "rows.jsonl", &rows.join("\n"));
    let (store, _) = tokenise(&[SourceConfig::of(&path)]).expect("read");
    let prompts: Vec<String> = rows_of(&store).into_iter().map(|(prompt, _)| prompt).collect();
    assert_eq!(prompts, ["\0su", "\0su", "\0u", "\0u", "\0ubv", "\0u", "\0u\n\nv"], "one example a row");
    assert!(rows_of(&store).iter().all(|(_, reply)| reply == "a\u{1}"));
    // A chosen layout is not guessed at: the first row has messages, too.
    let chosen = SourceConfig { schema: Schema::QuestionAnswer, ..SourceConfig::of(&path) };
    let error = refusal(&[chosen]);
    assert!(error.contains("row 1: no column `question`"), "{error}");
    let renamed = file(&folder, "named.jsonl", r#"{"q":"u","a":"v"}"#);
    let columns = Columns { question: "q".into(), answer: "a".into(), ..Columns::default() };
    let (store, _) = tokenise(&[SourceConfig { columns: Some(columns), ..SourceConfig::of(renamed) }]).expect("read");
    assert_eq!(rows_of(&store)[0].0, "\0u");
}

#[test]
fn a_row_that_cannot_be_used_is_named_or_dropped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        (r#"{"messages":[{"role":"tool","content":"x"}]}"#, "role `tool`", DropReason::UnknownRole),
        (r#"{"conversations":[{"from":"bing","value":"x"}]}"#, "from `bing`", DropReason::UnknownRole),
        (r#"{"messages":[{"role":"user","content":" \n"}]}"#, "turn 1 (user) is empty", DropReason::EmptyTurn),
        (r#"{"question":"q","answer":""}"#, "turn 2 (assistant) is empty", DropReason::EmptyTurn),
        (r#"{"messages":[{"content":"x"}]}"#, "message 1: no `role`", DropReason::WrongType),
        (
            r#"{"messages":[{"role":"user","content":[]}]}"#,
            "`content` is not a string but a list",
            DropReason::WrongType,
        ),
        (r#"{"messages":"x"}"#, "not a list of messages but a string", DropReason::WrongType),
        (r#"{"messages":["x"]}"#, "message 1: it is a string", DropReason::WrongType),
        (r#"{"question":1,"answer":"x"}"#, "`question` is not a string but a number", DropReason::WrongType),
        (r#"{"text":"x"}"#, "this row has: text", DropReason::WrongType),
        (r#"{"prompt":"x"}"#, "no column `completion`; this row has: prompt", DropReason::WrongType),
        (
            r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","tool_calls":[{"id":1}]}]}"#,
            "message 2 calls tools",
            DropReason::UnknownRole,
        ),
        (r#"{"question":"q","answer":"no!"}"#, "no shouting", DropReason::Template),
        (r#"{"question":"q","answer":"~"}"#, "has no token", DropReason::Template),
    ];
    for (row, reason, counted) in cases {
        let path = file(&folder, "rows.jsonl", &format!("{PAIR}\n{row}\n{PAIR}\n"));
        let error = refusal(&[SourceConfig::of(&path)]);
        assert!(error.contains("rows.jsonl, row 2: ") && error.contains(reason), "{row}: {error}");
        let drop = common::Settings { bad_rows: BadRows::Drop, ..Default::default() };
        let (store, _) = drop.run(&[SourceConfig::of(&path)]).expect("dropped");
        assert_eq!(store.stats().dropped, [(counted, 1)].into(), "{row}");
        assert_eq!((store.stats().rows, store.stats().examples), (3, 2));
    }
}

#[test]
fn what_no_user_wants_is_dropped_and_counted_and_nothing_left_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let no_reply = r#"{"messages":[{"role":"user","content":"q"}]}"#;
    let path = file(&folder, "a.jsonl", &format!("{CHAT}\n{PAIR}\n{no_reply}\n"));
    let limited = |max_tokens| common::Settings { max_tokens, ..Default::default() };
    let (store, _) = limited(5).run(&[SourceConfig::of(&path)]).expect("read");
    assert_eq!(store.stats().examples, 2);
    assert_eq!(store.stats().dropped, [(DropReason::TooLong, 1), (DropReason::NoReply, 1)].into());
    let error = limited(3).run(&[SourceConfig::of(&path)]).expect_err("nothing fits");
    assert!(matches!(error, TrainError::NoData(_)));
    let message = error.to_string();
    assert!(message.contains("3 examples are longer than max_tokens = 3"), "{message}");
    assert!(message.contains("1 without a reply"), "{message}");
}

#[test]
fn broken_files_are_named_with_the_row() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = file(&folder, "rows.jsonl", &format!("{PAIR}\n{CHAT}\n{{\"messages\": [\n"));
    let error = refusal(&[SourceConfig::of(broken)]);
    assert!(error.contains("rows.jsonl, row 3: EOF while parsing"), "{error}");
    let array = file(&folder, "list.jsonl", &format!("[{PAIR}]"));
    let error = refusal(&[SourceConfig::of(array)]);
    assert!(error.contains("row 1") && error.contains("one JSON object a line"), "{error}");
    assert!(refusal(&[SourceConfig::of(folder.path().join("absent.jsonl"))]).contains("absent.jsonl"));
    let cut = file(&folder, "cut.jsonl.gz", &format!("{CHAT}\n").repeat(200));
    let whole = std::fs::read(&cut).expect("read");
    std::fs::write(&cut, &whole[..whole.len() / 2]).expect("written");
    assert!(refusal(&[SourceConfig::of(&cut)]).contains("cut.jsonl.gz, row"));
    std::fs::write(&cut, PAIR).expect("written");
    assert!(refusal(&[SourceConfig::of(&cut)]).contains("it is not gzipped"));
    // 80 MiB of one line, 80 kB packed.
    let endless = file(&folder, "endless.jsonl.gz", &format!("{PAIR}\n{}", "[".repeat(80 << 20)));
    let error = refusal(&[SourceConfig::of(endless)]);
    assert!(error.contains("endless.jsonl.gz, row 2: the line is longer than 64 MiB"), "{error}");
}

#[test]
fn null_is_an_absent_column_and_a_class_is_looked_for_where_it_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let mixed = file(
        &folder,
        "mixed.jsonl",
        "{\"messages\":null,\"question\":\"q\",\"answer\":\"a\",\"kind\":null}\n\
         {\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\"}],\"question\":null,\
         \"kind\":\"math\"}\n",
    );
    let classes = common::Settings { classes: vec!["math".into()], ..Default::default() };
    let by = |column: &str| SourceConfig {
        columns: Some(Columns { class: Some(column.into()), ..Columns::default() }),
        ..SourceConfig::of(&mixed)
    };
    let (store, _) = classes.run(&[by("kind")]).expect("read");
    assert_eq!(store.entries().iter().map(|entry| entry.class()).collect::<Vec<_>>(), [None, Some(0)]);
    let error = classes.run(&[by("sort")]).expect_err("refused").to_string();
    assert!(error.contains("row 1: no column `sort`"), "{error}");
    let fixed = SourceConfig { class: Some("math".into()), ..SourceConfig::of(&mixed) };
    let (store, _) = classes.run(std::slice::from_ref(&fixed)).expect("read");
    assert!(store.entries().iter().all(|entry| entry.class() == Some(0)));
    // Without classes to train, the label of a source is a label and no more.
    assert_eq!(tokenise(&[fixed]).expect("read").0.entries()[0].class(), None);
    let others = common::Settings { classes: vec!["art".into()], ..Default::default() };
    let error = others.run(&[by("kind")]).expect_err("refused").to_string();
    assert!(error.contains("row 2: class `math` is none of: art"), "{error}");
    let error = others.run(&[SourceConfig::of(&mixed)]).expect_err("refused").to_string();
    assert!(error.contains("source 1 has neither a class nor a column of classes"), "{error}");
}

#[test]
fn rows_are_excluded_by_a_column_and_capped_by_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let row =
        |category: &str| format!("{{\"question\":\"{category}\",\"answer\":\"a\",\"category\":\"{category}\"}}\n");
    let rows: String = ["math", "editing", "coding", "planning", "math"].map(row).concat();
    let path = file(&folder, "a.jsonl", &rows);
    let source = SourceConfig {
        exclude: [("category".to_string(), vec!["editing".to_string(), "planning".to_string()])].into(),
        ..SourceConfig::of(&path)
    };
    let (store, _) = tokenise(std::slice::from_ref(&source)).expect("read");
    let prompts = |store| rows_of(store).into_iter().map(|(prompt, _)| prompt).collect::<Vec<_>>();
    assert_eq!(prompts(&store), ["\0math", "\0coding", "\0math"]);
    assert_eq!(store.stats().dropped, [(DropReason::Excluded, 2)].into());
    let capped = SourceConfig { max_rows: Some(2), ..source.clone() };
    let (store, _) = tokenise(&[capped]).expect("read");
    assert_eq!((prompts(&store), store.stats().rows), (vec!["\0math".to_string(), "\0coding".into()], 3));
    file(&folder, "a.jsonl", PAIR);
    assert!(refusal(&[source]).contains("row 1: no column `category`, by which"));
}

#[test]
fn a_folder_is_read_as_the_hub_lays_it_out() {
    let tree = |files: &[&str]| {
        let folder = tempfile::tempdir().expect("a folder");
        for name in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, "").expect("written");
        }
        folder
    };
    let found = |files: &[&str], subset: Option<&str>, split: Option<&str>| {
        let folder = tree(files);
        let source = SourceConfig {
            subset: subset.map(Into::into),
            split: split.map(Into::into),
            ..SourceConfig::of(folder.path())
        };
        files_of(&source).map_err(|e| e.to_string()).map(|files| {
            let name = |path: &std::path::PathBuf| {
                path.strip_prefix(folder.path()).expect("inside").to_string_lossy().into_owned()
            };
            files.iter().map(name).collect::<Vec<_>>()
        })
    };
    let shards =
        ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"];
    assert_eq!(found(&shards, None, None).expect("found"), [shards[1], shards[0]]);
    assert_eq!(found(&shards, None, Some("test")).expect("found"), [shards[2]]);
    let subsets = ["a/train-00000-of-00001-0af3.parquet", "a/train.jsonl.gz", "b/train.jsonl", "b/test.jsonl"];
    assert_eq!(found(&subsets, Some("a"), None).expect("found"), [subsets[0]]);
    assert_eq!(found(&subsets, Some("b"), Some("test")).expect("found"), ["b/test.jsonl"]);
    assert_eq!(found(&subsets[..2], None, None).expect("found"), [subsets[0]], "the only subset there is");
    let deep = ["data/a/train-00000-of-00001.parquet", "data/b/train-00000-of-00001.parquet"];
    assert_eq!(found(&deep, Some("b"), None).expect("found"), [deep[1]]);
    let refused =
        |files: &[&str], subset: Option<&str>, split: Option<&str>| found(files, subset, split).expect_err("refused");
    assert!(refused(&subsets, None, None).contains("which subset? There are: a, b"));
    assert!(refused(&subsets, Some("c"), None).contains("no subset `c` with a split `train`; subsets here: a, b"));
    assert!(
        refused(&["test.jsonl", "more.jsonl"], None, None).contains("no split `train`"),
        "never train on a test split"
    );
    assert!(refused(&["more.jsonl"], None, Some("train")).contains("files here: more.jsonl"));
    assert!(refused(&["train-00001-of-00002.parquet"], None, None).contains("shard 0 of 2 is missing"));
    assert!(refused(&["train-00000-of-00002.parquet"], None, None).contains("shard 1 of 2 is missing"));
    assert!(refused(&["notes.txt"], None, None).contains("no .jsonl"));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let mut config = TrainConfig::default();
    config.diffusion.classes = vec!["math".into()];
    let refused = |config: &TrainConfig| config.check().expect_err("refused").to_string();
    assert!(refused(&config).contains("columns.class"));
    config.columns.class = Some("kind".into());
    config.check().expect("both");
    config.sources = vec![SourceConfig { class: Some("math".into()), ..Default::default() }];
    assert!(refused(&config).contains("also has a column of classes"));
    config.columns.class = None;
    config.check().expect("the source has one");
    config.sources[0].class = Some("art".into());
    assert!(refused(&config).contains("`art` of source 1 is none of: math"));
    config.sources[0].class = None;
    assert!(refused(&config).contains("neither a class"));
    config.diffusion.classes.clear();
    config.columns.class = Some("kind".into());
    assert!(refused(&config).contains("diffusion.classes"));
    config.columns.class = None;
    config.sources = vec![SourceConfig { weight: Some(0.5), ..Default::default() }, SourceConfig::default()];
    assert!(refused(&config).contains("1 of 2 sources have one"));
    config.sources[1].weight = Some(f64::NAN);
    assert!(refused(&config).contains("NaN of source 2"));
    config.sources = vec![SourceConfig { max_rows: Some(0), ..Default::default() }];
    assert!(refused(&config).contains("max_rows"));
    config.sources.clear();
    config.pad_to = 0;
    assert!(refused(&config).contains("pad_to"));
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

#[test]
fn a_mixture_gives_each_source_its_share_and_can_be_entered_anywhere() {
    // 30 examples with a third of the weight, 10 with two thirds.
    let parts = [(0..30, 1.0), (30..40, 2.0)];
    let mut order = MixedOrder::new(5, &parts);
    assert_eq!(order.epoch_len(), 40);
    let seen = order.take(0, 240);
    for epoch in seen.chunks(40) {
        assert_eq!(epoch.iter().filter(|&&i| i >= 30).count(), 27, "two thirds of 40");
    }
    let count = |wanted: usize| seen.iter().filter(|&&i| i == wanted).count();
    // 6 * 13 = 78 draws of 30, 6 * 27 = 162 of 10: nothing is drawn again before all others were drawn as often.
    assert!((0..30).all(|i| (2..=3).contains(&count(i))), "{seen:?}");
    assert!((30..40).all(|i| (16..=17).contains(&count(i))));
    for start in [0, 1, 39, 40, 41, 100, 203] {
        assert_eq!(MixedOrder::new(5, &parts).take(start as u64, 37), seen[start..start + 37]);
        assert_eq!(order.take(start as u64, 37), seen[start..start + 37], "and left for anywhere");
    }
    assert_ne!(MixedOrder::new(6, &parts).take(0, 40), seen[..40]);
}

proptest! {
    #[test]
    fn no_line_makes_the_reader_panic(text in "\\PC{0,80}") {
        let folder = tempfile::tempdir().expect("a folder");
        let path = file(&folder, "x.jsonl", &text);
        let _ = tokenise(&[SourceConfig::of(path)]);
    }

    #[test]
    fn a_batch_keeps_every_label(
        lengths in proptest::collection::vec((2usize..9, 1usize..8), 1..6),
        pad_to in 1usize..5,
    ) {
        let examples: Vec<Example> = lengths
            .iter()
            .map(|&(length, prompt)| Example {
                tokens: (0..length as u32).collect(),
                prompt: prompt.min(length - 1),
                class: None, conversation: 0,
            })
            .collect();
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), None).padded_to(pad_to);
        let labelled = batch.labelled();
        let longest = examples.iter().map(|e| e.tokens.len() - 1).max().expect("not empty");
        for (example, (row, labels)) in examples.iter().zip(labelled.tokens.iter().zip(labelled.labels)) {
            prop_assert_eq!(row.len(), longest.next_multiple_of(pad_to));
            prop_assert_eq!(&row[..example.tokens.len() - 1], &example.tokens[..example.tokens.len() - 1]);
            for &(position, target) in labels {
                prop_assert_eq!(example.tokens[position + 1], target);
                prop_assert_eq!(row[position], example.tokens[position]);
            }
            prop_assert_eq!(labels.len(), example.num_labels());
        }
    }
}

#[test]
fn the_template_of_the_tests_is_what_it_says() {
    use l2d_train::data::{Template, Turn};
    assert_eq!(Characters.render(&[Turn::new("user", "a")], "b"), Ok((vec![0, 97], vec![98, 1])));
}
