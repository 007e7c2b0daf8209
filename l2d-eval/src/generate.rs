//! What the harness asks of a decoder.

use serde::{Deserialize, Serialize};

use crate::error::BoxError;
use crate::task::Turn;

/// One completion asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateRequest {
    /// The conversation; the model answers next, or goes on with the last turn where that is the assistant's.
    pub turns: Vec<Turn>,
    /// The row of the split, from 0.
    pub row: usize,
    /// Which sample of that row, from 0.
    pub sample: usize,
    /// The run's seed.
    pub seed: u64,
    /// Numbers this completion within the seed. It depends on row and sample alone, so randomness keyed by it does not
    /// change with batches, limits or resumption.
    pub sequence: u64,
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// Texts that end the completion.
    pub stop_strings: Vec<String>,
    /// The row's guidance class, by the paper's names ([`crate::task::class`]).
    pub class: &'static str,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop string was reached.
    StopString,
    /// It has as many tokens as were allowed.
    MaxTokens,
    /// It was called off; it is not counted and will be generated again.
    Cancelled,
}

/// What a completion would have been, had every token been taken at one time of its diffusion, each after the tokens that
/// were really emitted before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guessed {
    /// The diffusion time, in [0, 1).
    pub t: f64,
    /// The text.
    pub text: String,
    /// Tokens that are those emitted in the end.
    pub agreeing: usize,
}

/// A completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Its text, without stop token and stop string.
    pub text: String,
    /// New tokens, a stop token included.
    pub tokens: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Evaluations over all tokens as a budget counts them: that of the plain LM at `t = 0` and the closing one included.
    pub evaluations: usize,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it was along the diffusion's time, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub along: Vec<Guessed>,
}

/// A decoder, as the harness sees it.
pub trait Generator {
    /// Completes all requests, in their order.
    ///
    /// # Errors
    /// Whatever stops the decoder; the evaluation stops with it and can be resumed.
    fn generate(&mut self, requests: &[GenerateRequest]) -> Result<Vec<Completion>, BoxError>;
}

impl<F> Generator for F
where
    F: FnMut(&[GenerateRequest]) -> Result<Vec<Completion>, BoxError>,
{
    fn generate(&mut self, requests: &[GenerateRequest]) -> Result<Vec<Completion>, BoxError> {
        self(requests)
    }
}
