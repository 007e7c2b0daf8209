//! The autoregression: emit a token in every sequence, run the main path once on it, go on until all are complete.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use l2d_core::L2d;
use l2d_core::lm::{KvCache, Lm, host_values};

use super::diffuser::{Conditions, Diffuser, Positions};
use super::noise::{Lane, Noise, Place, SeededNoise};
use super::request::{Completion, Detokenizer, Event, FinishReason, Generation, Request, TextStream};
use super::settings::{DecodeMode, Diffusion};
use crate::error::{Error, Result};
use crate::stop::StopWatch;

/// Slots of a prompt that go through the main path at once. Bounds the attention scores of long prompts, and the time until
/// a cancellation is seen.
const PREFILL_SLOTS: usize = 256;

/// Decodes batches of sequences with one model and one diffusion.
#[derive(Debug)]
pub struct Decoder<'m, B: Backend> {
    lm: &'m Lm<B>,
    classes: usize,
    diffuser: Option<Diffuser<'m, B>>,
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
}

/// A sequence that is not complete.
struct Row<'a> {
    request: usize,
    sequence: u64,
    class: Option<usize>,
    prompt: usize,
    /// Prompt and new tokens.
    tokens: Vec<u32>,
    passes: usize,
    rounds: usize,
    text: String,
    stream: Option<Box<dyn TextStream + 'a>>,
    watch: StopWatch<'a>,
}

impl<'m, B: Backend> Decoder<'m, B> {
    /// Decodes with the base LM alone, one evaluation a token.
    pub fn plain(lm: &'m Lm<B>) -> Self {
        Self { lm, classes: 0, diffuser: None }
    }

    /// Decodes with diffusion; with a budget of 1 this is the base LM alone. Computes what all tokens share.
    ///
    /// # Errors
    /// [`Error::Parameter`] for guidance with an adapter that has no classes.
    pub fn new(model: &'m L2d<B>, diffusion: &Diffusion) -> Result<Self> {
        let diffuser = Diffuser::new(model, diffusion)?;
        Ok(Self { lm: &model.lm, classes: model.path.config.classes.len(), diffuser })
    }

    /// The same, laying out the evaluations of each token as `mode` says.
    pub fn with_mode(self, mode: DecodeMode) -> Self {
        Self { diffuser: self.diffuser.map(|diffuser| diffuser.with_mode(mode)), ..self }
    }

    /// Continues every request until it is complete. Sequences that end leave the batch; the completions come in the order
    /// of the requests.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::Context`] for a prompt that is empty, too long, or not of this vocabulary;
    /// [`Error::Logits`] where the model's numbers are no distribution.
    pub fn generate(
        &self,
        requests: &[Request],
        generation: &Generation,
        mut hooks: Hooks<'_>,
    ) -> Result<Vec<Completion>> {
        self.check(requests, generation, hooks.text.is_some())?;
        let mut completions: Vec<Option<Completion>> = vec![None; requests.len()];
        let mut seeded = SeededNoise { seed: generation.seed };
        let noise: &mut dyn Noise = match hooks.noise.take() {
            Some(noise) => noise,
            None => &mut seeded,
        };
        let text = hooks.text;
        let mut rows: Vec<Row<'_>> = requests
            .iter()
            .enumerate()
            .map(|(request, asked)| Row {
                request,
                sequence: asked.sequence,
                class: asked.class,
                prompt: asked.tokens.len(),
                tokens: asked.tokens.clone(),
                passes: 0,
                rounds: 0,
                text: String::new(),
                stream: text.map(Detokenizer::begin),
                watch: generation.stop_strings.watch(),
            })
            .collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let cancelled = || hooks.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
        let mut emit = |event: Event<'_>| {
            if let Some(on_event) = &mut hooks.on_event {
                on_event(event);
            }
        };

        let Some((mut cache, mut hidden)) = self.prefill(&rows, generation.max_tokens, &cancelled) else {
            let reason = FinishReason::Cancelled;
            return Ok(rows.into_iter().map(|row| row.complete(reason.clone(), generation, &mut emit)).collect());
        };
        let mut conditions = self.conditions(&rows)?;
        loop {
            let predicted = self.predict(&cache, &hidden, conditions.as_ref(), &rows, noise, &cancelled)?;
            let mut finished: Vec<Option<FinishReason>> = vec![Some(FinishReason::Cancelled); rows.len()];
            if let Some((logits, passes, rounds)) = predicted {
                let logits = host_values(logits);
                let vocabulary = logits.len() / rows.len();
                for (i, (row, logits)) in rows.iter_mut().zip(logits.chunks_exact(vocabulary)).enumerate() {
                    let token = noise.emitted_token(row.place(), &generation.sampler, logits, &row.tokens)? as u32;
                    row.rounds += rounds[i];
                    finished[i] = row.accept(token, passes[i], generation, &mut emit);
                }
            }
            let staying: Vec<usize> = (0..rows.len()).filter(|&i| finished[i].is_none()).collect();
            if staying.len() < rows.len() {
                let mut kept = Vec::with_capacity(staying.len());
                for (row, finish) in rows.drain(..).zip(finished) {
                    match finish {
                        None => kept.push(row),
                        Some(reason) => {
                            let request = row.request;
                            completions[request] = Some(row.complete(reason, generation, &mut emit));
                        }
                    }
                }
                rows = kept;
                if rows.is_empty() {
                    return Ok(completions.into_iter().flatten().collect());
                }
                cache.select(&staying, &self.lm.device());
                conditions = self.conditions(&rows)?;
            }
            let last: Vec<Vec<u32>> =
                rows.iter().filter_map(|row| row.tokens.last()).map(|&token| vec![token]).collect();
            hidden = self.lm.forward(&last, &mut cache);
        }
    }

    /// Everything a request may be refused for, before anything is computed.
    fn check(&self, requests: &[Request], generation: &Generation, has_text: bool) -> Result<()> {
        if !has_text && !generation.stop_strings.as_slice().is_empty() {
            return Err(Error::parameter("stop strings", "given", "absent where the decoder has no text stream"));
        }
        let (vocabulary, context) = (self.lm.config.vocab_size, self.lm.config.max_positions);
        for (request, asked) in requests.iter().enumerate() {
            let refuse = |reason: String| Err(Error::Request { request, reason });
            if asked.tokens.is_empty() {
                return refuse("the prompt is empty; begin with the beginning-of-sequence token".into());
            }
            if let Some(token) = asked.tokens.iter().find(|&&token| token as usize >= vocabulary) {
                return refuse(format!("token {token} is not in the vocabulary of {vocabulary}"));
            }
            if let Some(class) = asked.class.filter(|&class| class >= self.classes) {
                return refuse(format!("class {class} is none of the adapter's {} classes", self.classes));
            }
            let (tokens, wanted) = (asked.tokens.len(), generation.max_tokens);
            if tokens + wanted > context {
                return Err(Error::Context { request, tokens, wanted, context });
            }
        }
        Ok(())
    }

    /// Runs the prompts, padded on the left to one length, through the main path. Returns the cache, with room for the new
    /// tokens, and the hidden states of the last positions, `[rows, H]`; `None` when cancelled.
    fn prefill(
        &self,
        rows: &[Row<'_>],
        max_tokens: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Option<(KvCache<B>, Tensor<B, 2>)> {
        if self.lm.is_packed() {
            return self.prefill_ragged(rows, cancelled);
        }
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

    /// The prompts in pages, a bounded number of rows at a time.
    fn prefill_ragged(&self, rows: &[Row<'_>], cancelled: &dyn Fn() -> bool) -> Option<(KvCache<B>, Tensor<B, 2>)> {
        let mut cache = self.lm.new_cache(Vec::new(), 0);
        let mut last = Vec::with_capacity(rows.len());
        for row in rows {
            let mut own = self.lm.new_cache(vec![0], 0);
            for chunk in row.tokens.chunks(PREFILL_SLOTS) {
                if cancelled() {
                    return None;
                }
                let hidden = self.lm.forward(&[chunk.to_vec()], &mut own); // [chunk, H]
                if own.len_of(0) == row.tokens.len() {
                    last.push(hidden.narrow(0, chunk.len() - 1, 1));
                }
            }
            cache.join(own);
        }
        Some((cache, Tensor::cat(last, 0)))
    }

    fn conditions(&self, rows: &[Row<'_>]) -> Result<Option<Conditions<B>>> {
        let classes: Vec<Option<usize>> = rows.iter().map(|row| row.class).collect();
        self.diffuser.as_ref().map(|diffuser| diffuser.conditions(&classes)).transpose()
    }

    /// Logits of the next token, `[rows, V]`, and the evaluations and rounds each row cost; `None` when cancelled.
    fn predict(
        &self,
        cache: &KvCache<B>,
        hidden: &Tensor<B, 2>,
        conditions: Option<&Conditions<B>>,
        rows: &[Row<'_>],
        noise: &mut dyn Noise,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<(Tensor<B, 2>, Vec<usize>, Vec<usize>)>> {
        if cancelled() {
            return Ok(None);
        }
        let (Some(diffuser), Some(conditions)) = (&self.diffuser, conditions) else {
            return Ok(Some((self.lm.logits(hidden.clone()), vec![0; rows.len()], vec![0; rows.len()])));
        };
        let x0 = rows
            .iter()
            .flat_map(|row| noise.initial(row.place(), diffuser.dim()))
            .map(|x| diffuser.sigma() * x)
            .collect();
        let last: Vec<Vec<usize>> = (0..rows.len()).map(|sequence| vec![cache.len_of(sequence) - 1]).collect();
        let positions = Positions { cache, positions: &last, hidden: hidden.clone() };
        let draw = |row: usize, call: usize, lane: Lane, logits: &[f32], temperature: f64| {
            noise.velocity_token(rows[row].place(), call, lane, logits, temperature)
        };
        let diffused = diffuser.diffuse(&positions, conditions, x0, draw, |_, _| (), || !cancelled())?;
        Ok(diffused.map(|diffused| (diffused.logits, diffused.passes, diffused.rounds)))
    }
}

impl Row<'_> {
    /// Where the randomness of the next token comes from.
    fn place(&self) -> Place {
        Place { sequence: self.sequence, token: (self.tokens.len() - self.prompt) as u32 }
    }

    /// Takes the next token in and says whether it completes the sequence.
    fn accept(
        &mut self,
        token: u32,
        passes: usize,
        generation: &Generation,
        emit: &mut dyn FnMut(Event<'_>),
    ) -> Option<FinishReason> {
        self.tokens.push(token);
        self.passes += passes;
        let stop = generation.stop_tokens.contains(&token);
        let piece = match &mut self.stream {
            Some(stream) if !stop => self.watch.push(&stream.push(token)),
            _ => String::new(),
        };
        self.text += &piece;
        emit(Event::Token { request: self.request, token, text: &piece, passes });
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
    fn complete(
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
            passes: self.passes,
            rounds: self.rounds,
        }
    }
}
