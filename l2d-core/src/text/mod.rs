//! Tokens and prompts.

mod bpe;
mod segments;
mod stream;
mod template;
mod tokenizer;

pub use bpe::{BpeVocabulary, TokenKind};
pub use segments::SegmentEncoder;
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Ending, Message, TemplateTokens};
pub use tokenizer::TextTokenizer;
