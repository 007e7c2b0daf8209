//! A sequence on its way: its tokens, its text, and when it ends.

use super::diffuser::Guess;
use super::noise::Place;
use super::request::{
    Completion, Detokenizer, Event, FinishReason, Generation, Request, TextStream, TokenLogProbability,
};
use crate::error::Error;
use crate::sampler::History;
use crate::stop::StopWatch;

/// What one token cost, and what was seen on the way to it.
#[derive(Default)]
pub(super) struct Spent {
    pub(super) evaluations: usize,
    pub(super) passes: usize,
    pub(super) rounds: usize,
    pub(super) guesses: Vec<Guess>,
    pub(super) log_probability: Option<TokenLogProbability>,
}

impl Spent {
    /// The same costs, without what was seen.
    pub(super) fn costs(&self) -> Self {
        Self { evaluations: self.evaluations, passes: self.passes, rounds: self.rounds, ..Self::default() }
    }
}

/// A sequence that is not complete.
pub(super) struct Row<'a> {
    /// Its place among the requests.
    pub(super) request: usize,
    sequence: u64,
    pub(super) class: Option<usize>,
    prompt: usize,
    /// Prompt and new tokens.
    pub(super) tokens: Vec<u32>,
    evaluations: usize,
    passes: usize,
    rounds: usize,
    log_probabilities: Vec<TokenLogProbability>,
    text: String,
    stream: Option<Box<dyn TextStream + 'a>>,
    watch: StopWatch<'a>,
}

impl<'a> Row<'a> {
    pub(super) fn new(
        request: usize,
        asked: &Request,
        generation: &'a Generation,
        text: Option<&'a dyn Detokenizer>,
    ) -> Self {
        Self {
            request,
            sequence: asked.sequence,
            class: asked.class,
            prompt: asked.tokens.len(),
            tokens: asked.tokens.clone(),
            evaluations: 0,
            passes: 0,
            rounds: 0,
            log_probabilities: Vec::new(),
            text: String::new(),
            stream: text.map(Detokenizer::begin),
            watch: generation.stop_strings.watch(),
        }
    }
}

impl<'a> Row<'a> {
    /// The same sequence once more, to go its own way. Its text, where it is followed, is told anew: streams cannot fork.
    pub(super) fn fork(&self, text: Option<&'a dyn Detokenizer>, generation: &'a Generation) -> Self {
        let mut fork = Self {
            request: self.request,
            sequence: self.sequence,
            class: self.class,
            prompt: self.prompt,
            tokens: self.tokens.clone(),
            evaluations: self.evaluations,
            passes: self.passes,
            rounds: self.rounds,
            log_probabilities: self.log_probabilities.clone(),
            text: String::new(),
            stream: text.map(Detokenizer::begin),
            watch: generation.stop_strings.watch(),
        };
        let new = fork.tokens.split_off(fork.prompt);
        for &token in &new {
            fork.tell(token, generation);
        }
        fork.tokens.extend(new);
        fork
    }

    /// The same sequence with its text, whether it was followed so far or not.
    pub(super) fn retold(self, text: Option<&'a dyn Detokenizer>, generation: &'a Generation) -> Self {
        if self.stream.is_some() { self } else { self.fork(text, generation) }
    }

    /// Adds a token to the text and returns the piece that is certain now.
    fn tell(&mut self, token: u32, generation: &Generation) -> String {
        let piece = match &mut self.stream {
            Some(stream) if !generation.stop_tokens.contains(&token) => self.watch.push(&stream.push(token)),
            _ => String::new(),
        };
        self.text += &piece;
        piece
    }
}

impl Row<'_> {
    /// New tokens so far.
    pub(super) fn new_tokens(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// The latest token.
    pub(super) fn last(&self) -> u32 {
        self.tokens[self.tokens.len() - 1]
    }

    /// Where the randomness of the next token comes from.
    pub(super) fn place(&self) -> Place {
        Place { sequence: self.sequence, token: (self.tokens.len() - self.prompt) as u32 }
    }

    /// An error that came up at the next token.
    pub(super) fn located(&self, error: Error) -> Error {
        Error::At { request: self.request, token: self.tokens.len() - self.prompt, source: Box::new(error) }
    }

    /// Prompt and new tokens.
    pub(super) fn history(&self) -> History<'_> {
        let (prompt, new) = self.tokens.split_at(self.prompt);
        History { prompt, new }
    }

    /// Takes the next token in and says whether it completes the sequence.
    pub(super) fn accept(
        &mut self,
        token: u32,
        spent: Spent,
        generation: &Generation,
        emit: &mut dyn FnMut(Event<'_>),
    ) -> Option<FinishReason> {
        self.tokens.push(token);
        let Spent { evaluations, passes, rounds, guesses, log_probability } = spent;
        self.evaluations += evaluations;
        self.passes += passes;
        self.rounds += rounds;
        let stop = generation.stop_tokens.contains(&token);
        let piece = self.tell(token, generation);
        let (request, log_probability_of) = (self.request, log_probability.as_ref());
        emit(Event::Token {
            request,
            token,
            text: &piece,
            evaluations,
            passes,
            rounds,
            guesses: &guesses,
            log_probability: log_probability_of,
        });
        self.log_probabilities.extend(log_probability);
        if stop {
            Some(FinishReason::StopToken(token))
        } else if let Some(reason) = self.stop_string(generation) {
            Some(reason)
        } else if self.tokens.len() - self.prompt == generation.max_tokens {
            Some(FinishReason::MaxTokens)
        } else {
            None
        }
    }

    fn stop_string(&self, generation: &Generation) -> Option<FinishReason> {
        let string = self.watch.stopped()?;
        Some(FinishReason::StopString(generation.stop_strings.as_slice()[string].clone()))
    }

    /// Lets the text out that was held back, and closes the sequence.
    pub(super) fn complete(
        mut self,
        reason: FinishReason,
        generation: &Generation,
        emit: &mut dyn FnMut(Event<'_>),
    ) -> Completion {
        let mut rest = String::new();
        if let Some(stream) = &mut self.stream {
            rest = self.watch.push(&stream.finish());
        }
        // The end of a character held back by the stream may complete a stop string.
        let reason = self.stop_string(generation).unwrap_or(reason);
        rest += &self.watch.finish();
        self.text += &rest;
        emit(Event::Finished { request: self.request, text: &rest, reason: &reason });
        Completion {
            tokens: self.tokens.split_off(self.prompt),
            text: self.text,
            finish: reason,
            evaluations: self.evaluations,
            passes: self.passes,
            rounds: self.rounds,
            log_probabilities: self.log_probabilities,
        }
    }
}
