//! Which rows of a split are asked.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::asked::ranges;
use crate::error::{Error, Result};

/// One of several parts of a split: the rows whose number leaves `index - 1` when divided by `count`, so that parts are alike
/// where a split is sorted by subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, from 1.
    pub index: usize,
    /// How many parts.
    pub count: usize,
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// `2/8`: the second of eight.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(Error::Setting { key: "shard", reason: format!("`{text}` is no I/N with I from 1 to N") }),
        }
    }
}

/// Rows by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The first so many rows.
    pub limit: Option<usize>,
    /// These rows, from 0.
    pub rows: Option<BTreeSet<usize>>,
    /// Of those only a part.
    pub shard: Option<Shard>,
}

impl Selection {
    /// The first `limit` rows.
    pub fn first(limit: usize) -> Self {
        Self { limit: Some(limit), ..Self::default() }
    }

    /// The choice in words, without the part: `all`, `first 100`, `rows 0,5-7`.
    pub(crate) fn described(&self) -> String {
        let limit = self.limit.map(|limit| format!("first {limit}"));
        let rows = self.rows.as_ref().map(|rows| format!("rows {}", ranges(rows.iter().copied())));
        let parts: Vec<String> = limit.into_iter().chain(rows).collect();
        if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
    }

    /// Whether rows are left out.
    pub fn is_partial(&self) -> bool {
        *self != Self::default()
    }

    /// The chosen rows of a split of `count`, in order.
    ///
    /// # Errors
    /// [`Error::Setting`] where a row is named that is not there.
    pub fn rows(&self, count: usize) -> Result<Vec<usize>> {
        if let Some(last) = self.rows.as_ref().and_then(BTreeSet::last).filter(|last| **last >= count) {
            let reason = format!("row {last} is asked for, and the split has {count} (counted from 0)");
            return Err(Error::Setting { key: "samples", reason });
        }
        let limit = self.limit.unwrap_or(count).min(count);
        let chosen = (0..limit)
            .filter(|row| self.rows.as_ref().is_none_or(|rows| rows.contains(row)))
            .filter(|row| self.shard.is_none_or(|shard| row % shard.count == shard.index - 1));
        Ok(chosen.collect())
    }
}

/// Row numbers as a list: `0,5,10-20`.
///
/// # Errors
/// [`Error::Setting`] that names the part that is no number or range.
pub fn parse_rows(text: &str) -> Result<BTreeSet<usize>> {
    let mut rows = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let bad = || Error::Setting { key: "samples", reason: format!("`{part}` is no row number or range") };
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| bad());
        match part.split_once('-') {
            None => {
                rows.insert(number(part)?);
            }
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                // No split has a tenth of that; a range that has more must not fill the memory.
                if first > last || last - first > 1_000_000 || rows.len() > 1_000_000 {
                    return Err(bad());
                }
                rows.extend(first..=last);
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_disjoint_and_whole() {
        let part = |index| {
            let shard = Some(Shard { index, count: 3 });
            Selection { limit: Some(8), shard, ..Selection::default() }.rows(10).unwrap()
        };
        assert_eq!([part(1), part(2), part(3)], [vec![0, 3, 6], vec![1, 4, 7], vec![2, 5]]);
        for text in ["0/3", "4/3", "1", "a/b", "1/0", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("2/3".parse::<Shard>().unwrap(), Shard { index: 2, count: 3 });
    }

    #[test]
    fn rows_are_named_by_number_and_range() {
        let rows = Some(parse_rows("7, 0,2-4").unwrap());
        let selection = Selection { rows, ..Selection::default() };
        assert_eq!(selection.rows(8).unwrap(), [0, 2, 3, 4, 7]);
        assert_eq!(
            selection.rows(7).unwrap_err().to_string(),
            "`samples`: row 7 is asked for, and the split has 7 (counted from 0)"
        );
        for text in ["", "a", "3-1", "1-", "-1", "0-99999999999"] {
            assert!(parse_rows(text).is_err(), "{text}");
        }
    }
}
