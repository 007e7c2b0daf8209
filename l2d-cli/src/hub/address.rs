//! Addresses on the hub, written as Hugging Face's own tools write them.

use std::fmt;
use std::str::FromStr;

/// How every address begins.
pub(crate) const SCHEME: &str = "hf://";

/// `hf://[datasets/]ORG/NAME[@REVISION][/PATH]`; slashes of a revision are spelt `%2F`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) is_data_set: bool,
    /// `org/name`.
    pub(crate) repository: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
    /// A file or folder in it; empty for all.
    pub(crate) path: String,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            |reason: &str| format!("{text}: {reason}; an address is {SCHEME}[datasets/]ORG/NAME[@REVISION][/PATH]");
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad("no address"))?;
        let (is_data_set, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix("models/").unwrap_or(rest)),
        };
        let mut parts = rest.trim_end_matches('/').splitn(3, '/');
        let (Some(organisation), Some(name)) = (parts.next(), parts.next()) else {
            return Err(bad("it names no repository"));
        };
        let path = parts.next().unwrap_or_default();
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let revision = revision.replace("%2F", "/").replace("%2f", "/");
        // They become parts of a URL and of a path in the cache.
        let plain = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
                && !part.chars().all(|c| c == '.')
        };
        if !plain(organisation) || !plain(name) {
            return Err(bad("the name of a repository is made of letters, digits, `.`, `_` and `-`"));
        }
        if !revision.split('/').all(plain) {
            return Err(bad("this is no revision"));
        }
        if path.split('/').any(|part| matches!(part, "." | "..")) || path.contains(['\\', ':']) {
            return Err(bad("the path must lie in the repository"));
        }
        Ok(Self { is_data_set, repository: format!("{organisation}/{name}"), revision, path: path.to_string() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{SCHEME}{}{}", if self.is_data_set { "datasets/" } else { "" }, self.repository)?;
        if self.revision != "main" {
            write!(out, "@{}", self.revision.replace('/', "%2F"))?;
        }
        if !self.path.is_empty() {
            write!(out, "/{}", self.path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let read = |text: &str| text.parse::<Address>().expect(text);
        let model = read("hf://HuggingFaceTB/SmolLM2-135M-Instruct");
        assert_eq!((model.repository.as_str(), model.is_data_set), ("HuggingFaceTB/SmolLM2-135M-Instruct", false));
        assert_eq!((model.revision.as_str(), model.path.as_str()), ("main", ""));
        let set = read("hf://datasets/openai/gsm8k@refs%2Fconvert/main/train.parquet");
        assert_eq!((set.repository.as_str(), set.is_data_set), ("openai/gsm8k", true));
        assert_eq!((set.revision.as_str(), set.path.as_str()), ("refs/convert", "main/train.parquet"));
        for text in ["hf://a/b", "hf://datasets/a/b@v1.0/c/d", "hf://a/b@refs%2Fpr%2F1"] {
            assert_eq!(read(text).to_string(), text);
        }
        assert_eq!(read("hf://models/a/b/"), read("hf://a/b"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "hf://",
            "hf://a",
            "hf://a/",
            "hf://a/b@",
            "hf://../b",
            "hf://a/b/../c",
            "hf://a/b@../c",
            "hf://a b/c",
            "a/b",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
