//! A byte-pair tokenizer from its bare lists, as a GGUF file holds them. The pre-tokenizers are those of the
//! `tokenizer.json` files these families were released with.

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use crate::error::{Error, Result};

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Made by merging bytes.
    Normal,
    /// Structure, e.g. `<|im_start|>`: hidden when special tokens are skipped.
    Control,
    /// Matched as a whole before merging, but ordinary text when decoded.
    UserDefined,
}

/// The lists a byte-pair tokenizer is made of; index = token id.
#[derive(Debug, Clone)]
pub struct BpeVocabulary<'a> {
    /// GGUF's `tokenizer.ggml.pre`: which rule splits text before merging.
    pub pre_tokenizer: &'a str,
    /// Every token in GPT-2's byte alphabet, e.g. `Ġthe`.
    pub tokens: &'a [String],
    /// What each token is for; as long as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// Pairs joined by one space, strongest first.
    pub merges: &'a [String],
    /// The beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Whether prompts start with it; `None` = as the family does.
    pub add_bos: Option<bool>,
}

/// How one family splits text before merging.
struct Family {
    pre_tokenizer: Value,
    /// Unicode composition before anything else.
    nfc: bool,
    /// A piece that is a token as a whole is not merged from bytes.
    ignore_merges: bool,
    /// Prompts start with the beginning-of-sequence token unless the file says otherwise.
    adds_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's rule for files that name none: applied one after the other.
const LLAMA_CPP_DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

fn split(regex: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
}

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn sequence(steps: Vec<Value>) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps })
}

impl Family {
    fn of(pre_tokenizer: &str) -> Result<Self> {
        let plain = |pre_tokenizer| Self { pre_tokenizer, nfc: false, ignore_merges: false, adds_bos: false };
        let family = match pre_tokenizer {
            "smollm" => plain(sequence(vec![json!({ "type": "Digits", "individual_digits": true }), byte_level(true)])),
            "gpt-2" => plain(byte_level(true)),
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, adds_bos: true, ..plain(sequence(vec![split(LLAMA3), byte_level(false)])) }
            }
            "qwen2" | "deepseek-r1-qwen" => {
                Self { nfc: true, ..plain(sequence(vec![split(QWEN2), byte_level(false)])) }
            }
            "default" => {
                let splits = LLAMA_CPP_DEFAULT.into_iter().map(split);
                plain(sequence(splits.chain([byte_level(false)]).collect()))
            }
            other => {
                return Err(Error::Tokenizer(format!(
                    "unsupported tokenizer.ggml.pre: {other} (supported: smollm, llama-bpe, llama3, qwen2, \
                     deepseek-r1-qwen, gpt-2, default)"
                )));
            }
        };
        Ok(family)
    }
}

/// Builds the tokenizer. Errors on an unknown pre-tokenizer, repeated tokens and merges of tokens that do not exist.
pub(super) fn build(vocabulary: &BpeVocabulary<'_>) -> Result<Tokenizer> {
    let fail = |e: &dyn std::fmt::Display| Error::Tokenizer(e.to_string());
    let family = Family::of(vocabulary.pre_tokenizer)?;
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| Error::Tokenizer(format!("merge {rank} (`{merge}`) is not two tokens joined by a space")))?;
        merges.push((left.to_string(), right.to_string()));
    }
    let ids: Vocab = vocabulary.tokens.iter().cloned().zip(0..).collect();
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(family.ignore_merges)
        .build()
        .map_err(|e| fail(&e))?;
    let distinct = tokenizers::Model::get_vocab_size(&model);
    if distinct != vocabulary.tokens.len() {
        let repeated = vocabulary.tokens.len() - distinct;
        return Err(Error::Tokenizer(format!("{repeated} of {} tokens are repeated", vocabulary.tokens.len())));
    }

    let mut tokenizer = Tokenizer::new(model);
    let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(family.pre_tokenizer).map_err(|e| fail(&e))?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.with_normalizer(family.nfc.then_some(NormalizerWrapper::NFC(NFC)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let of_kind = |kind: TokenKind, special: bool| -> Vec<AddedToken> {
        let matching = vocabulary.tokens.iter().zip(&vocabulary.kinds).filter(|&(_, &k)| k == kind);
        matching.map(|(token, _)| AddedToken::from(token.clone(), special).normalized(false)).collect()
    };
    tokenizer.add_special_tokens(&of_kind(TokenKind::Control, true));
    tokenizer.add_tokens(&of_kind(TokenKind::UserDefined, false));
    if vocabulary.add_bos.unwrap_or(family.adds_bos) {
        let bos = vocabulary.bos_token_id.and_then(|id| Some((id, vocabulary.tokens.get(usize::try_from(id).ok()?)?)));
        let (id, token) = bos.ok_or_else(|| {
            Error::Tokenizer("prompts should start with a beginning-of-sequence token, but none is named".into())
        })?;
        tokenizer.with_post_processor(Some(prepend(id, token).map_err(|e| fail(&e))?));
    }
    Ok(tokenizer)
}

/// `tokenizer.json`'s form of "put this token first".
fn prepend(id: u32, token: &str) -> serde_json::Result<PostProcessorWrapper> {
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sequence = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    serde_json::from_value(json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A")],
        "pair": [special, sequence("A"), special, sequence("B")],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    #[test]
    fn text_is_split_as_the_published_patterns_split_it() {
        let golden = include_str!("../../tests/fixtures/text/splits.json");
        let cases: Vec<HashMap<String, Value>> = serde_json::from_str(golden).unwrap();
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            for family in ["llama-bpe", "qwen2", "gpt-2", "smollm"] {
                let splitter: PreTokenizerWrapper =
                    serde_json::from_value(Family::of(family).unwrap().pre_tokenizer).unwrap();
                let mut split = PreTokenizedString::from(text);
                splitter.pre_tokenize(&mut split).unwrap();
                let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
                let found: Vec<&str> = pieces.iter().map(|(_, (start, end), _)| &text[*start..*end]).collect();
                let found: Vec<&str> = found.into_iter().filter(|piece| !piece.is_empty()).collect();
                assert_eq!(Value::from(found), case[family], "{family}: {text:?}");
            }
        }
    }
}
