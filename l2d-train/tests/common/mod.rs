//! What the tests of reading data share.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use l2d_train::TrainError;
use l2d_train::data::{BadRows, CacheUse, Columns, DataSettings, SourceConfig, Template, TokenStore, Turn, prepare};

/// One token per character, 0 before a prompt and 1 after a response; `~` is no response at all.
pub(crate) struct Characters;

impl Template for Characters {
    fn render(&self, context: &[Turn], response: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        if response.contains('!') {
            return Err("no shouting".into());
        }
        let prompt = context.iter().flat_map(|turn| turn.content.chars()).map(u32::from);
        let response = if response == "~" { vec![] } else { response.chars().map(u32::from).chain([1]).collect() };
        Ok((std::iter::once(0).chain(prompt).collect(), response))
    }

    fn fingerprint(&self) -> [u8; 32] {
        [7; 32]
    }
}

/// A file of that name; gzipped where the name says so.
pub(crate) fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
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

/// Settings of [`prepare`] but for sources and cache.
pub(crate) struct Settings {
    pub(crate) classes: Vec<String>,
    pub(crate) max_tokens: usize,
    pub(crate) bad_rows: BadRows,
}

impl Default for Settings {
    fn default() -> Self {
        Self { classes: vec![], max_tokens: 100, bad_rows: BadRows::Error }
    }
}

impl Settings {
    /// Tokenises in a cache of its own.
    pub(crate) fn run(&self, sources: &[SourceConfig]) -> Result<(TokenStore, CacheUse), TrainError> {
        let cache = tempfile::tempdir().expect("a folder");
        self.run_in(sources, cache.path())
    }

    pub(crate) fn run_in(
        &self,
        sources: &[SourceConfig],
        cache: &std::path::Path,
    ) -> Result<(TokenStore, CacheUse), TrainError> {
        let columns = Columns::default();
        let settings = DataSettings {
            sources,
            columns: &columns,
            classes: &self.classes,
            max_tokens: self.max_tokens,
            bad_rows: self.bad_rows,
            cache,
            threads: 2,
        };
        prepare(&settings, &Characters, &AtomicBool::new(false), &mut ())
    }
}

pub(crate) fn tokenise(sources: &[SourceConfig]) -> Result<(TokenStore, CacheUse), TrainError> {
    Settings::default().run(sources)
}

pub(crate) fn refusal(sources: &[SourceConfig]) -> String {
    tokenise(sources).expect_err("refused").to_string()
}

/// Prompts and replies as text.
pub(crate) fn rows_of(store: &TokenStore) -> Vec<(String, String)> {
    let chars = |tokens: &[u32]| tokens.iter().filter_map(|&t| char::from_u32(t)).collect::<String>();
    (0..store.entries().len())
        .map(|n| store.get(n).expect("read"))
        .map(|example| (chars(&example.tokens[..example.prompt]), chars(&example.tokens[example.prompt..])))
        .collect()
}
