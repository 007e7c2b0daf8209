//! When a text is complete: stop tokens, and stop strings that may begin in one token and end in another.

use crate::error::{Error, Result};

/// Stop strings, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopStrings(Vec<String>);

impl StopStrings {
    /// # Errors
    /// [`Error::Parameter`] for an empty string, which would stop every text before it begins.
    pub fn new(strings: Vec<String>) -> Result<Self> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::parameter("stop string", "empty", "at least one character"));
        }
        Ok(Self(strings))
    }

    /// The strings.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// A watch over one text.
    pub fn watch(&self) -> StopWatch<'_> {
        StopWatch { strings: &self.0, held: String::new(), stopped: None }
    }
}

/// Reads a text piece by piece and lets through what can no longer be part of a stop string.
///
/// The text ends before the stop string that is the first to be complete (of several complete at the same character, the
/// longest). So the result does not depend on how the text was cut into pieces.
#[derive(Debug, Clone)]
pub struct StopWatch<'a> {
    strings: &'a [String],
    /// Text read but not let through: the longest end of it that begins some stop string.
    held: String,
    stopped: Option<usize>,
}

impl StopWatch<'_> {
    /// Reads a piece and returns the text that may be shown now. After a stop it returns nothing.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.held.push_str(piece);
        let complete = self.strings.iter().enumerate().filter_map(|(which, string)| {
            let start = self.held.find(string.as_str())?;
            Some((start + string.len(), start, which))
        });
        if let Some((_, start, which)) = complete.min() {
            self.stopped = Some(which);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| self.strings.iter().any(|string| string.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The stop string that was found, as its place in the list.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }

    /// Ends the text and returns what was still held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let strings = StopStrings::new(strings.iter().map(|s| s.to_string()).collect()).unwrap();
        let mut watch = strings.watch();
        let mut shown = String::new();
        for piece in pieces {
            shown += &watch.push(piece);
        }
        shown += &watch.finish();
        (shown, watch.stopped())
    }

    #[test]
    fn a_stop_string_is_found_across_pieces() {
        assert_eq!(run(&["Question:"], &["Answer 4\nQue", "st", "ion: next"]), ("Answer 4\n".into(), Some(0)));
        assert_eq!(run(&["Question:"], &["Quest", "s and ", "Questions"]), ("Quests and Questions".into(), None));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let strings = StopStrings::new(vec!["\n\n".into(), "</s>".into()]).unwrap();
        let mut watch = strings.watch();
        assert_eq!(watch.push("one\n"), "one");
        assert_eq!(watch.push("two<"), "\ntwo");
        assert_eq!(watch.push("/"), "");
        assert_eq!(watch.push("b>"), "</b>");
        assert_eq!(watch.push("x\n\ny"), "x");
        assert_eq!(watch.stopped(), Some(0));
        assert_eq!(watch.push("z"), "");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new(vec!["a".into(), String::new()]).unwrap_err().to_string().contains("stop string"));
    }

    proptest! {
        /// Against a search of the whole text, for every way to cut it.
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,24}",
            strings in prop::collection::vec("[abé]{1,5}", 0..4),
            cuts in prop::collection::vec(0usize..6, 0..24),
        ) {
            let naive = (0..=text.len()).filter(|&end| text.is_char_boundary(end)).find_map(|end| {
                strings
                    .iter()
                    .enumerate()
                    .filter(|(_, s)| text[..end].ends_with(s.as_str()))
                    .max_by_key(|(which, s)| (s.len(), std::cmp::Reverse(*which)))
                    .map(|(which, s)| (text[..end - s.len()].to_string(), Some(which)))
            });
            let expected = naive.unwrap_or((text.clone(), None));

            let mut letters = text.chars();
            let mut pieces: Vec<String> = cuts.iter().map(|&n| letters.by_ref().take(n).collect()).collect();
            pieces.push(letters.collect());
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&strings, &pieces), expected);
        }
    }
}
