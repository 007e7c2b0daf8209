//! Text to token ids and back.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokenizers::{DecoderWrapper, Tokenizer};

use super::bpe::{self, BpeVocabulary};
use super::segments::{Cuts, SegmentEncoder};
use super::stream::StreamDecoder;
use crate::error::{Error, Result};

/// A tokenizer. Cloning is cheap: clones share the vocabulary.
#[derive(Clone)]
pub struct TextTokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizer: Tokenizer,
    /// The same, blind to special tokens; made when first needed.
    blind: OnceLock<Tokenizer>,
    /// Where a text may be cut; found when first needed.
    cuts: OnceLock<Option<Cuts>>,
    /// What encoding an empty text with special tokens gives.
    leading: Vec<u32>,
    special: HashSet<u32>,
    vocab_size: usize,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn failure(error: impl std::fmt::Display) -> Error {
    Error::Tokenizer(error.to_string())
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Self::from_json(&text).map_err(|e| Error::Tokenizer(format!("{}: {e}", path.display())))
    }

    /// Parses the text of a `tokenizer.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::new(text.parse().map_err(failure)?)
    }

    /// Builds a byte-level BPE tokenizer from its lists, as a GGUF file holds them.
    pub fn from_bpe(vocabulary: &BpeVocabulary<'_>) -> Result<Self> {
        Self::new(bpe::build(vocabulary)?)
    }

    fn new(mut tokenizer: Tokenizer) -> Result<Self> {
        // Some `tokenizer.json` files carry the cutting and padding of whoever saved them; Hugging Face resets both too.
        tokenizer.with_truncation(None).map_err(failure)?;
        tokenizer.with_padding(None);
        let leading = tokenizer.encode_fast("", true).map_err(failure)?.get_ids().to_vec();
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        let vocab_size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self {
            shared: Arc::new(Shared {
                tokenizer,
                blind: OnceLock::new(),
                cuts: OnceLock::new(),
                leading,
                special,
                vocab_size,
            }),
        })
    }

    /// Token ids of `text`. Special tokens written in the text become their ids. `add_special` also adds what the model
    /// expects around a raw text (for Llama 3 a leading `<|begin_of_text|>`); leave it off for a rendered chat template,
    /// which has them already.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.shared.tokenizer.encode_fast(text, add_special).map_err(failure)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of untrusted text: `<|im_end|>` in it is spelt out as characters and ends nothing.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        let blind = self.shared.blind.get_or_init(|| {
            let mut tokenizer = self.shared.tokenizer.clone();
            tokenizer.set_encode_special_tokens(true);
            tokenizer
        });
        Ok(blind.encode_fast(text, false).map_err(failure)?.get_ids().to_vec())
    }

    /// Tokenises several texts that share long parts, each part once.
    pub fn segments(&self) -> SegmentEncoder<'_> {
        SegmentEncoder::new(self)
    }

    pub(super) fn cuts(&self) -> Option<&Cuts> {
        self.shared.cuts.get_or_init(|| Cuts::of(&self.shared.tokenizer, self.is_byte_level())).as_ref()
    }

    /// Text of token ids; ids outside the vocabulary are left out, broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.shared.tokenizer.decode(ids, skip_special).map_err(failure)
    }

    /// A decoder for ids that arrive one at a time.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// The id of a token by its exact spelling in the vocabulary (ordinary tokens are spelt in GPT-2's byte alphabet).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.tokenizer.token_to_id(token)
    }

    /// The spelling of a token in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.tokenizer.id_to_token(id)
    }

    /// Whether [`encode`](Self::encode) with `add_special` puts `bos` first.
    pub fn adds_bos(&self, bos: u32) -> bool {
        self.shared.leading.first() == Some(&bos)
    }

    /// Whether the token is structure rather than text: left out when special tokens are skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.shared.special.contains(&id)
    }

    /// The tokenizer as a `tokenizer.json`, for a model that is saved in another format than it was read from.
    pub fn to_json(&self) -> Result<String> {
        self.shared.tokenizer.to_string(false).map_err(failure)
    }

    /// Decoding is plain concatenation of bytes.
    pub(super) fn is_byte_level(&self) -> bool {
        matches!(self.shared.tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }
}
