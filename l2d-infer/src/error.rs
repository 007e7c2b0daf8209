//! The one error type of this crate.

use crate::ode::{Failure, GridError};

/// What can go wrong between a prompt and a text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model, its tokenizer or its files.
    #[error(transparent)]
    Core(#[from] l2d_core::Error),
    /// The diffusion's grid of times.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// An adaptive solver got no further; the system is the row of the batch.
    #[error(transparent)]
    Integration(Failure),
    /// What went wrong in one row of a batch.
    #[error("row {row}: {source}")]
    Row {
        /// The row.
        row: usize,
        /// What.
        source: Box<Error>,
    },
    /// What went wrong at one token of one request.
    #[error("request {request}, new token {token}: {source}")]
    At {
        /// The request's place among those given.
        request: usize,
        /// New tokens the sequence had.
        token: usize,
        /// What.
        source: Box<Error>,
    },
    /// A parameter is out of its range.
    #[error("{name} is {value}; it must be {expected}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is taken.
        expected: &'static str,
    },
    /// Logits hold NaN or plus infinity, or nothing but minus infinity: there is no distribution to draw from.
    #[error("the model's logits are {found} (token {token}): check the weights, or use a wider number format")]
    Logits {
        /// What they are.
        found: &'static str,
        /// The first such token.
        token: usize,
    },
    /// Log-probabilities of more than one evaluation.
    #[error(
        "a token decoded by diffusion has no log-probability: the logits at the end belong to one of endlessly many ways \
         there, and the probability of the token over all of them is never computed. Ask for them with 1 evaluation, the \
         plain LM"
    )]
    NoLikelihood,
    /// A prompt and the tokens asked for do not fit the model's context.
    #[error(
        "request {request}: the prompt has {tokens} tokens and {wanted} more were asked for, the model's context holds \
         {context}: shorten the prompt or lower max_tokens"
    )]
    Context {
        /// Its place among those given.
        request: usize,
        /// Tokens in the prompt.
        tokens: usize,
        /// New tokens asked for.
        wanted: usize,
        /// The context length.
        context: usize,
    },
    /// A request cannot be decoded as it stands.
    #[error("request {request}: {reason}")]
    Request {
        /// Its place among those given.
        request: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The same, of that row of a batch.
    pub(crate) fn in_row(self, row: usize) -> Self {
        Self::Row { row, source: Box::new(self) }
    }

    /// A `Parameter` error.
    pub fn parameter(name: &'static str, value: impl ToString, expected: &'static str) -> Self {
        Self::Parameter { name, value: value.to_string(), expected }
    }
}
