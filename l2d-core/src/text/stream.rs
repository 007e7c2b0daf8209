//! Text as it is generated: every piece is whole UTF-8, and the pieces together are what decoding all ids at once gives.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::TextTokenizer;

/// Decodes ids that arrive one at a time, in time linear in their number.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: TextTokenizer,
    skip_special: bool,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Bytes that are not yet a whole character: at most three.
    Bytes(Vec<u8>),
    /// Where text depends on neighbouring tokens: the last ids, the first `emitted` of which are out already.
    Window { ids: Vec<u32>, emitted: usize },
}

/// A character has at most four bytes, so a text that is still broken after this many byte tokens stays broken.
const MAX_PENDING: usize = 8;

impl StreamDecoder {
    pub(super) fn new(tokenizer: TextTokenizer, skip_special: bool) -> Self {
        let state = if tokenizer.is_byte_level() {
            State::Bytes(Vec::new())
        } else {
            State::Window { ids: Vec::new(), emitted: 0 }
        };
        Self { tokenizer, skip_special, state }
    }

    /// Takes the next id; returns the text that is complete with it, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let Self { tokenizer, skip_special, state } = self;
        if *skip_special && tokenizer.is_special(id) {
            return None;
        }
        let text = match state {
            State::Bytes(pending) => {
                append_bytes(pending, &tokenizer.id_to_token(id)?);
                take_complete(pending)
            }
            State::Window { ids, emitted } => {
                ids.push(id);
                let force = ids.len() - *emitted >= MAX_PENDING;
                advance_window(tokenizer, ids, emitted, force)
            }
        };
        Some(text).filter(|text| !text.is_empty())
    }

    /// Ends the stream: an unfinished character becomes U+FFFD. The decoder is then as new.
    pub fn finish(&mut self) -> Option<String> {
        let text = match &mut self.state {
            State::Bytes(pending) => String::from_utf8_lossy(&std::mem::take(pending)).into_owned(),
            State::Window { ids, emitted } => {
                let text = advance_window(&self.tokenizer, ids, emitted, true);
                (*ids, *emitted) = (Vec::new(), 0);
                text
            }
        };
        Some(text).filter(|text| !text.is_empty())
    }
}

/// Text of the ids after the first `emitted`, given those before them; then forgets what no longer matters.
fn advance_window(tokenizer: &TextTokenizer, ids: &mut Vec<u32>, emitted: &mut usize, force: bool) -> String {
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
    let (known, all) = (decode(&ids[..*emitted]), decode(ids));
    let fresh = all.get(known.len()..).unwrap_or_default();
    if fresh.is_empty() || (fresh.ends_with(char::REPLACEMENT_CHARACTER) && !force) {
        return String::new();
    }
    let fresh = fresh.to_string();
    ids.drain(..*emitted);
    *emitted = ids.len();
    fresh
}

/// GPT-2's byte alphabet: printable bytes stand for themselves, the rest for the characters from U+0100 on.
fn byte_of(alphabet_char: char) -> Option<u8> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut shifted = ('\u{100}'..).take(256);
        (0..=u8::MAX)
            .filter_map(|byte| {
                let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
                Some((if printable { char::from(byte) } else { shifted.next()? }, byte))
            })
            .collect()
    });
    table.get(&alphabet_char).copied()
}

/// A token with a character outside the alphabet (an added token) stands for itself, as in the `tokenizers` crate.
fn append_bytes(pending: &mut Vec<u8>, token: &str) {
    let start = pending.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => pending.push(byte),
            None => {
                pending.truncate(start);
                pending.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// Removes and returns all that later bytes cannot change, broken sequences as U+FFFD.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let broken = chunk.invalid();
        let at_end = done + broken.len() == pending.len();
        // The last chunk may be the beginning of a character whose other bytes are still to come.
        if at_end && std::str::from_utf8(broken).is_err_and(|e| e.error_len().is_none()) {
            break;
        }
        if !broken.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            done += broken.len();
        }
    }
    pending.drain(..done);
    text
}
