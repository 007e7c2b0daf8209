//! The autoregression: emit a token in every sequence, run the main path once on it, go on until all are complete.
//!
//! Sequences are decoded together up to a limit. One that ends leaves the batch, and one that waits takes its place at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use l2d_core::L2d;
use l2d_core::lm::{KvCache, Lm, host_values};

use super::diffuser::{Conditions, Diffuser, Positions};
use super::noise::{Lane, Noise, SeededNoise};
use super::prefix::Prefixes;
use super::request::{Completion, Detokenizer, Event, FinishReason, Generation, Request, TokenLogProbability};
use super::row::{Row, Spent};
use super::settings::{DecodeMode, Diffusion};
use crate::error::{Error, Result};
use crate::sampler::{log_softmax, top};

/// Slots of a prompt that go through the main path at once. Bounds the attention scores of long prompts, and the time until
/// a cancellation is seen.
pub(super) const PREFILL_SLOTS: usize = 256;

/// Decodes batches of sequences with one model and one diffusion.
#[derive(Debug)]
pub struct Decoder<'m, B: Backend> {
    pub(super) lm: &'m Lm<B>,
    classes: usize,
    diffuser: Option<Diffuser<'m, B>>,
    /// Sequences decoded together, at most.
    batch: usize,
    pub(super) prefixes: Mutex<Prefixes<B>>,
}

/// What a caller may hang into a generation. The default is nothing: numbers from the seed, no text, no events.
#[derive(Default)]
pub struct Hooks<'a> {
    /// Turns tokens into text; without it there is no text, and stop strings are refused.
    pub text: Option<&'a dyn Detokenizer>,
    /// Sees every event as it happens.
    pub on_event: Option<&'a mut dyn FnMut(Event<'_>)>,
    /// Raised by another thread (or by `on_event`), it ends all sequences within one evaluation.
    pub cancel: Option<&'a AtomicBool>,
    /// Replaces the numbers of the seed.
    pub noise: Option<&'a mut dyn Noise>,
    /// Whether events carry the guesses on the way to each token. Costs an arg-max of each evaluation's logits.
    pub guesses: bool,
    /// Whether tokens carry their log-probability, and those of how many of the most likely. The plain LM's alone.
    pub log_probabilities: Option<usize>,
}

/// The sequences that are being decoded.
pub(super) struct Running<'a, B: Backend> {
    pub(super) rows: Vec<Row<'a>>,
    pub(super) cache: KvCache<B>,
    /// The main path at each row's last position, `[rows, H]`.
    pub(super) hidden: Tensor<B, 2>,
    pub(super) conditions: Option<Conditions<B>>,
}

impl<'m, B: Backend> Decoder<'m, B> {
    /// Decodes with the base LM alone, one evaluation a token.
    pub fn plain(lm: &'m Lm<B>) -> Self {
        Self { lm, classes: 0, diffuser: None, batch: usize::MAX, prefixes: Mutex::default() }
    }

    /// Decodes with diffusion; with a budget of 1 this is the base LM alone. Computes what all tokens share.
    ///
    /// # Errors
    /// [`Error::Parameter`] for guidance with an adapter that has no classes.
    pub fn new(model: &'m L2d<B>, diffusion: &Diffusion) -> Result<Self> {
        let diffuser = Diffuser::new(model, diffusion)?;
        let classes = model.path.config.classes.len();
        Ok(Self { classes, diffuser, ..Self::plain(&model.lm) })
    }

    /// The same, laying out the evaluations of each token as `mode` says.
    pub fn with_mode(self, mode: DecodeMode) -> Self {
        Self { diffuser: self.diffuser.map(|diffuser| diffuser.with_mode(mode)), ..self }
    }

    /// The same, decoding at most `sequences` together; the others wait until one is complete. Without a limit all requests
    /// of a call are decoded together.
    pub fn with_batch(self, sequences: usize) -> Self {
        Self { batch: sequences.max(1), ..self }
    }

    /// Continues every request until it is complete; the completions come in the order of the requests.
    ///
    /// With packed weights (see [`Lm::packed`]) a completion follows from model, prompt, settings, seed and
    /// [`Request::sequence`] alone, to the bit: not from the other requests, nor from the limit of the batch.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::Context`] for a prompt that is empty, too long, or not of this vocabulary;
    /// [`Error::Parameter`] for stop strings without text or a bias outside the vocabulary; [`Error::NoLikelihood`] for
    /// log-probabilities with diffusion; [`Error::At`] with [`Error::Logits`] where the model's numbers are no distribution,
    /// and with [`Error::Integration`] where an adaptive solver does not arrive.
    pub fn generate(
        &self,
        requests: &[Request],
        generation: &Generation,
        mut hooks: Hooks<'_>,
    ) -> Result<Vec<Completion>> {
        self.check(requests, generation, hooks.text.is_some())?;
        if hooks.log_probabilities.is_some() && self.diffuser.is_some() {
            return Err(Error::NoLikelihood);
        }
        let mut completions: Vec<Option<Completion>> = vec![None; requests.len()];
        let mut seeded = SeededNoise { seed: generation.seed };
        let noise: &mut dyn Noise = match hooks.noise.take() {
            Some(noise) => noise,
            None => &mut seeded,
        };
        let (text, guesses) = (hooks.text, hooks.guesses);
        let cancelled = || hooks.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
        let mut emit = |event: Event<'_>| {
            if let Some(on_event) = &mut hooks.on_event {
                on_event(event);
            }
        };
        let mut waiting: VecDeque<Row<'_>> =
            requests.iter().enumerate().map(|(i, asked)| Row::new(i, asked, generation, text)).collect();
        let mut running: Option<Running<'_, B>> = None;
        loop {
            let room = self.batch - running.as_ref().map_or(0, |running| running.rows.len());
            let joining: Vec<Row<'_>> = waiting.drain(..room.min(waiting.len())).collect();
            if !joining.is_empty() {
                let Some(prefilled) = self.prefill(&joining, generation.max_tokens, &cancelled) else {
                    waiting.extend(joining);
                    break;
                };
                running = Some(self.join(running, joining, prefilled)?);
            }
            let Some(batch) = &mut running else { break };
            let Some((logits, spent)) = self.predict(batch, noise, guesses, &cancelled)? else { break };
            let logits = host_values(logits);
            let vocabulary = logits.len() / batch.rows.len();
            let mut finished = Vec::with_capacity(batch.rows.len());
            for ((row, logits), mut spent) in batch.rows.iter_mut().zip(logits.chunks_exact(vocabulary)).zip(spent) {
                let token = noise.emitted_token(row.place(), &generation.sampler, logits, row.history());
                let token = token.map_err(|error| row.located(error))?;
                if let Some(count) = hooks.log_probabilities {
                    let all = log_softmax(logits).map_err(|error| row.located(error))?;
                    spent.log_probability = Some(TokenLogProbability { chosen: all[token], top: top(&all, count) });
                }
                finished.push(row.accept(token as u32, spent, generation, &mut emit));
            }
            let staying: Vec<usize> = (0..finished.len()).filter(|&i| finished[i].is_none()).collect();
            if staying.len() < finished.len() {
                for (row, finish) in std::mem::take(&mut batch.rows).into_iter().zip(finished) {
                    match finish {
                        None => batch.rows.push(row),
                        Some(reason) => {
                            let request = row.request;
                            completions[request] = Some(row.complete(reason, generation, &mut emit));
                        }
                    }
                }
                if staying.is_empty() {
                    running = None;
                    continue;
                }
                batch.cache.select(&staying, &self.lm.device());
                batch.conditions = self.conditions(&batch.rows)?;
            }
            let last = batch.rows.iter().filter_map(|row| row.tokens.last());
            let last: Vec<Vec<u32>> = last.map(|&token| vec![token]).collect();
            batch.hidden = self.lm.forward(&last, &mut batch.cache);
        }
        // Called off: whoever is left ends here.
        let left = running.into_iter().flat_map(|running| running.rows).chain(waiting);
        for row in left {
            let request = row.request;
            completions[request] = Some(row.complete(FinishReason::Cancelled, generation, &mut emit));
        }
        Ok(completions.into_iter().flatten().collect())
    }

    /// Whether tokens take more than the plain LM.
    pub(super) fn diffuses(&self) -> bool {
        self.diffuser.is_some()
    }

    pub(super) fn device(&self) -> B::Device {
        self.lm.device()
    }

    /// Runs one more token of each sequence through the main path: the hidden states, `[rows, H]`.
    pub(super) fn forward(&self, tokens: &[Vec<u32>], cache: &mut KvCache<B>) -> Tensor<B, 2> {
        self.lm.forward(tokens, cache)
    }

    /// Everything a request may be refused for, before anything is computed.
    pub(super) fn check(&self, requests: &[Request], generation: &Generation, has_text: bool) -> Result<()> {
        if !has_text && !generation.stop_strings.as_slice().is_empty() {
            return Err(Error::parameter("stop strings", "given", "absent where the decoder has no text stream"));
        }
        let (vocabulary, context) = (self.lm.config.vocab_size, self.lm.config.max_positions);
        if let Some(token) = generation.sampler.params().logit_bias.keys().find(|&&token| token as usize >= vocabulary)
        {
            let token = format!("{token}, in a vocabulary of {vocabulary}");
            return Err(Error::parameter("token of a logit bias", token, "in the vocabulary"));
        }
        for (request, asked) in requests.iter().enumerate() {
            let refuse = |reason: String| Err(Error::Request { request, reason });
            if asked.tokens.is_empty() {
                return refuse("the prompt is empty; begin with the beginning-of-sequence token".into());
            }
            if let Some(token) = asked.tokens.iter().find(|&&token| token as usize >= vocabulary) {
                return refuse(format!("token {token} is not in the vocabulary of {vocabulary}"));
            }
            if let Some(class) = asked.class.filter(|&class| class >= self.classes) {
                return refuse(match self.classes {
                    0 => format!(
                        "class {class} was given, and this model has none: leave it out, or decode with an \
                        adapter that was trained with guidance classes"
                    ),
                    classes => format!("class {class} is none of the adapter's {classes} classes"),
                });
            }
            let (tokens, wanted) = (asked.tokens.len(), generation.max_tokens);
            if tokens + wanted > context {
                return Err(Error::Context { request, tokens, wanted, context });
            }
        }
        Ok(())
    }

    /// Runs prompts through the main path. Returns the cache and the hidden states of the last positions, `[rows, H]`;
    /// `None` when cancelled.
    pub(super) fn prefill(
        &self,
        rows: &[Row<'_>],
        max_tokens: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Option<(KvCache<B>, Tensor<B, 2>)> {
        if !self.lm.is_packed() {
            return self.prefill_padded(rows, max_tokens, cancelled);
        }
        let mut cache = self.lm.new_cache(Vec::new(), 0);
        let mut last = Vec::with_capacity(rows.len());
        for row in rows {
            let known = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner).longest(&row.tokens);
            let mut own = known.unwrap_or_else(|| self.lm.new_cache(vec![0], 0));
            let start = own.len_of(0);
            for chunk in row.tokens[start..].chunks(PREFILL_SLOTS) {
                if cancelled() {
                    return None;
                }
                let hidden = self.lm.forward(&[chunk.to_vec()], &mut own); // [chunk, H]
                if own.len_of(0) == row.tokens.len() {
                    last.push(hidden.narrow(0, chunk.len() - 1, 1));
                }
            }
            self.prefixes.lock().unwrap_or_else(PoisonError::into_inner).remember(&row.tokens, &own);
            cache.join(own);
        }
        Some((cache, Tensor::cat(last, 0)))
    }

    /// [`Decoder::prefill`] into tensors: the prompts padded on the left to one length, with room for the new tokens.
    fn prefill_padded(
        &self,
        rows: &[Row<'_>],
        max_tokens: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Option<(KvCache<B>, Tensor<B, 2>)> {
        let longest = rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
        let padding: Vec<usize> = rows.iter().map(|row| longest - row.tokens.len()).collect();
        let padded: Vec<Vec<u32>> = rows
            .iter()
            .zip(&padding)
            .map(|(row, &pad)| std::iter::repeat_n(0, pad).chain(row.tokens.iter().copied()).collect())
            .collect();
        let mut cache = self.lm.new_cache(padding, longest + max_tokens);
        let mut start = 0;
        loop {
            if cancelled() {
                return None;
            }
            let end = longest.min(start + PREFILL_SLOTS);
            let chunk: Vec<Vec<u32>> = padded.iter().map(|row| row[start..end].to_vec()).collect();
            let hidden = self.lm.forward(&chunk, &mut cache); // [rows * (end - start), H]
            if end == longest {
                let width = hidden.dims()[1];
                let by_row = hidden.reshape([rows.len(), end - start, width]);
                return Some((cache, by_row.narrow(1, end - start - 1, 1).reshape([rows.len(), width])));
            }
            start = end;
        }
    }

    /// Puts new sequences beside those that are running.
    pub(super) fn join<'a>(
        &self,
        running: Option<Running<'a, B>>,
        joining: Vec<Row<'a>>,
        (new_cache, new_hidden): (KvCache<B>, Tensor<B, 2>),
    ) -> Result<Running<'a, B>> {
        let (rows, cache, hidden) = match running {
            None => (joining, new_cache, new_hidden),
            Some(Running { mut rows, mut cache, hidden, .. }) => {
                rows.extend(joining);
                cache.join(new_cache);
                (rows, cache, Tensor::cat(vec![hidden, new_hidden], 0))
            }
        };
        let conditions = self.conditions(&rows)?;
        Ok(Running { rows, cache, hidden, conditions })
    }

    pub(super) fn conditions(&self, rows: &[Row<'_>]) -> Result<Option<Conditions<B>>> {
        let classes: Vec<Option<usize>> = rows.iter().map(|row| row.class).collect();
        self.diffuser.as_ref().map(|diffuser| diffuser.conditions(&classes)).transpose()
    }

    /// Logits of the next token, `[rows, V]`, and what each row spent on it; `None` when cancelled.
    pub(super) fn predict(
        &self,
        batch: &Running<'_, B>,
        noise: &mut dyn Noise,
        guesses: bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<(Tensor<B, 2>, Vec<Spent>)>> {
        if cancelled() {
            return Ok(None);
        }
        let Running { rows, cache, hidden, conditions } = batch;
        let (Some(diffuser), Some(conditions)) = (&self.diffuser, conditions) else {
            let spent = rows.iter().map(|_| Spent { evaluations: 1, ..Spent::default() }).collect();
            return Ok(Some((self.lm.logits(hidden.clone()), spent)));
        };
        let x0 = rows
            .iter()
            .flat_map(|row| noise.initial(row.place(), diffuser.dim()))
            .map(|x| diffuser.sigma() * x)
            .collect();
        let last: Vec<Vec<usize>> = (0..rows.len()).map(|sequence| vec![cache.len_of(sequence) - 1]).collect();
        let positions = Positions { cache, positions: &last, hidden: hidden.clone(), guesses };
        let draw = |row: usize, call: usize, lane: Lane, logits: &[f32], temperature: f64| {
            noise.velocity_token(rows[row].place(), call, lane, logits, temperature).map_err(|e| e.in_row(row))
        };
        let diffused = diffuser.diffuse(&positions, conditions, x0, draw, |_, _, _| (), || !cancelled());
        let diffused = diffused.map_err(|error| match error {
            Error::Row { row, source } => rows[row].located(*source),
            other => other,
        })?;
        Ok(diffused.map(|diffused| {
            let mut guesses = diffused.guesses.into_iter();
            let costs = diffused.evaluations.into_iter().zip(diffused.passes.into_iter().zip(diffused.rounds));
            let spent = costs.map(|(evaluations, (passes, rounds))| Spent {
                evaluations,
                passes,
                rounds,
                guesses: guesses.next().unwrap_or_default(),
                log_probability: None,
            });
            (diffused.logits, spent.collect())
        }))
    }
}
