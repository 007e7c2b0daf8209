//! The decoder as the harness asks for it.

use std::sync::atomic::AtomicBool;

use burn::tensor::backend::Backend;
use l2d_core::text::Message;
use l2d_eval::task::Turn;
use l2d_eval::{BoxError, Completion, FinishReason, GenerateRequest, Generator};
use l2d_infer::decode::{self, Beam, Decoder, Generation, GenerationParams, Hooks, Request, Search};
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
    fn decode(&self, prompts: &[Request], generation: &Generation) -> l2d_infer::Result<Vec<decode::Completion>> {
        let decode = |prompts: &[Request]| {
            if let Some(beam) = &self.beam {
                let found = self.decoder.search(prompts, generation, beam, Some(self.text), Some(self.cancel))?;
                return Ok(found.into_iter().map(chosen).collect());
            }
            let hooks = Hooks { text: Some(self.text), cancel: Some(self.cancel), ..Hooks::default() };
            self.decoder.generate(prompts, generation, hooks)
        };
        let threads = self.threads.min(prompts.len() / ROWS_PER_THREAD).max(1);
        if threads == 1 {
            return decode(prompts);
        }
        let share = prompts.len().div_ceil(threads);
        let parts: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = prompts.chunks(share).map(|part| scope.spawn(move || decode(part))).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        });
        let mut completions = Vec::with_capacity(prompts.len());
        for part in parts {
            completions.extend(part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(completions)
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
        let completions = self.decode(&prompts, &generation.check()?)?;
        Ok(completions
            .into_iter()
            .zip(&prompts)
            .map(|(completion, prompt)| Completion {
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
            .collect())
    }
}
