//! Tokenizers built from bare lists, special tokens, and streaming.

use std::path::Path;

use l2d_core::Error;
use l2d_core::text::{BpeVocabulary, TextTokenizer, TokenKind};
use proptest::prelude::*;

/// GPT-2's byte alphabet, some merges, and three added tokens; ids of bytes are the bytes.
struct Lists {
    tokens: Vec<String>,
    kinds: Vec<TokenKind>,
    merges: Vec<String>,
}

const END: u32 = 256 + 4;
const TOOL: u32 = END + 1;
const BOS: u32 = END + 2;

impl Lists {
    fn new() -> Self {
        let mut shifted = ('\u{100}'..).take(256);
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut tokens: Vec<String> = (0..=u8::MAX)
            .map(|b| if printable(b) { char::from(b) } else { shifted.next().unwrap() }.to_string())
            .collect();
        let merges = ["Ġ t", "h e", "Ġt he", "1 2"].map(String::from);
        tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        let mut kinds = vec![TokenKind::Normal; tokens.len()];
        for (token, kind) in [
            ("<|im_end|>", TokenKind::Control),
            ("<tool_call>", TokenKind::UserDefined),
            ("<|begin|>", TokenKind::Control),
        ] {
            tokens.push(token.into());
            kinds.push(kind);
        }
        Self { tokens, kinds, merges: merges.to_vec() }
    }

    fn build(&self, pre_tokenizer: &str, add_bos: Option<bool>) -> Result<TextTokenizer, Error> {
        TextTokenizer::from_bpe(&BpeVocabulary {
            pre_tokenizer,
            tokens: &self.tokens,
            kinds: self.kinds.clone(),
            merges: &self.merges,
            bos_token_id: Some(BOS),
            add_bos,
        })
    }
}

fn tokenizer(pre_tokenizer: &str) -> TextTokenizer {
    Lists::new().build(pre_tokenizer, None).unwrap()
}

#[test]
fn merges_stay_inside_the_pieces_of_their_family() {
    let one_two = 256 + 3;
    assert_eq!(tokenizer("qwen2").encode("12", false).unwrap(), [49, 50], "Qwen splits digits");
    assert_eq!(tokenizer("smollm").encode("12", false).unwrap(), [49, 50], "so does SmolLM");
    assert_eq!(tokenizer("llama-bpe").encode("12", false).unwrap(), [one_two], "Llama 3 takes three together");
    assert_eq!(tokenizer("gpt-2").encode("a the", false).unwrap(), [97, 256 + 2]);
}

#[test]
fn special_tokens_in_text_are_recognised_unless_it_is_ordinary() {
    let tokenizer = tokenizer("qwen2");
    let text = "the<|im_end|><tool_call>";
    assert_eq!(tokenizer.encode(text, false).unwrap(), [116, 257, END, TOOL]);
    let ordinary = tokenizer.encode_ordinary(text).unwrap();
    assert!(!ordinary.contains(&END));
    assert_eq!(tokenizer.decode(&ordinary, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&[116, END, TOOL], true).unwrap(), "t<tool_call>");
    assert_eq!(tokenizer.decode(&[116, END, TOOL], false).unwrap(), "t<|im_end|><tool_call>");
    assert!(tokenizer.is_special(END) && !tokenizer.is_special(TOOL) && !tokenizer.is_special(116));
}

#[test]
fn the_beginning_token_is_added_as_the_family_or_the_file_says() {
    let lists = Lists::new();
    for (pre_tokenizer, add_bos, expected) in [
        ("llama-bpe", None, true),
        ("llama-bpe", Some(false), false),
        ("qwen2", None, false),
        ("qwen2", Some(true), true),
    ] {
        let tokenizer = lists.build(pre_tokenizer, add_bos).unwrap();
        let leading: &[u32] = if expected { &[BOS] } else { &[] };
        assert_eq!(tokenizer.encode("a", true).unwrap(), [leading, &[97]].concat());
        assert_eq!(tokenizer.encode("a", false).unwrap(), [97]);
        assert_eq!(tokenizer.adds_bos(BOS), expected);
    }
}

#[test]
fn qwen_composes_characters_first() {
    let composed = tokenizer("qwen2").encode("\u{e9}", false).unwrap();
    assert_eq!(tokenizer("qwen2").encode("e\u{301}", false).unwrap(), composed);
    assert_ne!(tokenizer("llama3").encode("e\u{301}", false).unwrap(), composed);
}

#[test]
fn the_vocabulary_can_be_asked() {
    let tokenizer = tokenizer("gpt-2");
    assert_eq!(tokenizer.vocab_size(), 256 + 4 + 3);
    assert_eq!(tokenizer.token_to_id("Ġthe"), Some(258));
    assert_eq!(tokenizer.id_to_token(258).as_deref(), Some("Ġthe"));
    assert_eq!((tokenizer.token_to_id("nonsense"), tokenizer.id_to_token(9_999)), (None, None));
}

#[test]
fn a_saved_tokenizer_is_the_same() {
    for pre_tokenizer in ["smollm", "llama-bpe", "qwen2", "gpt-2", "default"] {
        let built = tokenizer(pre_tokenizer);
        let read = TextTokenizer::from_json(&built.to_json().unwrap()).unwrap();
        for text in ["the 12 <|im_end|>", "naïve\n\n  $x$ 12345", ""] {
            assert_eq!(read.encode(text, true).unwrap(), built.encode(text, true).unwrap(), "{pre_tokenizer}: {text}");
        }
    }
}

#[test]
fn cutting_and_padding_saved_in_a_file_are_not_applied() {
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer("gpt-2").to_json().unwrap()).unwrap();
    json["truncation"] =
        serde_json::json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    json["padding"] = serde_json::json!({ "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x" });
    let tokenizer = TextTokenizer::from_json(&json.to_string()).unwrap();
    assert_eq!(tokenizer.encode("abcde", true).unwrap().len(), 5);
}

#[test]
fn a_missing_or_broken_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    assert!(matches!(TextTokenizer::from_file(&path), Err(Error::Io { path: found, .. }) if found == path));
    std::fs::write(&path, "{\"model\": 3}").unwrap();
    let error = TextTokenizer::from_file(&path).unwrap_err();
    assert!(matches!(&error, Error::Tokenizer(text) if text.contains("tokenizer.json")), "{error}");
    let error = Lists::new().build("bloom", None).unwrap_err();
    assert!(error.to_string().contains("bloom") && error.to_string().contains("llama-bpe"), "{error}");
}

#[test]
fn long_runs_of_one_kind_are_encoded_in_time() {
    for pre_tokenizer in ["smollm", "llama-bpe", "qwen2", "gpt-2", "default"] {
        let tokenizer = tokenizer(pre_tokenizer);
        for text in [" ".repeat(100_000), "a".repeat(100_000), "\n \n".repeat(30_000), "!".repeat(100_000)] {
            let started = std::time::Instant::now();
            let ids = tokenizer.encode(&text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            assert!(started.elapsed().as_secs() < 20, "{pre_tokenizer}: {:?}", started.elapsed());
        }
    }
}

/// The pieces together, and whether every piece but the last was whole.
fn streamed(tokenizer: &TextTokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.finish());
    text
}

#[test]
fn a_character_appears_when_its_last_byte_does() {
    let tokenizer = tokenizer("gpt-2");
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<Option<String>> = "é🙂!".bytes().map(|byte| stream.push(byte.into())).collect();
    let expected = [None, Some("é"), None, None, None, Some("🙂"), Some("!")];
    assert_eq!(pieces, expected.map(|piece| piece.map(String::from)));
    assert_eq!(stream.push(END), None, "special tokens are silent");
    assert_eq!(stream.push(0xF0), None);
    assert_eq!(
        stream.push(u32::from(b'a')),
        Some("\u{fffd}a".into()),
        "a broken character does not hold back the next"
    );
    assert_eq!(stream.push(0xF0), None);
    assert_eq!(stream.finish(), Some("\u{fffd}".into()));
    assert_eq!(stream.finish(), None);
}

/// A tokenizer whose text depends on neighbours: spaces written as `▁`, the first one dropped, bytes as `<0x..>`.
fn sentencepiece() -> TextTokenizer {
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<unk>", "▁the", "▁cat", "s", "▁"].into_iter().enumerate() {
        vocab.insert(token.into(), id.into());
    }
    for byte in 0..=255_u64 {
        vocab.insert(format!("<0x{byte:02X}>"), (byte + 5).into());
    }
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": [] },
    });
    TextTokenizer::from_json(&json.to_string()).unwrap()
}

#[test]
fn text_that_depends_on_neighbours_streams_as_well() {
    let tokenizer = sentencepiece();
    let bytes: Vec<u32> = "🙂".bytes().map(|b| u32::from(b) + 5).collect();
    let ids = [&[1, 2, 3][..], &bytes, &[4, 1]].concat();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the cats🙂  the");
    assert_eq!(streamed(&tokenizer, &ids, true), "the cats🙂  the");
}

#[test]
fn streaming_is_linear_in_the_number_of_tokens() {
    // Bytes that never become a character are the worst case: nothing may pile up.
    for tokenizer in [tokenizer("gpt-2"), sentencepiece()] {
        let started = std::time::Instant::now();
        let text = streamed(&tokenizer, &vec![0x85; 50_000], false);
        assert!(!text.is_empty());
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
}

proptest! {
    #[test]
    fn text_survives_a_round_trip(text in "\\PC{0,60}") {
        for pre_tokenizer in ["smollm", "llama-bpe", "gpt-2", "default"] {
            let tokenizer = tokenizer(pre_tokenizer);
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode_ordinary(&text).unwrap(), false).unwrap(), &text[..]);
        }
    }

    #[test]
    fn streamed_text_is_decoded_text(ids in proptest::collection::vec(0_u32..300, 0..60), skip_special: bool) {
        let tokenizer = tokenizer("qwen2");
        prop_assert_eq!(streamed(&tokenizer, &ids, skip_special), tokenizer.decode(&ids, skip_special).unwrap());
    }
}

#[test]
fn a_relative_path_is_named_as_given() {
    let error = TextTokenizer::from_file(Path::new("no/such/tokenizer.json")).unwrap_err();
    assert!(error.to_string().starts_with("no/such/tokenizer.json"), "{error}");
}

proptest! {
    #[test]
    fn part_by_part_is_as_good_as_whole(
        parts in proptest::collection::vec(prop_oneof!["\\PC{0,8}", "[ \n]{0,3}the", Just("<|im_end|>".to_string()),
            Just("<tool_call>".to_string()), Just("<|im_end".to_string()), Just("<|begin|>\n".to_string())], 0..8),
    ) {
        let text = parts.concat();
        for family in ["smollm", "qwen2", "llama-bpe", "gpt-2"] {
            let tokenizer = tokenizer(family);
            let mut segments = tokenizer.segments();
            // The second time from memory.
            for _ in 0..2 {
                prop_assert_eq!(segments.encode(&text).unwrap(), tokenizer.encode(&text, false).unwrap());
            }
        }
    }
}
