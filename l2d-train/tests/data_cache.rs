//! Tokenised data on the disk: found again, made again, and trained from.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Settings, file, rows_of};
use l2d_train::TrainError;
use l2d_train::data::{
    CacheUse, Columns, DataSettings, ExampleSource, SourceConfig, Subset, TokenStore, prepare, split,
};

fn rows(count: usize) -> String {
    (0..count).map(|n| format!("{{\"question\":\"q{n}\",\"answer\":\"a{n}\"}}\n")).collect()
}

/// The folder of the only data set in a cache.
fn only(cache: &Path) -> PathBuf {
    let folders: Vec<PathBuf> =
        std::fs::read_dir(cache).expect("a cache").map(|entry| entry.expect("read").path()).collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders[0].clone()
}

#[test]
fn a_second_start_finds_what_the_first_tokenised_unless_anything_that_matters_has_changed() {
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let path = file(&folder, "a.jsonl", &rows(3000));
    let run = |settings: &Settings, source: SourceConfig| settings.run_in(&[source], cache.path()).expect("tokenised");
    let (first, how) = run(&Settings::default(), SourceConfig::of(&path));
    assert_eq!(how, CacheUse::Made);
    let (second, how) = run(&Settings::default(), SourceConfig::of(&path));
    assert_eq!(how, CacheUse::Found);
    assert_eq!((rows_of(&first), first.fingerprint()), (rows_of(&second), second.fingerprint()));
    assert_eq!((first.entries(), first.sources()), (second.entries(), second.sources()));
    let copy = folder.path().join("copy.jsonl");
    std::fs::copy(&path, &copy).expect("copied");
    assert_eq!(
        run(&Settings::default(), SourceConfig::of(copy)).1,
        CacheUse::Found,
        "the content counts, not the name"
    );

    let shorter = Settings { max_tokens: 50, ..Settings::default() };
    assert_eq!(run(&shorter, SourceConfig::of(&path)).1, CacheUse::Made);
    let capped = SourceConfig { max_rows: Some(10), ..SourceConfig::of(&path) };
    assert_eq!(run(&Settings::default(), capped).1, CacheUse::Made);
    // As long as before, and as old: only the content tells.
    let modified = std::fs::metadata(&path).expect("there").modified().expect("a time");
    std::fs::write(&path, rows(3000).replace("a7\"", "b7\"")).expect("written");
    std::fs::File::options().write(true).open(&path).expect("opened").set_modified(modified).expect("set");
    let (changed, how) = run(&Settings::default(), SourceConfig::of(&path));
    assert_eq!(how, CacheUse::Made);
    assert_ne!(changed.fingerprint(), first.fingerprint());
}

#[test]
fn damaged_tokens_are_made_again_and_said_to_be() {
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let source = SourceConfig::of(file(&folder, "a.jsonl", &rows(50)));
    let run = || Settings::default().run_in(std::slice::from_ref(&source), cache.path()).expect("tokenised");
    let expected = rows_of(&run().0);
    for name in ["tokens.bin", "index.bin", "manifest"] {
        let path = only(cache.path()).join(name);
        let whole = std::fs::read(&path).expect("read");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damage in [flipped, whole[..whole.len() - 3].to_vec(), vec![]] {
            std::fs::write(&path, damage).expect("written");
            let (store, how) = run();
            assert!(matches!(&how, CacheUse::Remade { damage } if damage.contains(name)), "{name}: {how:?}");
            assert_eq!(rows_of(&store), expected);
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(run().1, CacheUse::Remade { .. }));
    }
    assert_eq!(run().1, CacheUse::Found);
}

#[test]
fn nothing_is_left_behind_by_an_error_or_when_it_is_called_off() {
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let broken = file(&folder, "a.jsonl", &format!("{}{{\n", rows(3000)));
    let sources = [SourceConfig::of(broken)];
    let error = Settings::default().run_in(&sources, cache.path()).expect_err("refused");
    assert!(error.to_string().contains("row 3001"), "{error}");
    let sources = [SourceConfig::of(file(&folder, "b.jsonl", &rows(3000)))];
    let columns = Columns::default();
    let settings = DataSettings {
        sources: &sources,
        columns: &columns,
        classes: &[],
        max_tokens: 100,
        bad_rows: Default::default(),
        cache: cache.path(),
        threads: 2,
    };
    let error = prepare(&settings, &common::Characters, &AtomicBool::new(true), &mut ()).expect_err("called off");
    assert!(matches!(error, TrainError::Interrupted));
    assert_eq!(std::fs::read_dir(cache.path()).expect("read").count(), 0);
    let unwritable = file(&folder, "no-folder", "");
    let error = Settings::default().run_in(&sources, &unwritable).expect_err("refused").to_string();
    assert!(error.contains("no-folder"), "{error}");
}

#[test]
fn what_is_trained_on_depends_on_neither_threads_nor_where_the_examples_lie() {
    let folder = tempfile::tempdir().expect("a folder");
    let sources = [SourceConfig::of(file(&folder, "a.jsonl.gz", &rows(2000)))];
    let store: Arc<TokenStore> = Arc::new(Settings::default().run(&sources).expect("tokenised").0);
    let conversations: Vec<u32> = store.entries().iter().map(|entry| entry.conversation).collect();
    let (training, validation) = split(&conversations, 0.1, 256);
    assert_eq!((training.len(), validation.len()), (1800, 200));
    let in_memory: Vec<_> = training.iter().map(|&n| store.get(n as usize).expect("read")).collect();
    let subset = Subset::new(store, training, &sources);
    assert_eq!(subset.order(3).take(1790, 30), in_memory.order(3).take(1790, 30));
    for n in [0, 17, 1799] {
        assert_eq!(subset.get(n).expect("read"), in_memory.get(n).expect("there"));
    }
}

#[test]
fn weighted_sources_get_their_shares_of_what_is_trained_on() {
    let (folder, cache) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let source = |name: &str, count, weight| SourceConfig {
        weight: Some(weight),
        ..SourceConfig::of(file(&folder, name, &rows(count)))
    };
    let sources = [source("many.jsonl", 90, 0.25), source("few.jsonl", 10, 0.75)];
    let (store, _) = Settings::default().run_in(&sources, cache.path()).expect("tokenised");
    let store = Arc::new(store);
    let all = |sources: &[SourceConfig]| Subset::new(store.clone(), (0..100).collect(), sources);
    let subset = all(&sources);
    let few = subset.order(1).take(0, 100).into_iter().filter(|&n| store.entries()[n].source == 1).count();
    assert_eq!(few, 75);
    let mut other = sources.clone();
    other[0].weight = Some(0.5);
    assert_ne!(all(&other).fingerprint(), subset.fingerprint(), "other shares are another run");
    // A share of nothing is a mistake.
    let empty = SourceConfig { weight: Some(1.0), ..SourceConfig::of(file(&folder, "none.jsonl", "")) };
    let error =
        Settings::default().run_in(&[sources[0].clone(), empty], cache.path()).expect_err("refused").to_string();
    assert!(error.contains("none.jsonl has a weight and gives no example"), "{error}");
}

/// A parquet file of two string columns, written by the same crate that reads it.
fn parquet_file(path: &Path, rows: &[(&str, &str)]) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    let schema = "message rows { required binary question (UTF8); required binary answer (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let out = std::fs::File::create(path).expect("created");
    let mut writer = SerializedFileWriter::new(out, schema, Arc::new(WriterProperties::default())).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    let columns: [Vec<ByteArray>; 2] =
        [rows.iter().map(|row| row.0.into()).collect(), rows.iter().map(|row| row.1.into()).collect()];
    for values in columns {
        let mut column = group.next_column().expect("no error").expect("a column");
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("written");
        column.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");
}

#[test]
fn parquet_reads_as_jsonl_does_and_a_broken_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let texts: Vec<(String, String)> = (0..700).map(|n| (format!("q{n}"), format!("a{n}"))).collect();
    let pairs: Vec<(&str, &str)> = texts.iter().map(|(q, a)| (q.as_str(), a.as_str())).collect();
    let path = folder.path().join("train-00000-of-00001.parquet");
    parquet_file(&path, &pairs);
    let (store, _) = common::tokenise(&[SourceConfig::of(folder.path())]).expect("read");
    let (jsonl, _) = common::tokenise(&[SourceConfig::of(file(&folder, "rows.jsonl", &rows(700)))]).expect("read");
    assert_eq!(rows_of(&store), rows_of(&jsonl));
    let whole = std::fs::read(&path).expect("read");
    for broken in [&whole[..whole.len() / 2], b"PAR1 no parquet PAR1", b""] {
        std::fs::write(&path, broken).expect("written");
        let error = common::refusal(&[SourceConfig::of(&path)]);
        assert!(error.contains("train-00000-of-00001.parquet: broken parquet: "), "{error}");
    }
    for at in (0..whole.len()).step_by(41) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x15;
        std::fs::write(&path, flipped).expect("written");
        // Whatever it reads as, it neither hangs nor takes the process down.
        let _ = common::tokenise(&[SourceConfig::of(&path)]);
    }
}
