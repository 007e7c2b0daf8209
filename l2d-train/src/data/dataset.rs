//! Examples: tokens, and from where on they are labelled.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::conversation::{Conversation, Origin, Turn};
use super::drops::{DropReason, Fault};
use crate::error::{Result, TrainError};

/// Turns messages into tokens, exactly as they will be at inference. Called from several threads.
pub trait Template: Sync {
    /// The prompt of everything before an assistant's turn, ready for the reply, and the reply with its end-of-turn token.
    ///
    /// # Errors
    /// Why the messages cannot be rendered.
    fn render(&self, context: &[Turn], response: &str) -> std::result::Result<(Vec<u32>, Vec<u32>), String>;

    /// The same for several assistant turns of one conversation, by their numbers. Their contexts share most of their text,
    /// which an implementation may make use of.
    ///
    /// # Errors
    /// Why the messages cannot be rendered.
    fn render_all(&self, turns: &[Turn], replies: &[usize]) -> std::result::Result<Vec<(Vec<u32>, Vec<u32>)>, String> {
        replies.iter().map(|&i| self.render(&turns[..i], &turns[i].content)).collect()
    }

    /// What recognises the tokenizer and the template: whatever has the same one gives the same tokens.
    fn fingerprint(&self) -> [u8; 32];
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetStats {
    /// Rows read.
    pub rows: u64,
    /// Examples kept.
    pub examples: u64,
    /// Tokens of the kept examples.
    pub tokens: u64,
    /// Labelled positions of the kept examples.
    pub labels: u64,
    /// What was left out, by reason: examples that are too long, rows for any other reason.
    pub dropped: BTreeMap<DropReason, u64>,
}

impl DatasetStats {
    /// How many were left out for that reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(&reason).copied().unwrap_or(0)
    }

    /// What was left out, in words: `2 longer than the limit, 1 without a reply`; `none` where nothing was.
    pub fn dropped_in_words(&self) -> String {
        let parts: Vec<String> =
            self.dropped.iter().map(|(reason, count)| format!("{count} {}", reason.words())).collect();
        if parts.is_empty() { "none".into() } else { parts.join(", ") }
    }

    pub(super) fn drop(&mut self, reason: DropReason, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason).or_default() += count;
        }
    }

    pub(super) fn keep(&mut self, tokens: usize, labels: usize) {
        self.examples += 1;
        self.tokens += tokens as u64;
        self.labels += labels as u64;
    }

    /// The counts of two lists of rows together.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.examples += other.examples;
        self.tokens += other.tokens;
        self.labels += other.labels;
        for (&reason, &count) in &other.dropped {
            self.drop(reason, count);
        }
    }

    /// # Errors
    /// Nothing is left to learn from; says why.
    pub(super) fn some_left(&self, max_tokens: usize) -> Result<()> {
        if self.examples > 0 {
            return Ok(());
        }
        let too_long = self.dropped(DropReason::TooLong);
        let mut others = self.clone();
        others.dropped.remove(&DropReason::TooLong);
        Err(TrainError::NoData(format!(
            "of {} conversations, {too_long} examples are longer than max_tokens = {max_tokens}; dropped besides: {}",
            self.rows,
            others.dropped_in_words()
        )))
    }
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
        for (row, conversation) in conversations.iter().enumerate() {
            dataset.stats.rows += 1;
            match render(conversation, template, classes, max_tokens) {
                Ok(rendered) => {
                    dataset.stats.drop(DropReason::TooLong, rendered.too_long);
                    for example in rendered.examples {
                        dataset.stats.keep(example.tokens.len(), example.num_labels());
                        dataset.examples.push(Example { conversation: row, ..example });
                    }
                }
                Err(fault) if fault.reason.is_expected() => dataset.stats.drop(fault.reason, 1),
                Err(Fault { text, .. }) => {
                    return Err(match &conversation.origin {
                        Some(Origin { path, row }) => {
                            TrainError::Row { path: path.to_path_buf(), row: *row, reason: text }
                        }
                        None => TrainError::NoData(format!("conversation {}: {text}", row + 1)),
                    });
                }
            }
        }
        dataset.stats.some_left(max_tokens)?;
        Ok(dataset)
    }
}

/// The examples of one row.
pub(super) struct Rendered {
    /// Their conversation is 0: whoever counts rows knows better.
    pub(super) examples: Vec<Example>,
    pub(super) too_long: u64,
}

/// Every assistant turn after the context becomes an example.
pub(super) fn render(
    conversation: &Conversation,
    template: &dyn Template,
    classes: &[String],
    max_tokens: usize,
) -> std::result::Result<Rendered, Fault> {
    let class = match &conversation.class {
        Some(name) => Some(classes.iter().position(|class| class == name).ok_or_else(|| {
            let reason = format!("class `{name}` is none of: {}", classes.join(", "));
            Fault::new(DropReason::UnknownClass, reason)
        })?),
        None => None,
    };
    let refused = |reason: String| Fault::new(DropReason::Template, reason);
    let mut rendered = Rendered { examples: Vec::new(), too_long: 0 };
    let replies: Vec<usize> = (conversation.context..conversation.turns.len())
        .filter(|&i| conversation.turns[i].role == "assistant")
        .collect();
    if replies.is_empty() {
        return Err(Fault::new(DropReason::NoReply, "no assistant's turn"));
    }
    for (mut tokens, response) in template.render_all(&conversation.turns, &replies).map_err(refused)? {
        let prompt = tokens.len();
        tokens.extend(response);
        if prompt == 0 || tokens.len() == prompt {
            return Err(refused("its prompt or its response has no token".into()));
        }
        if tokens.len() > max_tokens {
            rendered.too_long += 1;
        } else {
            rendered.examples.push(Example { tokens, prompt, class, conversation: 0 });
        }
    }
    Ok(rendered)
}
