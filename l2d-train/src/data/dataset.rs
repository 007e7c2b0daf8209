//! Examples: tokens, and from where on they are labelled.

use super::conversation::{Conversation, Origin, Turn};
use crate::error::{Result, TrainError};

/// Turns messages into tokens, exactly as they will be at inference.
pub trait Template {
    /// The prompt of everything before an assistant's turn, ready for the reply, and the reply with its end-of-turn token.
    ///
    /// # Errors
    /// Why the messages cannot be rendered.
    fn render(&self, context: &[Turn], response: &str) -> std::result::Result<(Vec<u32>, Vec<u32>), String>;
}

/// One context and response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Prompt and response.
    pub tokens: Vec<u32>,
    /// Length of the prompt; at least 1, because the first token is predicted from nothing.
    pub prompt: usize,
    /// Index of the guidance class.
    pub class: Option<usize>,
    /// Which conversation it is of, from 0. Examples of one share their text.
    pub conversation: usize,
}

impl Example {
    /// The labelled `(position, target)` pairs: position `k` predicts token `k + 1`, for every token of the response.
    pub fn labels(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        (self.prompt - 1..self.tokens.len() - 1).map(|k| (k, self.tokens[k + 1]))
    }

    /// Number of labelled positions.
    pub fn num_labels(&self) -> usize {
        self.tokens.len() - self.prompt
    }
}

/// What became of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatasetStats {
    /// Rows read.
    pub conversations: usize,
    /// Examples kept.
    pub examples: usize,
    /// Examples dropped because they are longer than the limit; they are never cut.
    pub too_long: usize,
    /// Rows without any assistant turn.
    pub without_response: usize,
    /// Tokens of the kept examples.
    pub tokens: usize,
    /// Labelled positions of the kept examples.
    pub labels: usize,
}

/// All examples, in memory.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    /// In the order of the rows.
    pub examples: Vec<Example>,
    /// Counts.
    pub stats: DatasetStats,
}

impl Dataset {
    /// Every assistant turn of every conversation is an example whose context is all the messages before it. Examples
    /// longer than `max_tokens` are dropped and counted. `classes` are the guidance classes a row's class must be among.
    ///
    /// # Errors
    /// A row that cannot be rendered or has an unknown class, or nothing is left.
    pub fn build(
        conversations: &[Conversation],
        template: &dyn Template,
        classes: &[String],
        max_tokens: usize,
    ) -> Result<Self> {
        let mut dataset = Self::default();
        dataset.stats.conversations = conversations.len();
        for (row, conversation) in conversations.iter().enumerate() {
            let fail = |reason: String| match &conversation.origin {
                Some(Origin { path, row }) => TrainError::Row { path: path.to_path_buf(), row: *row, reason },
                None => TrainError::NoData(format!("conversation {}: {reason}", row + 1)),
            };
            let class = match &conversation.class {
                Some(name) => Some(
                    classes
                        .iter()
                        .position(|class| class == name)
                        .ok_or_else(|| fail(format!("class `{name}` is none of: {}", classes.join(", "))))?,
                ),
                None => None,
            };
            let mut any = false;
            for (i, turn) in conversation.turns.iter().enumerate().filter(|(_, turn)| turn.role == "assistant") {
                any = true;
                let (mut tokens, response) = template.render(&conversation.turns[..i], &turn.content).map_err(fail)?;
                let prompt = tokens.len();
                tokens.extend(response);
                if prompt == 0 || tokens.len() == prompt {
                    return Err(fail("its prompt or its response has no token".into()));
                }
                dataset.push(Example { tokens, prompt, class, conversation: row }, max_tokens);
            }
            dataset.stats.without_response += usize::from(!any);
        }
        dataset.checked(max_tokens)
    }

    fn push(&mut self, example: Example, max_tokens: usize) {
        if example.tokens.len() > max_tokens {
            self.stats.too_long += 1;
            return;
        }
        self.stats.examples += 1;
        self.stats.tokens += example.tokens.len();
        self.stats.labels += example.num_labels();
        self.examples.push(example);
    }

    fn checked(self, max_tokens: usize) -> Result<Self> {
        if self.examples.is_empty() {
            let DatasetStats { conversations, too_long, without_response, .. } = self.stats;
            return Err(TrainError::NoData(format!(
                "of {conversations} conversations, {without_response} have no assistant turn, and {too_long} examples \
                 are longer than max_tokens = {max_tokens}"
            )));
        }
        Ok(self)
    }
}
