//! Token search: several hypotheses of one sequence at once, kept by their likelihood.
//!
//! A hypothesis that forks shares the pages of keys and values with its kin; nothing of the prompt is copied. With
//! diffusion, a step's likelihood is that of the logits at the end of the token's diffusion; all hypotheses of a sequence
//! start from the same noise, so that their scores differ by their text and not by their luck.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::backend::Backend;
use l2d_core::lm::host_values;
use serde::{Deserialize, Serialize};

use super::engine::Decoder;
use super::noise::SeededNoise;
use super::request::{Completion, Detokenizer, FinishReason, Generation, Request};
use super::row::Row;
use crate::error::{Error, Result};
use crate::rng::{self, Purpose};
use crate::sampler::{log_softmax, top};

/// A beam search, as a user writes it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BeamParams {
    /// Hypotheses kept at each token. 1 takes the most likely token always (where [`Stopping::Certain`] does not look beyond
    /// its end).
    pub hypotheses: usize,
    /// A hypothesis of `n` tokens scores its log-likelihood divided by `n^length_exponent`: 0 is the likelihood itself, more
    /// favours long ones.
    pub length_exponent: f64,
    /// At 0 the best finished hypothesis is chosen, above it one drawn from `softmax(score / score_temperature)`.
    pub score_temperature: f64,
    /// When to stop looking.
    pub stopping: Stopping,
}

/// When a search has seen enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopping {
    /// As soon as as many hypotheses have ended as are kept.
    First,
    /// Once they have, and none that goes on scores better now than the worst of them. Hugging Face's default.
    #[default]
    Likely,
    /// Once none that goes on can still come to score better, however it ends.
    Certain,
}

impl Default for BeamParams {
    fn default() -> Self {
        Self { hypotheses: 4, length_exponent: 1.0, score_temperature: 0.0, stopping: Stopping::default() }
    }
}

impl BeamParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the number out of range.
    pub fn check(self) -> Result<Beam> {
        if self.hypotheses == 0 {
            return Err(Error::parameter("hypotheses", 0, "at least 1"));
        }
        if !self.length_exponent.is_finite() {
            return Err(Error::parameter(
                "length_exponent",
                self.length_exponent,
                "a finite number; 0 ignores lengths",
            ));
        }
        if !(self.score_temperature.is_finite() && self.score_temperature >= 0.0) {
            let expected = "a finite number, 0 (the best hypothesis) or above";
            return Err(Error::parameter("score_temperature", self.score_temperature, expected));
        }
        Ok(Beam(self))
    }
}

/// Checked [`BeamParams`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beam(BeamParams);

impl Beam {
    fn score(&self, log_likelihood: f64, tokens: usize) -> f64 {
        log_likelihood / (tokens as f64).powf(self.0.length_exponent)
    }
}

/// A finished hypothesis.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens and text. Evaluations and forward passes are those of its own line, its forebears included.
    pub completion: Completion,
    /// The sum of its tokens' log-probabilities, after bias and penalties.
    pub log_likelihood: f64,
    /// What it was ranked by.
    pub score: f64,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The finished hypotheses, best score first; no more than were kept. Of a search that was called off, then those that
    /// had not ended.
    pub hypotheses: Vec<Hypothesis>,
    /// Whether it was called off: what was chosen may not be what the search would have found.
    pub interrupted: bool,
    /// The place of the one that was chosen.
    pub chosen: usize,
    /// Evaluations as a budget counts them over all hypotheses, dropped ones included.
    pub evaluations: usize,
    /// Evaluations of the diffusion path among them.
    pub passes: usize,
    /// Evaluations of the main path over all hypotheses, the prompt's apart.
    pub main_passes: usize,
}

/// A hypothesis that goes on.
struct Live<'a> {
    row: Row<'a>,
    log_likelihood: f64,
}

/// A way on: which hypothesis, with which token, and the log-likelihood then.
#[derive(Debug, Clone, Copy)]
struct Way {
    from: usize,
    token: u32,
    log_likelihood: f64,
}

impl<B: Backend> Decoder<'_, B> {
    /// Continues every request by beam search, one request after the other.
    ///
    /// Bias and penalties of the generation's sampling shape the likelihood. Nothing is drawn on the way, so its
    /// temperature and filters must be left alone.
    ///
    /// # Errors
    /// As [`Decoder::generate`]; [`Error::Parameter`] for sampling that draws by anything but the likelihood.
    pub fn search(
        &self,
        requests: &[Request],
        generation: &Generation,
        beam: &Beam,
        text: Option<&dyn Detokenizer>,
        cancel: Option<&AtomicBool>,
    ) -> Result<Vec<Search>> {
        self.check(requests, generation, text.is_some())?;
        let sampling = generation.sampler.params();
        let expected = "left alone in a beam search, which draws nothing on the way";
        for (name, value, usual) in [
            ("temperature", sampling.temperature, 1.0),
            ("top_k", sampling.top_k as f64, 0.0),
            ("top_p", sampling.top_p, 1.0),
            ("min_p", sampling.min_p, 0.0),
        ] {
            if value != usual {
                return Err(Error::parameter(name, value, expected));
            }
        }
        let cancelled = || cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
        let search = |(i, request)| self.search_one(i, request, generation, beam, text, &cancelled);
        requests.iter().enumerate().map(search).collect()
    }

    fn search_one(
        &self,
        number: usize,
        request: &Request,
        generation: &Generation,
        beam: &Beam,
        text: Option<&dyn Detokenizer>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Search> {
        let kept = beam.0.hypotheses;
        // Text is only followed on the way where it can end a hypothesis.
        let watched = if generation.stop_strings.as_slice().is_empty() { None } else { text };
        let mut noise = SeededNoise { seed: generation.seed };
        let mut search =
            Search { hypotheses: Vec::new(), chosen: 0, interrupted: false, evaluations: 0, passes: 0, main_passes: 0 };
        let mut finished: Vec<Hypothesis> = Vec::new();
        let mut live = vec![Live { row: Row::new(number, request, generation, watched), log_likelihood: 0.0 }];
        let end = |live: Live<'_>, reason: FinishReason| {
            let tokens = live.row.new_tokens();
            let score = beam.score(live.log_likelihood, tokens.max(1));
            let completion = live.row.retold(text, generation).complete(reason, generation, &mut |_| ());
            Hypothesis { completion, log_likelihood: live.log_likelihood, score }
        };
        let prompt: Vec<Row<'_>> = live.iter().map(|live| live.row.fork(watched, generation)).collect();
        let mut state = match self.prefill(&prompt, generation.max_tokens, cancelled) {
            Some(prefilled) => Some(self.join(None, prompt, prefilled)?),
            None => None,
        };
        while let Some(running) = &mut state {
            let Some((logits, spent)) = self.predict(running, &mut noise, false, cancelled)? else { break };
            let logits = host_values(logits);
            let vocabulary = logits.len() / live.len();
            search.evaluations += spent.iter().map(|spent| spent.evaluations).sum::<usize>();
            search.passes += spent.iter().map(|spent| spent.passes).sum::<usize>();
            let mut count = kept.saturating_mul(2).saturating_add(generation.stop_tokens.len());
            let (mut next, mut parents, mut ended);
            loop {
                let ways = self.ways(&live, &logits, vocabulary, count, generation)?;
                let (looked_at, mut stopped) = (ways.len(), false);
                (next, parents, ended) = (Vec::new(), Vec::new(), Vec::new());
                for (rank, way) in ways.into_iter().enumerate() {
                    if next.len() == kept {
                        break;
                    }
                    let mut row = live[way.from].row.fork(watched, generation);
                    let reason = row.accept(way.token, spent[way.from].costs(), generation, &mut |_| ());
                    let forked = Live { row, log_likelihood: way.log_likelihood };
                    match reason {
                        None => {
                            next.push(forked);
                            parents.push(way.from);
                        }
                        Some(reason) => {
                            stopped |= matches!(reason, FinishReason::StopString(_));
                            // The end counts only if it is among the best ways on itself.
                            if rank < kept {
                                ended.push((forked, reason));
                            }
                        }
                    }
                }
                // Any number of tokens may complete a stop string: look further until enough go on.
                if next.len() == kept || !stopped || looked_at < count {
                    break;
                }
                count = count.saturating_mul(2);
            }
            finished.extend(ended.into_iter().map(|(forked, reason)| end(forked, reason)));
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.truncate(kept);
            live = next;
            if live.is_empty() || self.enough(beam, &finished, &live, generation.max_tokens) {
                live.clear();
                break;
            }
            running.cache.select(&parents, &self.device());
            running.rows = live.iter().map(|live| live.row.fork(None, generation)).collect();
            running.conditions = self.conditions(&running.rows)?;
            let last: Vec<Vec<u32>> = live.iter().map(|live| vec![live.row.last()]).collect();
            search.main_passes += last.len();
            running.hidden = self.forward(&last, &mut running.cache);
        }
        // Called off: what there is, with an end of its own, behind what had ended.
        if !live.is_empty() {
            search.interrupted = true;
            let mut open: Vec<Hypothesis> = live.into_iter().map(|live| end(live, FinishReason::Cancelled)).collect();
            open.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.extend(open);
            finished.truncate(kept);
        }
        search.chosen = choose(&finished, beam, generation.seed, request.sequence);
        search.hypotheses = finished;
        Ok(search)
    }

    /// The `count` best ways on from all hypotheses together, best first.
    fn ways(
        &self,
        live: &[Live<'_>],
        logits: &[f32],
        vocabulary: usize,
        count: usize,
        generation: &Generation,
    ) -> Result<Vec<Way>> {
        // Equal likelihoods: the earlier hypothesis, then the lower token, as `top` leaves them.
        let best_first = |ways: &mut Vec<Way>| {
            ways.sort_by(|a, b| b.log_likelihood.total_cmp(&a.log_likelihood));
            ways.truncate(count);
        };
        let mut ways = Vec::new();
        for (from, (hypothesis, logits)) in live.iter().zip(logits.chunks_exact(vocabulary)).enumerate() {
            let adjusted = generation.sampler.adjust(logits, hypothesis.row.history());
            let log_probabilities =
                log_softmax(adjusted.as_deref().unwrap_or(logits)).map_err(|error| hypothesis.row.located(error))?;
            let likely = top(&log_probabilities, count).into_iter().filter(|(_, log)| log.is_finite());
            ways.extend(likely.map(|(token, log)| Way {
                from,
                token,
                log_likelihood: hypothesis.log_likelihood + log,
            }));
            best_first(&mut ways);
        }
        Ok(ways)
    }

    fn enough(&self, beam: &Beam, finished: &[Hypothesis], live: &[Live<'_>], max_tokens: usize) -> bool {
        let Some(worst) = finished.get(beam.0.hypotheses - 1) else { return false };
        let reach = |live: &Live<'_>| {
            let now = live.row.new_tokens();
            // Likelihoods only fall; a longer text divides what is left of them by more, or by less.
            let tokens = match beam.0.stopping {
                Stopping::Certain if beam.0.length_exponent > 0.0 => max_tokens,
                Stopping::First | Stopping::Likely | Stopping::Certain => now,
            };
            beam.score(live.log_likelihood, tokens)
        };
        beam.0.stopping == Stopping::First || live.iter().all(|live| reach(live) <= worst.score)
    }
}

/// The place of the hypothesis to show.
fn choose(finished: &[Hypothesis], beam: &Beam, seed: u64, sequence: u64) -> usize {
    let temperature = beam.0.score_temperature;
    let Some(best) = finished.first().filter(|_| temperature > 0.0) else { return 0 };
    let weights: Vec<f64> =
        finished.iter().map(|hypothesis| ((hypothesis.score - best.score) / temperature).exp()).collect();
    let mut rng = rng::stream(seed, sequence, Purpose::SearchChoice, 0);
    let mut left = rng::uniform(&mut rng) * weights.iter().sum::<f64>();
    for (place, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return place;
        }
    }
    0
}
