//! A model's own tokenizer as the decoder's source of text.

use l2d_core::text::{StreamDecoder, TextTokenizer};

use super::request::{Detokenizer, TextStream};

/// Special tokens have no text.
impl Detokenizer for TextTokenizer {
    fn begin(&self) -> Box<dyn TextStream + '_> {
        Box::new(self.stream(true))
    }
}

impl TextStream for StreamDecoder {
    fn push(&mut self, token: u32) -> String {
        StreamDecoder::push(self, token).unwrap_or_default()
    }

    fn finish(&mut self) -> String {
        StreamDecoder::finish(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use l2d_core::text::{BpeVocabulary, TokenKind};

    use super::*;
    use crate::stop::StopStrings;

    #[test]
    fn a_stop_string_is_found_across_the_bytes_of_a_character() {
        // In GPT-2's byte alphabet the two bytes of "é" are `Ã` and `©`.
        let tokens: Vec<String> = ["a", "Ã", "©", "b", "<end>"].iter().map(|s| s.to_string()).collect();
        let mut kinds = vec![TokenKind::Normal; 4];
        kinds.push(TokenKind::Control);
        let vocabulary = BpeVocabulary {
            pre_tokenizer: "gpt-2",
            tokens: &tokens,
            kinds,
            merges: &[],
            bos_token_id: None,
            add_bos: None,
        };
        let tokenizer = TextTokenizer::from_bpe(&vocabulary).unwrap();
        let strings = StopStrings::new(vec!["éb".into()]).unwrap();
        let (mut stream, mut watch) = (tokenizer.begin(), strings.watch());
        let shown: Vec<String> = [0, 1, 2, 0, 4, 1, 2, 3].map(|id| watch.push(&stream.push(id))).to_vec();
        assert_eq!(shown, ["a", "", "", "éa", "", "", "", ""]);
        assert_eq!(watch.stopped(), Some(0));
    }
}
