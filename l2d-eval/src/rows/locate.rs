//! Where below a data folder a data set lies, in the layouts Hugging Face downloads come in.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::list;
use crate::error::{Error, Result};

/// A data set's name on the Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSet {
    /// The owner, e.g. `openai`.
    pub owner: Cow<'static, str>,
    /// The name, e.g. `gsm8k`.
    pub name: Cow<'static, str>,
    /// The configuration, e.g. `main`.
    pub config: Cow<'static, str>,
}

impl DataSet {
    /// A data set known when this was compiled.
    pub const fn new(owner: &'static str, name: &'static str, config: &'static str) -> Self {
        Self { owner: Cow::Borrowed(owner), name: Cow::Borrowed(name), config: Cow::Borrowed(config) }
    }
}

impl std::fmt::Display for DataSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.owner, self.name, self.config)
    }
}

/// The files of one split, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files(Vec<PathBuf>);

impl Files {
    /// The shards in order; never empty.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }
}

/// Finds the files of a split: `dir` may be the folder of all data sets (`owner__name/config`, `owner/name/config`,
/// `name/config`), the data set's own folder, or the configuration's. Parquet shards come before jsonl.
///
/// # Errors
/// [`Error::DataSetNotFound`] with every place tried; [`Error::Shards`] where a shard is missing.
pub fn locate(dir: &Path, data_set: &DataSet, split: &str) -> Result<Files> {
    let DataSet { owner, name, config } = data_set;
    let folders = [
        dir.join(format!("{owner}__{name}")).join(&**config),
        dir.join(&**owner).join(&**name).join(&**config),
        dir.join(&**name).join(&**config),
        dir.join(&**config),
        dir.to_path_buf(),
    ];
    for folder in &folders {
        // A hub snapshot may keep its files one folder deeper.
        for folder in [folder.clone(), folder.join("data")] {
            if folder.is_dir()
                && let Some(files) = split_in(&folder, split)?
            {
                return Ok(Files(files));
            }
        }
    }
    let names = [format!("{split}-00000-of-*.parquet"), format!("{split}.jsonl.gz"), format!("{split}.jsonl")];
    Err(Error::DataSetNotFound {
        name: data_set.to_string(),
        split: split.to_owned(),
        dir: dir.to_path_buf(),
        looked_for: format!("{} in {}", list(names.iter()), list(folders.iter().map(|folder| folder.display()))),
    })
}

/// Finds the files of a split in one folder; `name` is what errors call the data set.
///
/// # Errors
/// As [`locate`].
pub fn locate_in(folder: &Path, name: &str, split: &str) -> Result<Files> {
    let found = if folder.is_dir() { split_in(folder, split)? } else { None };
    found.map(Files).ok_or_else(|| Error::DataSetNotFound {
        name: name.to_owned(),
        split: split.to_owned(),
        dir: folder.to_path_buf(),
        looked_for: format!("`{split}.parquet`, `{split}.jsonl.gz` and `{split}.jsonl`"),
    })
}

/// The split's files in one folder, `None` where it has none.
fn split_in(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>> {
    for extension in ["parquet", "jsonl.gz", "jsonl"] {
        let whole = folder.join(format!("{split}.{extension}"));
        if whole.is_file() {
            return Ok(Some(vec![whole]));
        }
        let shards = shards_in(folder, split, extension)?;
        if !shards.is_empty() {
            return check_shards(folder, split, shards).map(Some);
        }
    }
    Ok(None)
}

struct Shard {
    index: usize,
    count: usize,
    path: PathBuf,
}

fn shards_in(folder: &Path, split: &str, extension: &str) -> Result<Vec<Shard>> {
    let at = |source| Error::io(folder, source);
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(at)? {
        let path = entry.map_err(at)?.path();
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some((index, count)) = shard_number(file, split, extension) {
            shards.push(Shard { index, count, path });
        }
    }
    shards.sort_by(|a, b| (a.count, a.index, &a.path).cmp(&(b.count, b.index, &b.path)));
    Ok(shards)
}

/// `(0, 1)` from `train-00000-of-00001.parquet`, or from `train-00000-of-00001-a1b2c3.parquet` as older downloads have it.
fn shard_number(file: &str, split: &str, extension: &str) -> Option<(usize, usize)> {
    let middle = file.strip_prefix(split)?.strip_prefix('-')?.strip_suffix(extension)?.strip_suffix('.')?;
    let (index, rest) = middle.split_once("-of-")?;
    let count = rest.split('-').next()?;
    Some((index.parse().ok()?, count.parse().ok()?))
}

fn check_shards(folder: &Path, split: &str, shards: Vec<Shard>) -> Result<Vec<PathBuf>> {
    let broken = |reason| Error::Shards { dir: folder.to_path_buf(), split: split.to_owned(), reason };
    let count = shards[0].count;
    if let Some(other) = shards.iter().find(|shard| shard.count != count) {
        return Err(broken(format!("shards of {count} and of {} lie side by side", other.count)));
    }
    for (expected, shard) in shards.iter().enumerate() {
        if shard.index > expected {
            return Err(broken(format!("shard {expected} of {count} is missing")));
        }
        if shard.index < expected {
            return Err(broken(format!("shard {} of {count} is there twice", shard.index)));
        }
    }
    if shards.len() != count {
        return Err(broken(format!("shard {} of {count} is missing", shards.len())));
    }
    Ok(shards.into_iter().map(|shard| shard.path).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GSM8K: DataSet = DataSet::new("openai", "gsm8k", "main");

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        dir
    }

    fn found(files: &[&str], below: &str) -> Result<Vec<String>> {
        let dir = tree(files);
        let files = locate(&dir.path().join(below), &GSM8K, "test")?;
        let name = |path: &PathBuf| path.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned();
        Ok(files.paths().iter().map(name).collect())
    }

    #[test]
    fn every_layout_is_found() {
        for file in [
            "openai__gsm8k/main/test-00000-of-00001.parquet",
            "openai/gsm8k/main/test.jsonl.gz",
            "gsm8k/main/test.jsonl",
            "main/test-00000-of-00001-0123abcd.parquet",
            "test.parquet",
            "data/test.jsonl",
        ] {
            assert_eq!(found(&[file], "").unwrap(), [file], "{file}");
        }
        let file = "openai__gsm8k/main/test.jsonl";
        assert_eq!(found(&[file], "openai__gsm8k").unwrap(), [file]);
        assert_eq!(found(&[file], "openai__gsm8k/main").unwrap(), [file]);
    }

    #[test]
    fn shards_come_in_order_and_before_jsonl() {
        let shard = |index| format!("gsm8k/main/test-0000{index}-of-00003.parquet");
        let files = [shard(2), "gsm8k/main/test.jsonl".into(), shard(0), shard(1), "gsm8k/main/testing.jsonl".into()];
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        assert_eq!(found(&files, "").unwrap(), [shard(0), shard(1), shard(2)]);
    }

    #[test]
    fn missing_and_mixed_shards_are_named() {
        let reason = |files: &[&str]| found(files, "").unwrap_err().to_string();
        assert!(reason(&["test-00000-of-00002.parquet"]).ends_with("shard 1 of 2 is missing"));
        assert!(reason(&["test-00001-of-00002.parquet"]).ends_with("shard 0 of 2 is missing"));
        assert!(reason(&["test-00000-of-00001.parquet", "test-00000-of-00002.parquet"]).ends_with("lie side by side"));
        assert!(reason(&["test-00000-of-00001.parquet", "test-00000-of-00001-ab.parquet"]).ends_with("is there twice"));
    }

    #[test]
    fn a_missing_data_set_lists_where_it_was_looked_for() {
        let error = found(&["openai__gsm8k/main/train.jsonl"], "").unwrap_err().to_string();
        for part in ["openai/gsm8k/main", "split `test`", "openai__gsm8k/main`", "test-00000-of-*.parquet"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(matches!(found(&[], "nowhere"), Err(Error::DataSetNotFound { .. })));
    }
}
