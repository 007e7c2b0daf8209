//! The decoder as the harness asks for it.

use std::sync::atomic::AtomicBool;

use burn::tensor::backend::Backend;
use l2d_core::text::Message;
use l2d_eval::task::Turn;
use l2d_eval::{BoxError, Completion, FinishReason, GenerateRequest, Generator};
use l2d_infer::decode::{self, Decoder, GenerationParams, Hooks, Request};
use l2d_infer::sampler::SamplingParams;

use crate::error::CliError;
use crate::model::Text;

/// Completes the harness's requests, a batch at a time.
pub(crate) struct ModelGenerator<'a, B: Backend> {
    pub(crate) decoder: Decoder<'a, B>,
    pub(crate) text: &'a Text,
    pub(crate) sampling: SamplingParams,
    /// Replaces the task's own limit.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) cancel: &'a AtomicBool,
}

/// A conversation's turns as the chat template takes them.
pub(crate) fn messages(turns: &[Turn]) -> Vec<Message> {
    turns.iter().map(|turn| Message::new(turn.role.as_str(), &turn.content)).collect()
}

impl<B: Backend> Generator for ModelGenerator<'_, B> {
    fn generate(&mut self, requests: &[GenerateRequest]) -> Result<Vec<Completion>, BoxError> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let prompts = requests
            .iter()
            .map(|request| {
                let tokens = self.text.prompt(&messages(&request.turns))?;
                Ok(Request { tokens, class: None, sequence: request.sequence })
            })
            .collect::<Result<Vec<_>, CliError>>()?;
        let generation = GenerationParams {
            max_tokens: self.max_tokens.unwrap_or(first.max_new_tokens),
            seed: first.seed,
            sampling: self.sampling,
            stop_tokens: self.text.stop_tokens.clone(),
            stop_strings: first.stop_strings.clone(),
        };
        let hooks = Hooks { text: Some(self.text), cancel: Some(self.cancel), ..Hooks::default() };
        let completions = self.decoder.generate(&prompts, &generation.check()?, hooks)?;
        Ok(completions
            .into_iter()
            .zip(&prompts)
            .map(|(completion, prompt)| Completion {
                text: completion.text,
                tokens: completion.tokens.len(),
                prompt_tokens: prompt.tokens.len(),
                evaluations: completion.passes,
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
