//! `l2d generate --trace`: what the model took each token for on the way to it, as JSONL and as a page to look at.

use std::path::{Path, PathBuf};

use l2d_core::checkpoint::write_atomically;
use l2d_core::text::TextTokenizer;
use l2d_infer::decode::Guess;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::CliError;

/// The page but for its data.
const PAGE: &str = include_str!("trace.html");

/// Where the data goes in [`PAGE`].
const PLACE: &str = "/*DATA*/null";

/// One emitted token.
#[derive(Debug, Clone, Serialize)]
struct Token {
    index: usize,
    id: u32,
    text: String,
    /// Evaluations, as a budget counts them.
    evaluations: usize,
    /// Forward passes they took.
    rounds: usize,
    /// From this time on every guess was the token; `None` where the last one was not, or there was none.
    settled: Option<f64>,
    guesses: Vec<NamedGuess>,
}

/// A guess with its text.
#[derive(Debug, Clone, Serialize)]
struct NamedGuess {
    t: f64,
    id: u32,
    text: String,
}

/// Collects tokens until they are written.
pub(crate) struct Trace<'a> {
    tokenizer: &'a TextTokenizer,
    tokens: Vec<Token>,
}

impl<'a> Trace<'a> {
    pub(crate) fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new() }
    }

    /// Notes a token. Its text is that of the token alone: part of a character becomes U+FFFD.
    pub(crate) fn push(&mut self, id: u32, evaluations: usize, rounds: usize, guesses: &[Guess]) {
        let name = |id: u32| {
            let text = self.tokenizer.decode(&[id], false).unwrap_or_default();
            if text.is_empty() { self.tokenizer.id_to_token(id).unwrap_or_default() } else { text }
        };
        let guesses: Vec<NamedGuess> =
            guesses.iter().map(|guess| NamedGuess { t: guess.t, id: guess.token, text: name(guess.token) }).collect();
        let settled = guesses.iter().rev().take_while(|guess| guess.id == id).last().map(|guess| guess.t);
        let index = self.tokens.len();
        self.tokens.push(Token { index, id, text: name(id), evaluations, rounds, settled, guesses });
    }

    /// Writes `path` with the endings `.jsonl` (a line for the settings, then one for each token) and `.html` added; if it has
    /// one of the two, that one is the name of both.
    ///
    /// # Errors
    /// [`CliError`] where a file cannot be written.
    pub(crate) fn write(&self, path: &Path, settings: &Value) -> Result<[PathBuf; 2], CliError> {
        let stem = match path.extension().and_then(|ending| ending.to_str()) {
            Some("jsonl" | "html") => path.with_extension(""),
            _ => path.to_path_buf(),
        };
        let ended = |ending: &str| {
            let mut name = stem.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        };
        let (lines, page) = (ended(".jsonl"), ended(".html"));
        write_atomically(&lines, |out| {
            writeln!(out, "{}", tagged("settings", settings.clone()))?;
            for token in &self.tokens {
                writeln!(out, "{}", tagged("token", serde_json::to_value(token)?))?;
            }
            Ok(())
        })?;
        let data = json!({ "settings": settings, "tokens": self.tokens }).to_string();
        // Inside a script nothing may look like its end or a comment; in JSON `<` may be written otherwise.
        let data = data.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
        write_atomically(&page, |out| out.write_all(PAGE.replace(PLACE, &data).as_bytes()))?;
        Ok([lines, page])
    }
}

/// An object that says what it is.
fn tagged(kind: &str, value: Value) -> Value {
    let mut all = serde_json::Map::new();
    all.insert("type".into(), kind.into());
    if let Value::Object(fields) = value {
        all.extend(fields);
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_data() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = crate::tiny::base::<l2d_testkit::TestBackend>(&Default::default()).unwrap().1.tokenizer;
        let mut trace = Trace::new(&tokenizer);
        let guess = |t, token| Guess { t, token };
        trace.push(7, 14, 3, &[guess(0.0, 5), guess(0.5, 7), guess(0.9, 7)]);
        trace.push(8, 14, 3, &[guess(0.0, 8), guess(0.9, 9)]);
        let settings = json!({ "prompt": "</script><!--<script>alert(1)</script>\u{2028}", "steps": 15 });
        let [lines, page] = trace.write(&folder.path().join("T0.99"), &settings).unwrap();
        assert_eq!([&lines, &page], [&folder.path().join("T0.99.jsonl"), &folder.path().join("T0.99.html")]);
        assert_eq!(trace.write(&page, &settings).unwrap(), [lines.clone(), page.clone()]);
        let page = std::fs::read_to_string(page).unwrap();
        assert_eq!(page.matches("</script>").count(), PAGE.matches("</script>").count());
        assert!(!page.contains("<!--<script>") && !page.contains(PLACE));
        let lines = std::fs::read_to_string(lines).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0]["type"], &lines[0]["prompt"]), (&json!("settings"), &settings["prompt"]));
        assert_eq!((&lines[1]["settled"], &lines[2]["settled"]), (&json!(0.5), &Value::Null));
        assert_eq!(lines[1]["guesses"][2], json!({ "t": 0.9, "id": 7, "text": lines[1]["text"] }));
    }
}
