//! Which files a source stands for.

use std::path::{Path, PathBuf};

use super::rows::is_data;
use super::sources::SourceConfig;
use crate::error::{Result, TrainError};

/// The split that is trained on unless another is named.
const DEFAULT_SPLIT: &str = "train";
/// Other splits: a folder that holds these alone is not taken for training data.
const OTHER_SPLITS: [&str; 5] = ["test", "validation", "valid", "dev", "eval"];
/// In order of preference, where one split lies in several formats.
const EXTENSIONS: [&str; 3] = ["parquet", "jsonl.gz", "jsonl"];

/// The files of a source, in order.
///
/// A file stands for itself. A folder is read as the Hugging Face hub lays one out: `<split>.<ext>` or
/// `<split>-00000-of-00002.<ext>`, in the folder itself, in its `data`, in the folder of the chosen subset, or in that of the
/// only subset there is. Where no file is named after a split, all data files directly in the folder are meant.
///
/// # Errors
/// Nothing there, a shard is missing, or it is not clear which subset or split is meant.
pub fn files_of(source: &SourceConfig) -> Result<Vec<PathBuf>> {
    let Some(path) = &source.path else {
        let reason = "a source names no path; give it one, or name the folder with --data";
        return Err(TrainError::Config { key: "sources.path", reason: reason.into() });
    };
    let root = path.as_path();
    if !root.is_dir() {
        if let Some(subset) = &source.subset {
            let reason = format!("subset `{subset}` asked of what is no folder");
            return Err(TrainError::File { path: root.to_path_buf(), reason });
        }
        return Ok(vec![root.to_path_buf()]);
    }
    let split = source.split.as_deref().unwrap_or(DEFAULT_SPLIT);
    match &source.subset {
        Some(subset) => of_subset(root, subset, split),
        None => of_folder(root, split, source.split.is_some()),
    }
}

fn of_subset(root: &Path, subset: &str, split: &str) -> Result<Vec<PathBuf>> {
    let places = [root.join(subset), root.join("data").join(subset)];
    let Some(folder) = places.iter().find(|place| place.is_dir()) else {
        let there = subsets(root, split)?;
        let there = if there.is_empty() { "none".to_string() } else { there.join(", ") };
        let reason = format!("no subset `{subset}` with a split `{split}`; subsets here: {there}");
        return Err(TrainError::File { path: root.to_path_buf(), reason });
    };
    split_of(folder, split)?.ok_or_else(|| no_split(folder, split))
}

fn of_folder(root: &Path, split: &str, named: bool) -> Result<Vec<PathBuf>> {
    if let Some(files) = split_of(root, split)? {
        return Ok(files);
    }
    let mut files: Vec<PathBuf> = entries(root)?.into_iter().filter(|file| file.is_file() && is_data(file)).collect();
    if !files.is_empty() {
        if named || files.iter().any(|file| OTHER_SPLITS.iter().any(|other| is_of_split(file, other))) {
            return Err(no_split(root, split));
        }
        files.sort();
        return Ok(files);
    }
    let subsets = subsets(root, split)?;
    match subsets.as_slice() {
        [] => {
            let reason = format!(
                "no .jsonl, .jsonl.gz or .parquet file in this folder, nor a split `{split}` in a folder in it"
            );
            Err(TrainError::NoData(format!("{}: {reason}", root.display())))
        }
        [only] => of_subset(root, only, split),
        several => {
            let reason =
                format!("which subset? There are: {}. Name one with the source's `subset`", several.join(", "));
            Err(TrainError::File { path: root.to_path_buf(), reason })
        }
    }
}

fn no_split(folder: &Path, split: &str) -> TrainError {
    let there: Vec<String> = entries(folder)
        .unwrap_or_default()
        .iter()
        .filter(|file| is_data(file))
        .filter_map(|file| file.file_name().map(|name| name.to_string_lossy().into_owned()))
        .collect();
    let reason = format!(
        "no split `{split}` (`{split}.jsonl`, `{split}-00000-of-00001.parquet`); files here: {}. Choose with the source's \
         `split`, or name the file itself",
        there.join(", ")
    );
    TrainError::File { path: folder.to_path_buf(), reason }
}

/// Names of the folders in one that hold the split.
fn subsets(root: &Path, split: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for base in [root.to_path_buf(), root.join("data")] {
        if !base.is_dir() {
            continue;
        }
        for folder in entries(&base)?.into_iter().filter(|entry| entry.is_dir()) {
            if split_of(&folder, split)?.is_some()
                && let Some(name) = folder.file_name()
            {
                found.push(name.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let at = |e| TrainError::io(folder, e);
    let mut entries = std::fs::read_dir(folder)
        .map_err(at)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(at))
        .collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

/// The split's files in a folder or in its `data`, `None` where it has none.
fn split_of(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>> {
    for folder in [folder.to_path_buf(), folder.join("data")] {
        if !folder.is_dir() {
            continue;
        }
        for extension in EXTENSIONS {
            let whole = folder.join(format!("{split}.{extension}"));
            if whole.is_file() {
                return Ok(Some(vec![whole]));
            }
            let mut shards: Vec<Shard> =
                entries(&folder)?.into_iter().filter_map(|path| Shard::of(path, split, extension)).collect();
            if !shards.is_empty() {
                shards.sort_by_key(|shard| (shard.count, shard.index));
                return all_shards(&folder, split, shards).map(Some);
            }
        }
    }
    Ok(None)
}

fn is_of_split(file: &Path, split: &str) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    EXTENSIONS.iter().any(|extension| {
        name == format!("{split}.{extension}") || Shard::of(file.to_path_buf(), split, extension).is_some()
    })
}

/// `train-00000-of-00001.parquet`, or `train-00000-of-00001-a1b2c3.parquet` as older downloads have it.
struct Shard {
    index: usize,
    count: usize,
    path: PathBuf,
}

impl Shard {
    fn of(path: PathBuf, split: &str, extension: &str) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let middle = name.strip_prefix(split)?.strip_prefix('-')?.strip_suffix(extension)?.strip_suffix('.')?;
        let (index, rest) = middle.split_once("-of-")?;
        let (index, count) = (index.parse().ok()?, rest.split('-').next()?.parse().ok()?);
        Some(Self { index, count, path })
    }
}

fn all_shards(folder: &Path, split: &str, shards: Vec<Shard>) -> Result<Vec<PathBuf>> {
    let broken =
        |reason: String| TrainError::File { path: folder.to_path_buf(), reason: format!("split `{split}`: {reason}") };
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
