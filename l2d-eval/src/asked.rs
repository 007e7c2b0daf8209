//! What runs were to ask. A journal holds only what was answered; this says of how much.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::runner::{RowCounts, RunSettings};
use crate::select::parse_rows;

/// One run, as it was begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The task's version.
    pub version: u32,
    /// Its settings, [`RunSettings::generation`].
    pub settings: Value,
    /// Its seed.
    pub seed: u64,
    /// Completions of each question.
    pub samples: usize,
    /// The questions by row, as [`parse_rows`] reads them.
    pub rows: String,
    /// Which rows of the split were chosen, before they were shared out and any was dropped.
    pub chosen: String,
    /// What became of the rows.
    pub counts: RowCounts,
    /// The hash of the prompts.
    pub prompt_hash: String,
    /// Hashes of the files the rows and shots came from, and of the task's own where it is one of a file.
    pub files: Vec<String>,
}

impl Asked {
    /// Appends it to a file of such lines and syncs it, unless it is what the run was last asked.
    ///
    /// # Errors
    /// [`Error::Io`]; what [`read`] says.
    pub fn note(&self, path: &Path) -> Result<()> {
        let of_the_run = |asked: &&Asked| asked.seed == self.seed && asked.settings == self.settings;
        if read(path)?.iter().rfind(of_the_run) == Some(self) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let at = |source| Error::io(path, source);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(at)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(at)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            // The disk was full, or the power went out.
            file.set_len(whole as u64).map_err(at)?;
        }
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(at)
    }

    /// Whether a run has these settings and this seed.
    pub fn is_of(&self, settings: &RunSettings) -> bool {
        self.seed == settings.seed && self.settings == settings.generation
    }

    /// Its answers, by row and number.
    pub fn answers(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let rows = parse_rows(&self.rows).unwrap_or_default();
        rows.into_iter().flat_map(|row| (0..self.samples).map(move |sample| (row, sample)))
    }
}

/// The lines of a file, none where it is not there. A last line that was cut off while it was written is left out.
///
/// # Errors
/// [`Error::Io`], or [`Error::Journal`] with the line's number where a whole line is broken.
pub fn read(path: &Path) -> Result<Vec<Asked>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::io(path, source)),
    };
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| Error::Journal {
            path: path.to_path_buf(),
            line: index + 1,
            reason: error.to_string(),
        })
    };
    whole.lines().enumerate().map(parse).collect()
}

/// What became of the rows of one run, all its parts together: of several choices of rows the one with the most questions.
/// With it the hash of the prompts, where there is one choice and it was not shared out.
pub fn counts(asked: &[&Asked]) -> Option<(RowCounts, Option<String>)> {
    let mut choices: BTreeMap<&str, Vec<&Asked>> = BTreeMap::new();
    for asked in asked {
        choices.entry(&asked.chosen).or_default().push(asked);
    }
    let together = |parts: Vec<&Asked>| {
        let count = parts.last()?.counts.shard.map(|shard| shard.count);
        // Of a part that was asked again the last counts.
        let latest: BTreeMap<_, _> = parts
            .into_iter()
            .filter(|part| part.counts.shard.map(|shard| shard.count) == count)
            .map(|part| (part.counts.shard.map(|shard| shard.index), part))
            .collect();
        let mut latest = latest.into_values();
        let first = latest.next()?;
        let (mut all, mut hash) = (first.counts, Some(first.prompt_hash.clone()));
        for part in latest {
            all.rows += part.counts.rows;
            all.shots += part.counts.shots;
            all.too_long += part.counts.too_long;
            all.without_answer += part.counts.without_answer;
            all.questions += part.counts.questions;
            (all.shard, hash) = (None, None);
        }
        Some((all, hash))
    };
    let one = choices.len() == 1;
    let (counts, hash) = choices.into_values().filter_map(together).max_by_key(|(counts, _)| counts.questions)?;
    Some((counts, hash.filter(|_| one)))
}

/// Rows by number as ranges: `0,5,10-20`.
pub(crate) fn ranges(rows: impl IntoIterator<Item = usize>) -> String {
    let rows: BTreeSet<usize> = rows.into_iter().collect();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for row in rows {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == row => *last = row,
            _ => ranges.push((row, row)),
        }
    }
    let written = |(first, last): (usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.into_iter().map(written).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::select::Shard;

    fn asked(chosen: &str, shard: Option<(usize, usize)>, questions: usize) -> Asked {
        let shard = shard.map(|(index, count)| Shard { index, count });
        Asked {
            version: 1,
            settings: json!({"steps": 1}),
            seed: 0,
            samples: 1,
            rows: ranges(0..questions),
            chosen: chosen.to_owned(),
            counts: RowCounts { rows: questions + 1, too_long: 1, questions, shard, ..RowCounts::default() },
            prompt_hash: "ab".to_owned(),
            files: Vec::new(),
        }
    }

    #[test]
    fn parts_are_counted_once_and_the_larger_choice_counts() {
        let all = [
            asked("all", Some((1, 2)), 5),
            asked("first 2", None, 2),
            asked("all", Some((2, 2)), 4),
            asked("all", Some((1, 2)), 5),
        ];
        let (counts, hash) = counts(&all.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!((counts.rows, counts.questions, counts.too_long, counts.shard, hash), (11, 9, 2, None, None));
        let (part, hash) = super::counts(&[&all[0]]).unwrap();
        assert_eq!((part.questions, part.shard, hash), (5, all[0].counts.shard, Some("ab".to_owned())));
        assert!(super::counts(&[]).is_none());
    }

    #[test]
    fn lines_are_kept_once_and_a_cut_off_one_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.asked.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let (one, other) = (asked("all", None, 3), asked("first 2", None, 2));
        for asked in [&one, &other, &one] {
            asked.note(&path).unwrap();
        }
        assert_eq!(read(&path).unwrap(), [one.clone(), other.clone(), one.clone()], "the last is the latest");
        one.note(&path).unwrap();
        std::fs::write(&path, [&one, &other].map(|asked| serde_json::to_string(asked).unwrap() + "\n").concat())
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert_eq!(read(&path).unwrap(), std::slice::from_ref(&one));
        other.note(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::write(&path, "{}\n").unwrap();
        assert!(matches!(read(&path), Err(Error::Journal { line: 1, .. })));
        assert_eq!(one.answers().collect::<Vec<_>>(), [(0, 0), (1, 0), (2, 0)]);
    }

    #[test]
    fn rows_are_written_as_they_are_read() {
        for rows in [vec![], vec![3], vec![0, 1, 2, 5, 7, 8]] {
            let text = ranges(rows.clone());
            assert_eq!(parse_rows(&text).unwrap_or_default().into_iter().collect::<Vec<_>>(), rows, "{text}");
        }
    }
}
