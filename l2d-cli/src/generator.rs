//! The decoder as the harness asks for it.

use std::sync::atomic::AtomicBool;

use burn::tensor::backend::Backend;
use l2d_core::text::Message;
use l2d_eval::task::Turn;
use l2d_eval::{BoxError, Completion, FinishReason, GenerateRequest, Generator, Guessed};
use l2d_infer::decode::{self, Beam, Decoder, Event, Generation, GenerationParams, Guess, Hooks, Request, Search};
use l2d_infer::sampler::SamplingParams;

use crate::error::CliError;
use crate::model::Text;

/// Completes the harness's requests, a batch at a time.
pub(crate) struct ModelGenerator<'a, B: Backend> {
    pub(crate) decoder: Decoder<'a, B>,
    pub(crate) text: &'a Text,
    /// What guides each sequence.
    pub(crate) guide: Guide,
    pub(crate) sampling: SamplingParams,
    /// In the place of sampling.
    pub(crate) beam: Option<Beam>,
    /// Keep what the answers were along the diffusion's time.
    pub(crate) along: bool,
    pub(crate) cancel: &'a AtomicBool,
    /// Threads to decode a batch in, at most.
    pub(crate) threads: usize,
}

/// What guides sequences.
#[derive(Debug, Clone)]
pub(crate) enum Guide {
    /// The same class for all, by its place in the adapter's list, or none.
    All(Option<usize>),
    /// Each by its task's class.
    ByTask(Vec<(&'static str, usize)>),
}

impl Guide {
    /// The class of a row.
    fn class(&self, of_row: &str) -> Option<usize> {
        match self {
            Self::All(class) => *class,
            Self::ByTask(places) => places.iter().find(|(name, _)| *name == of_row).map(|(_, place)| *place),
        }
    }

    /// Whether rows may differ in their class.
    pub(crate) fn by_task(&self) -> bool {
        matches!(self, Self::ByTask(_))
    }
}

/// A conversation's turns as the chat template takes them.
pub(crate) fn messages(turns: &[Turn]) -> Vec<Message> {
    turns.iter().map(|turn| Message::new(turn.role.as_str(), &turn.content)).collect()
}

/// Sequences a thread should have at least: below, the products are too thin to be worth a pass over the weights.
const ROWS_PER_THREAD: usize = 16;

/// What was guessed on the way to each token of a sequence.
type Guesses = Vec<Vec<Guess>>;
/// A sequence with them.
type Decoded = (decode::Completion, Guesses);

/// The chosen hypothesis of a search, at the cost of all. Of one that was called off it is no result.
fn chosen(search: Search) -> decode::Completion {
    let Search { mut hypotheses, chosen, interrupted, evaluations, passes, .. } = search;
    let found = hypotheses.swap_remove(chosen).completion;
    let finish = if interrupted { decode::FinishReason::Cancelled } else { found.finish };
    decode::Completion { finish, evaluations, passes, ..found }
}

impl<B: Backend> ModelGenerator<'_, B> {
    /// Decodes a batch in as many threads as it feeds. A sequence's tokens depend on its own number alone, not on what it
    /// is decoded beside.
    fn decode(&self, prompts: &[Request], generation: &Generation) -> l2d_infer::Result<Vec<Decoded>> {
        let threads = self.threads.min(prompts.len() / ROWS_PER_THREAD).max(1);
        if threads == 1 {
            return self.decode_together(prompts, generation);
        }
        let share = prompts.len().div_ceil(threads);
        let parts: Vec<_> = std::thread::scope(|scope| {
            let start = |part| scope.spawn(move || self.decode_together(part, generation));
            let running: Vec<_> = prompts.chunks(share).map(start).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        });
        let mut completions = Vec::with_capacity(prompts.len());
        for part in parts {
            completions.extend(part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(completions)
    }

    fn decode_together(&self, prompts: &[Request], generation: &Generation) -> l2d_infer::Result<Vec<Decoded>> {
        if let Some(beam) = &self.beam {
            let found = self.decoder.search(prompts, generation, beam, Some(self.text), Some(self.cancel))?;
            return Ok(found.into_iter().map(|found| (chosen(found), Guesses::new())).collect());
        }
        let mut guessed = vec![Guesses::new(); prompts.len()];
        let mut keep = |event: Event<'_>| {
            if let Event::Token { request, guesses, .. } = event {
                guessed[request].push(guesses.to_vec());
            }
        };
        let on_event: Option<&mut dyn FnMut(Event<'_>)> = if self.along { Some(&mut keep) } else { None };
        let hooks = Hooks {
            text: Some(self.text),
            cancel: Some(self.cancel),
            guesses: self.along,
            on_event,
            ..Hooks::default()
        };
        let completions = self.decoder.generate(prompts, generation, hooks)?;
        Ok(completions.into_iter().zip(guessed).collect())
    }

    /// What the answer was at each time of the grid. An adaptive solver has no common times: then nothing is kept.
    fn along(&self, tokens: &[u32], guesses: &Guesses) -> Result<Vec<Guessed>, CliError> {
        let times: Vec<f64> = guesses.first().into_iter().flatten().map(|guess| guess.t).collect();
        let common = guesses.iter().all(|guesses| guesses.iter().map(|guess| guess.t).eq(times.iter().copied()));
        if !common {
            return Ok(Vec::new());
        }
        let at = |(place, t): (usize, &f64)| {
            let guessed: Vec<u32> = guesses.iter().map(|guesses| guesses[place].token).collect();
            let agreeing = guessed.iter().zip(tokens).filter(|(guess, token)| guess == token).count();
            Ok(Guessed { t: *t, text: self.text.tokenizer.decode(&guessed, true)?, agreeing })
        };
        times.iter().enumerate().map(at).collect()
    }
}

impl<B: Backend> Generator for ModelGenerator<'_, B> {
    fn generate(&mut self, requests: &[GenerateRequest]) -> Result<Vec<Completion>, BoxError> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let prompts = requests
            .iter()
            .map(|request| {
                let tokens = self.text.prompt(&messages(&request.turns))?;
                Ok(Request { tokens, class: self.guide.class(request.class), sequence: request.sequence })
            })
            .collect::<Result<Vec<_>, CliError>>()?;
        let generation = GenerationParams {
            max_tokens: first.max_new_tokens,
            seed: first.seed,
            sampling: self.sampling.clone(),
            stop_tokens: self.text.stop_tokens.clone(),
            stop_strings: first.stop_strings.clone(),
        };
        let decoded = self.decode(&prompts, &generation.check()?)?;
        let completion = |((completion, guesses), prompt): (Decoded, &Request)| {
            Ok(Completion {
                along: if self.along { self.along(&completion.tokens, &guesses)? } else { Vec::new() },
                text: completion.text,
                tokens: completion.tokens.len(),
                prompt_tokens: prompt.tokens.len(),
                evaluations: completion.evaluations,
                finish: match completion.finish {
                    decode::FinishReason::StopToken(_) => FinishReason::EndOfTurn,
                    decode::FinishReason::StopString(_) => FinishReason::StopString,
                    decode::FinishReason::MaxTokens => FinishReason::MaxTokens,
                    decode::FinishReason::Cancelled => FinishReason::Cancelled,
                },
            })
        };
        decoded.into_iter().zip(&prompts).map(completion).collect()
    }
}
