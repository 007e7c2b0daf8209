//! What is asked of the decoder and what it answers.

use serde::{Deserialize, Serialize};

use super::diffuser::Guess;
use crate::error::{Error, Result};
use crate::sampler::{Sampler, SamplingParams};
use crate::stop::StopStrings;

/// One sequence to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// The guidance class, as its place in the adapter's list.
    pub class: Option<usize>,
    /// Numbers the sequence within its seed: equal seed, number, prompt and settings draw equal random numbers, whatever else
    /// is in the batch, and so give equal output up to the rounding of the logits.
    pub sequence: u64,
}

/// How sequences are continued, as a user writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationParams {
    /// The most tokens one sequence gets, a stop token included.
    pub max_tokens: usize,
    /// Seed of all randomness.
    pub seed: u64,
    /// How the emitted token is drawn.
    pub sampling: SamplingParams,
    /// Tokens that end a sequence; usually those of the model's configuration.
    pub stop_tokens: Vec<u32>,
    /// Texts that end a sequence; they are not part of its text.
    pub stop_strings: Vec<String>,
}

impl Default for GenerationParams {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            seed: 0,
            sampling: SamplingParams::default(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
        }
    }
}

impl GenerationParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming what is out of range.
    pub fn check(self) -> Result<Generation> {
        if self.max_tokens == 0 || self.max_tokens > i32::MAX as usize {
            return Err(Error::parameter("max_tokens", self.max_tokens, "at least 1 and no more than a context holds"));
        }
        Ok(Generation {
            max_tokens: self.max_tokens,
            seed: self.seed,
            sampler: self.sampling.check()?,
            stop_tokens: self.stop_tokens,
            stop_strings: StopStrings::new(self.stop_strings)?,
        })
    }
}

/// Checked [`GenerationParams`].
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    pub(super) max_tokens: usize,
    pub(super) seed: u64,
    pub(super) sampler: Sampler,
    pub(super) stop_tokens: Vec<u32>,
    pub(super) stop_strings: StopStrings,
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It emitted a stop token, the last of its tokens.
    StopToken(u32),
    /// Its text reached a stop string.
    StopString(String),
    /// It has as many tokens as were allowed.
    MaxTokens,
    /// The caller called it off.
    Cancelled,
}

/// How likely the plain LM found a token, before bias, penalties, temperature and filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogProbability {
    /// The natural logarithm of the emitted token's probability.
    pub chosen: f64,
    /// The most likely tokens and theirs, most likely first.
    pub top: Vec<(u32, f64)>,
}

/// A continued sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The new tokens, a stop token included.
    pub tokens: Vec<u32>,
    /// Their text without stop token and stop string; empty where the decoder was given no [`TextStream`].
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Evaluations over all tokens as a budget counts them: that of the plain LM at `t = 0` and the closing one included,
    /// a guided one once.
    pub evaluations: usize,
    /// Evaluations of the diffusion path over all tokens: none at `t = 0`, two where guidance asks for two velocities.
    pub passes: usize,
    /// Forward passes these took: fewer where several evaluations were made at once.
    pub rounds: usize,
    /// One for each token, where [`Hooks::log_probabilities`](super::Hooks::log_probabilities) asks for them.
    pub log_probabilities: Vec<TokenLogProbability>,
}

/// What happens while sequences are decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// A token was drawn.
    Token {
        /// The request's place among those given.
        request: usize,
        /// The token.
        token: u32,
        /// Text that is certain now; may be empty, and may belong to earlier tokens.
        text: &'a str,
        /// Evaluations spent on it, as a budget counts them.
        evaluations: usize,
        /// Evaluations of the diffusion path among them.
        passes: usize,
        /// Forward passes these took.
        rounds: usize,
        /// What the model took for this token on the way, where [`Hooks::guesses`](super::Hooks::guesses) asks for it.
        guesses: &'a [Guess],
        /// How likely it was, where [`Hooks::log_probabilities`](super::Hooks::log_probabilities) asks for it.
        log_probability: Option<&'a TokenLogProbability>,
    },
    /// A sequence ended.
    Finished {
        /// The request's place among those given.
        request: usize,
        /// The rest of its text.
        text: &'a str,
        /// Why.
        reason: &'a FinishReason,
    },
}

/// Makes the text stream of each sequence.
pub trait Detokenizer {
    /// A stream at the beginning of a text.
    fn begin(&self) -> Box<dyn TextStream + '_>;
}

/// Turns the tokens of one sequence into text while they come. A token may end inside a character, so text may lag behind.
pub trait TextStream {
    /// The text that is certain after one more token.
    fn push(&mut self, token: u32) -> String;

    /// The text still held back, at the end.
    fn finish(&mut self) -> String;
}
