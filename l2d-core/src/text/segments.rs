//! Texts that share long parts, as the growing contexts of one conversation do, tokenised without doing the parts again.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::Tokenizer;

use super::TextTokenizer;
use crate::error::Result;

/// Finds the tokens that cut a text into parts, each of which is tokenised without regard to the others.
#[derive(Debug)]
pub(super) struct Cuts {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

impl Cuts {
    /// `None` where the tokenizer's added tokens look at the text around them, or a part's place in the text counts: then a
    /// text can only be tokenised as a whole.
    pub(super) fn of(tokenizer: &Tokenizer, byte_level: bool) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        let plain =
            added.values().all(|token| !(token.normalized || token.lstrip || token.rstrip || token.single_word));
        if !byte_level || !plain || added.is_empty() {
            return None;
        }
        let (ids, contents): (Vec<u32>, Vec<&str>) = added
            .iter()
            .filter(|(_, token)| !token.content.is_empty())
            .map(|(&id, token)| (id, token.content.as_str()))
            .unzip();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents).ok()?;
        Some(Self { finder, ids })
    }
}

/// Tokenises texts part by part and remembers the parts.
#[derive(Debug)]
pub struct SegmentEncoder<'a> {
    tokenizer: &'a TextTokenizer,
    known: HashMap<String, Vec<u32>>,
}

impl<'a> SegmentEncoder<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, known: HashMap::new() }
    }

    /// The same ids as [`TextTokenizer::encode`] without `add_special`.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn encode(&mut self, text: &str) -> Result<Vec<u32>> {
        let Some(cuts) = self.tokenizer.cuts() else { return self.tokenizer.encode(text, false) };
        let mut ids = Vec::new();
        let mut start = 0;
        for found in cuts.finder.find_iter(text) {
            self.part(&text[start..found.start()], &mut ids)?;
            ids.push(cuts.ids[found.pattern()]);
            start = found.end();
        }
        self.part(&text[start..], &mut ids)?;
        Ok(ids)
    }

    fn part(&mut self, part: &str, ids: &mut Vec<u32>) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        if let Some(known) = self.known.get(part) {
            ids.extend(known);
            return Ok(());
        }
        let new = self.tokenizer.encode(part, false)?;
        ids.extend(&new);
        self.known.insert(part.to_string(), new);
        Ok(())
    }
}
