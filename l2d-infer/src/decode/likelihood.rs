//! How likely the plain LM finds given continuations: what multiple-choice benchmarks are scored by.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use l2d_core::lm::host_values;

use super::engine::{Decoder, PREFILL_SLOTS};
use crate::error::{Error, Result};
use crate::sampler::{argmax, log_softmax};

/// Rows that go through the head at once: a row of logits is as long as the vocabulary.
const HEAD_ROWS: usize = 64;

/// A context and continuations of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuations {
    /// Tokens that come first, one at least.
    pub context: Vec<u32>,
    /// Tokens that may follow, none of them empty.
    pub options: Vec<Vec<u32>>,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// The sum of its tokens' log-probabilities, each given all before it, in nats.
    pub log_probability: f64,
    /// Its tokens.
    pub tokens: usize,
    /// Whether greedy decoding would give it.
    pub greedy: bool,
}

impl<B: Backend> Decoder<'_, B> {
    /// The likelihood of every option of every question, by the LM alone. Contexts go through the main path once, however
    /// many options they have; a packed model starts from the longest beginning it has lately computed. `None` when
    /// cancelled.
    ///
    /// # Errors
    /// [`Error::NoLikelihood`] where this decoder diffuses; [`Error::Request`] for an empty context or option, or a token
    /// outside the vocabulary; [`Error::Context`] where the two do not fit the model's context; [`Error::Logits`] where the
    /// model's numbers are no distribution.
    pub fn likelihoods(
        &self,
        questions: &[Continuations],
        cancel: Option<&AtomicBool>,
    ) -> Result<Option<Vec<Vec<Likelihood>>>> {
        if self.diffuses() {
            return Err(Error::NoLikelihood);
        }
        self.check_continuations(questions)?;
        let mut all = Vec::with_capacity(questions.len());
        for question in questions {
            if cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Ok(None);
            }
            let rows = if self.lm.is_packed() { self.hidden_paged(question) } else { self.hidden_padded(question) };
            all.push(self.score(question, rows)?);
        }
        Ok(Some(all))
    }

    fn check_continuations(&self, questions: &[Continuations]) -> Result<()> {
        let (vocabulary, context) = (self.lm.config.vocab_size, self.lm.config.max_positions);
        for (request, question) in questions.iter().enumerate() {
            let refuse = |reason: String| Err(Error::Request { request, reason });
            if question.context.is_empty() {
                return refuse("the context is empty; begin with the beginning-of-sequence token".into());
            }
            if question.options.iter().any(Vec::is_empty) {
                return refuse("a continuation is empty".into());
            }
            let mut tokens = question.context.iter().chain(question.options.iter().flatten());
            if let Some(token) = tokens.find(|&&token| token as usize >= vocabulary) {
                return refuse(format!("token {token} is not in the vocabulary of {vocabulary}"));
            }
            let (tokens, wanted) = (question.context.len(), question.options.iter().map(Vec::len).max().unwrap_or(0));
            // The last token is predicted and never goes in.
            if tokens + wanted > context + 1 {
                return Err(Error::Context { request, tokens, wanted, context });
            }
        }
        Ok(())
    }

    /// The hidden states that predict the options' tokens, `[options' tokens, H]`, option by option.
    fn hidden_paged(&self, question: &Continuations) -> Tensor<B, 2> {
        let Continuations { context, options } = question;
        let known = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner).longest(context);
        let mut cache = known.unwrap_or_else(|| self.lm.new_cache(vec![0], 0));
        let mut last = None;
        for chunk in context[cache.len_of(0)..].chunks(PREFILL_SLOTS) {
            let hidden = self.lm.forward(&[chunk.to_vec()], &mut cache); // [chunk, H]
            last = Some(hidden.narrow(0, chunk.len() - 1, 1));
        }
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner).remember(context, &cache);
        // `longest` leaves out the last token at least, and contexts are not empty.
        let last = last.expect("the context's last token was computed");
        let going_on: Vec<usize> = (0..options.len()).filter(|&option| options[option].len() > 1).collect();
        let rows: Vec<Vec<u32>> =
            going_on.iter().map(|&option| options[option][..options[option].len() - 1].to_vec()).collect();
        let mut after = None;
        if !rows.is_empty() {
            cache.select(&vec![0; rows.len()], &self.lm.device());
            after = Some(self.lm.forward(&rows, &mut cache)); // [sum of rows, H]
        }
        let mut parts = Vec::new();
        let mut at = 0;
        for option in options {
            parts.push(last.clone());
            if let Some(after) = after.as_ref().filter(|_| option.len() > 1) {
                parts.push(after.clone().narrow(0, at, option.len() - 1));
                at += option.len() - 1;
            }
        }
        Tensor::cat(parts, 0)
    }

    /// [`Decoder::hidden_paged`] with tensors: context and option of each row together, padded on the left to one length.
    fn hidden_padded(&self, question: &Continuations) -> Tensor<B, 2> {
        let Continuations { context, options } = question;
        let length = |option: &Vec<u32>| context.len() + option.len() - 1;
        let longest = options.iter().map(length).max().unwrap_or(0);
        let padding: Vec<usize> = options.iter().map(|option| longest - length(option)).collect();
        let rows: Vec<Vec<u32>> = options
            .iter()
            .zip(&padding)
            .map(|(option, &pad)| {
                let tokens = context.iter().chain(&option[..option.len() - 1]).copied();
                std::iter::repeat_n(0, pad).chain(tokens).collect()
            })
            .collect();
        let mut cache = self.lm.new_cache(padding, longest);
        let hidden = self.lm.forward(&rows, &mut cache); // [options * longest, H]
        let predicting = |(row, option): (usize, &Vec<u32>)| {
            hidden.clone().narrow(0, (row + 1) * longest - option.len(), option.len()) // [option, H]
        };
        Tensor::cat(options.iter().enumerate().map(predicting).collect(), 0)
    }

    fn score(&self, question: &Continuations, hidden: Tensor<B, 2>) -> Result<Vec<Likelihood>> {
        let [rows, _] = hidden.dims();
        let mut wanted = question.options.iter().flatten();
        let mut tokens = Vec::with_capacity(rows);
        for start in (0..rows).step_by(HEAD_ROWS) {
            let count = HEAD_ROWS.min(rows - start);
            let logits = host_values(self.lm.logits(hidden.clone().narrow(0, start, count))); // [count, V]
            for (logits, &token) in logits.chunks_exact(logits.len() / count).zip(wanted.by_ref().take(count)) {
                let all = log_softmax(logits)?;
                tokens.push((all[token as usize], argmax(logits)? == token as usize));
            }
        }
        let mut tokens = tokens.into_iter();
        let summed = question.options.iter().map(|option| {
            let each: Vec<(f64, bool)> = tokens.by_ref().take(option.len()).collect();
            Likelihood {
                log_probability: each.iter().map(|(log_probability, _)| log_probability).sum(),
                tokens: option.len(),
                greedy: each.iter().all(|(_, greedy)| *greedy),
            }
        });
        Ok(summed.collect())
    }
}
