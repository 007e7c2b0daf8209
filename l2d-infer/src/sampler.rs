//! Drawing a token from one row of logits.
//!
//! In this order: logit bias, repetition penalty, frequency and presence penalty, temperature, top-k, top-p, min-p. The
//! filters are those of Hugging Face `generate`, bias and the other penalties those of OpenAI's API and vLLM.

use std::collections::BTreeMap;

use l2d_core::cpu::softmax_weights;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng;

/// How the emitted token is drawn, as a user writes it. The default draws from the model's own distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token (the lowest id of several) and ignores the filters.
    pub temperature: f64,
    /// Only the `top_k` most likely tokens are kept, and those as likely as the last of them; 0 keeps all.
    pub top_k: usize,
    /// The most likely tokens are kept until their probability reaches `top_p`; 1 keeps all.
    pub top_p: f64,
    /// Tokens less likely than `min_p` times the most likely are dropped; 0 keeps all.
    pub min_p: f64,
    /// Logits of tokens already in the sequence, prompt included, are divided by it where positive and multiplied where
    /// negative; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Taken off the logit of a token that is among the new ones; 0 changes nothing.
    #[serde(skip_serializing_if = "is_zero")]
    pub presence_penalty: f64,
    /// Taken off the logit of a token for each time it is among the new ones; 0 changes nothing.
    #[serde(skip_serializing_if = "is_zero")]
    pub frequency_penalty: f64,
    /// Added to the logits of these tokens before anything else; minus infinity forbids one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
}

/// Settings that change nothing are not written, so that what was written before they existed stays the same.
#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
        }
    }
}

/// The sequence that a token is drawn for.
#[derive(Debug, Clone, Copy, Default)]
pub struct History<'a> {
    /// What was given.
    pub prompt: &'a [u32],
    /// What was drawn so far.
    pub new: &'a [u32],
}

impl SamplingParams {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the number out of range.
    pub fn check(self) -> Result<Sampler> {
        let refuse = |name, value: f64, expected| Err(Error::parameter(name, value, expected));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse("temperature", self.temperature, "a finite number, 0 (greedy) or above");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "in (0, 1]; 1 keeps all tokens");
        }
        if !(0.0..1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "in [0, 1); 0 keeps all tokens");
        }
        // As they are applied, in f32.
        let rounded = |x: f64| x as f32;
        if !(rounded(self.repetition_penalty).is_finite() && rounded(self.repetition_penalty) > 0.0) {
            return refuse("repetition_penalty", self.repetition_penalty, "a finite number above 0; 1 changes nothing");
        }
        for (name, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !rounded(penalty).is_finite() {
                return refuse(name, penalty, "a finite number; 0 changes nothing");
            }
        }
        if let Some(&bias) = self.logit_bias.values().find(|bias| bias.is_nan() || **bias == f32::INFINITY) {
            return refuse("logit_bias", f64::from(bias), "finite, or minus infinity to forbid a token");
        }
        Ok(Sampler(self))
    }
}

/// Checked [`SamplingParams`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler(SamplingParams);

/// A token that passed the filters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: usize,
    /// Its probability among the tokens that passed.
    pub probability: f64,
}

impl Sampler {
    /// The numbers it was made from.
    pub fn params(&self) -> &SamplingParams {
        &self.0
    }

    /// Draws a token. `logits` is one row over the vocabulary.
    ///
    /// # Errors
    /// [`Error::Logits`] where the logits are no distribution.
    pub fn sample(&self, logits: &[f32], history: History<'_>, rng: &mut impl Rng) -> Result<usize> {
        let adjusted = self.adjust(logits, history);
        if adjusted.is_some() {
            argmax(logits)?; // the model's own fault, not the settings'
        }
        let logits = adjusted.as_deref().unwrap_or(logits);
        let best = argmax(logits).map_err(|error| if adjusted.is_some() { self.forbidding() } else { error })?;
        if self.0.temperature == 0.0 {
            return Ok(best);
        }
        if self.0.top_k == 0 && self.0.top_p == 1.0 && self.0.min_p == 0.0 {
            return inverse_cdf(logits, self.0.temperature, rng::uniform(rng));
        }
        let kept = self.filter(logits, logits[best]);
        Ok(kept[walk(kept.iter().map(|&(_, weight)| weight), rng::uniform(rng))].0)
    }

    /// The distribution [`Sampler::sample`] draws from: the tokens that passed the filters, by id.
    ///
    /// # Errors
    /// [`Error::Logits`] where the logits are no distribution.
    pub fn distribution(&self, logits: &[f32], history: History<'_>) -> Result<Vec<Candidate>> {
        let adjusted = self.adjust(logits, history);
        let logits = adjusted.as_deref().unwrap_or(logits);
        let best = argmax(logits)?;
        if self.0.temperature == 0.0 {
            return Ok(vec![Candidate { id: best, probability: 1.0 }]);
        }
        let kept = self.filter(logits, logits[best]);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        Ok(kept.into_iter().map(|(id, weight)| Candidate { id, probability: weight / total }).collect())
    }

    /// The error of bias and penalties that leave no distribution of one.
    fn forbidding(&self) -> Error {
        let expected = "such that bias and penalties leave the logits finite and some token allowed";
        Error::parameter("logit_bias and penalties", "beyond that", expected)
    }

    /// The logits with bias and penalties; `None` where these change nothing. Tokens outside the vocabulary are passed over.
    pub(crate) fn adjust(&self, logits: &[f32], history: History<'_>) -> Option<Vec<f32>> {
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = &self.0;
        let repetition = *repetition_penalty as f32;
        let (repeats, counts) = (repetition != 1.0, *presence_penalty != 0.0 || *frequency_penalty != 0.0);
        if !repeats && !counts && logit_bias.is_empty() {
            return None;
        }
        let mut adjusted = logits.to_vec();
        for (&id, bias) in logit_bias {
            if let Some(logit) = adjusted.get_mut(id as usize) {
                *logit += bias;
            }
        }
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        for &id in history.prompt {
            seen.entry(id).or_insert(0);
        }
        for &id in history.new {
            *seen.entry(id).or_insert(0) += 1;
        }
        for (id, count) in seen {
            let Some(logit) = adjusted.get_mut(id as usize) else { continue };
            if repeats {
                *logit = if *logit < 0.0 { *logit * repetition } else { *logit / repetition };
            }
            if count > 0 {
                *logit -= (presence_penalty + frequency_penalty * f64::from(count)) as f32;
            }
        }
        Some(adjusted)
    }

    /// Tokens that pass top-k, top-p and min-p with their weights `exp((logit - largest) / temperature)`, by id.
    fn filter(&self, logits: &[f32], largest: f32) -> Vec<(usize, f64)> {
        let weight = |logit: f32| weight(logit, largest, self.0.temperature);
        let floor = kth_largest(logits, self.0.top_k);
        let mut kept: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .filter(|&(_, &logit)| logit >= floor && logit > f32::NEG_INFINITY)
            .map(|(id, &logit)| (id, weight(logit)))
            .collect();
        if self.0.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let count = leading(&mut kept, self.0.top_p * total);
            kept.truncate(count);
        }
        // The most likely token weighs 1, so a weight is its ratio to that.
        kept.retain(|&(_, weight)| weight >= self.0.min_p);
        // By id, as without filters, so that a filter that removes nothing changes no draw.
        kept.sort_unstable_by_key(|&(id, _)| id);
        kept
    }
}

/// Tokens whose weights are summed before any is looked at.
const WALK_BLOCK: usize = 512;

/// The `k`-th largest logit, minus infinity for `k = 0` or a `k` that keeps all.
fn kth_largest(logits: &[f32], k: usize) -> f32 {
    if k == 0 || k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let mut values = logits.to_vec();
    *values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Moves the heaviest entries to the front, in order (lower ids first among equals), and returns the number of them whose
/// weight together first reaches `mass`; at least 1. Sorts no more than about four times that number.
fn leading(entries: &mut [(usize, f64)], mass: f64) -> usize {
    let heavier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let (mut sorted, mut sum) = (0, 0.0);
    let mut chunk = 64;
    while sorted < entries.len() {
        let rest = &mut entries[sorted..];
        if chunk < rest.len() {
            rest.select_nth_unstable_by(chunk - 1, heavier);
        }
        let end = chunk.min(rest.len());
        rest[..end].sort_unstable_by(heavier);
        for entry in &rest[..end] {
            sorted += 1;
            sum += entry.1;
            if sum >= mass {
                return sorted;
            }
        }
        chunk *= 3;
    }
    entries.len()
}

/// The index of the largest logit, the lowest of several.
///
/// # Errors
/// [`Error::Logits`] for NaN or plus infinity anywhere, or where all are minus infinity.
pub fn argmax(logits: &[f32]) -> Result<usize> {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Error::Logits { found: if logit.is_nan() { "NaN" } else { "infinite" }, token: id });
        }
        if logit > logits[best] {
            best = id;
        }
    }
    match logits.get(best) {
        Some(&logit) if logit > f32::NEG_INFINITY => Ok(best),
        _ => Err(Error::Logits { found: "all minus infinity", token: 0 }),
    }
}

/// The token at which the cumulative distribution of `softmax(logits / temperature)` passes `u` in `[0, 1)`; the arg-max at
/// temperature 0.
///
/// A deterministic function of the logits and one uniform number.
///
/// # Errors
/// [`Error::Logits`] where the logits are no distribution.
pub fn inverse_cdf(logits: &[f32], temperature: f64, u: f64) -> Result<usize> {
    let best = argmax(logits)?;
    if temperature == 0.0 {
        return Ok(best);
    }
    let weights = softmax_weights(logits, logits[best], temperature);
    // Sums of blocks first: the token lies in one of them, and only that one is walked through.
    let sums: Vec<f64> = weights.chunks(WALK_BLOCK).map(|block| block.iter().copied().map(f64::from).sum()).collect();
    let mut left = u * sums.iter().sum::<f64>();
    let mut chosen = None;
    for (block, &sum) in sums.iter().enumerate().filter(|&(_, &sum)| sum > 0.0) {
        chosen = Some((block, left));
        if left < sum {
            break;
        }
        left -= sum;
    }
    let Some((block, mut left)) = chosen else { return Ok(best) };
    let mut token = best;
    let first = block * WALK_BLOCK;
    for (lane, &weight) in weights[first..].iter().take(WALK_BLOCK).enumerate().filter(|&(_, &weight)| weight > 0.0) {
        token = first + lane;
        left -= f64::from(weight);
        if left < 0.0 {
            break;
        }
    }
    Ok(token)
}

/// `logits - ln sum exp(logits)`, summed in f64.
///
/// # Errors
/// [`Error::Logits`] where the logits are no distribution.
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f64>> {
    let largest = f64::from(logits[argmax(logits)?]);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    Ok(logits.iter().map(|&logit| f64::from(logit) - largest - sum.ln()).collect())
}

/// The `count` most likely tokens with `values` (logits or log-probabilities), most likely first, the lower id of equals.
pub fn top(values: &[f64], count: usize) -> Vec<(u32, f64)> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let likelier = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    if count < order.len() {
        if count == 0 {
            return Vec::new();
        }
        order.select_nth_unstable_by(count - 1, likelier);
        order.truncate(count);
    }
    order.sort_unstable_by(likelier);
    order.into_iter().map(|id| (id as u32, values[id])).collect()
}

/// The weight of a token against the most likely one. In f64 because a temperature may magnify differences beyond f32.
fn weight(logit: f32, largest: f32, temperature: f64) -> f64 {
    ((f64::from(logit) - f64::from(largest)) / temperature).exp()
}

/// The first index whose cumulative weight exceeds `u` times the total; never one of weight zero.
fn walk(weights: impl Iterator<Item = f64> + Clone, u: f64) -> usize {
    let mut left = u * weights.clone().sum::<f64>();
    let mut last = 0;
    for (index, weight) in weights.enumerate().filter(|&(_, weight)| weight > 0.0) {
        last = index;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::{Purpose, stream};

    fn params(change: impl FnOnce(&mut SamplingParams)) -> Sampler {
        let mut params = SamplingParams::default();
        change(&mut params);
        params.check().unwrap()
    }

    fn ids(sampler: &Sampler, logits: &[f32]) -> Vec<usize> {
        sampler.distribution(logits, History::default()).unwrap().iter().map(|c| c.id).collect()
    }

    #[test]
    fn the_penalty_is_hugging_faces() {
        let sampler = params(|p| p.repetition_penalty = 2.0);
        // A token twice in the history is penalised once; ids outside the vocabulary are ignored.
        let history = History { prompt: &[0, 1, 1], new: &[0, 77] };
        let penalised = sampler.adjust(&[2.0, -1.0, 0.5], history).unwrap();
        assert_eq!(penalised, [1.0, -2.0, 0.5]);
        let greedy = params(|p| (p.temperature, p.repetition_penalty) = (0.0, 3.0));
        let mut rng = stream(0, 0, Purpose::FinalToken, 0);
        assert_eq!(greedy.sample(&[1.0, 0.9, 0.0], History { prompt: &[0], new: &[] }, &mut rng).unwrap(), 1);
    }

    #[test]
    fn new_tokens_are_penalised_and_biases_added() {
        let history = History { prompt: &[0, 0, 3], new: &[1, 2, 1, 99] };
        let of = |change: fn(&mut SamplingParams)| params(change).adjust(&[1.0, 1.0, -1.0, 1.0, 0.0], history).unwrap();
        // The prompt's tokens are free of both.
        assert_eq!(of(|p| p.presence_penalty = 0.5), [1.0, 0.5, -1.5, 1.0, 0.0]);
        assert_eq!(of(|p| p.frequency_penalty = 0.5), [1.0, 0.0, -1.5, 1.0, 0.0]);
        assert_eq!(of(|p| p.frequency_penalty = -0.5), [1.0, 2.0, -0.5, 1.0, 0.0]);
        assert_eq!(of(|p| (p.presence_penalty, p.repetition_penalty) = (1.0, 2.0)), [0.5, -0.5, -3.0, 0.5, 0.0]);
        let biased = of(|p| p.logit_bias = [(4, 2.5), (0, f32::NEG_INFINITY), (1000, 1.0)].into());
        assert_eq!(biased, [f32::NEG_INFINITY, 1.0, -1.0, 1.0, 2.5]);
        let forbidding = params(|p| p.logit_bias = [(0, f32::NEG_INFINITY)].into());
        assert_eq!(ids(&forbidding, &[5.0, 1.0]), [1]);
        assert!(params(|_| ()).adjust(&[1.0], history).is_none());
        // Settings of before are written as before.
        let written = serde_json::to_string(&SamplingParams::default()).unwrap();
        assert!(!written.contains("presence") && !written.contains("bias"), "{written}");
    }

    #[test]
    fn filters_keep_what_they_say() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        assert_eq!(ids(&params(|p| p.top_k = 2), &logits), [0, 1]);
        assert_eq!(ids(&params(|p| p.top_k = 3), &logits), [0, 1, 2, 3], "a tie with the last kept token stays");
        assert_eq!(ids(&params(|p| p.top_p = 0.4), &logits), [0]);
        assert_eq!(ids(&params(|p| p.top_p = 0.6), &logits), [0, 1]);
        assert_eq!(ids(&params(|p| p.top_p = 0.8), &logits), [0, 1, 2], "the lower id wins a tie");
        assert_eq!(ids(&params(|p| p.min_p = 0.3), &logits), [0, 1]);
        // top-p sees the distribution that top-k left: 2/3, 1/3.
        assert_eq!(ids(&params(|p| (p.top_k, p.top_p) = (2, 0.66)), &logits), [0]);
        // and the tempered one: at temperature 1/2 it is 0.73, 0.18, ...
        assert_eq!(ids(&params(|p| (p.temperature, p.top_p) = (0.5, 0.7)), &logits), [0]);
    }

    #[test]
    fn bad_parameters_and_logits_are_refused() {
        let refuses = |name: &str, change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            assert!(params.check().unwrap_err().to_string().starts_with(name));
        };
        refuses("temperature", |p| p.temperature = -1.0);
        refuses("temperature", |p| p.temperature = f64::NAN);
        refuses("top_p", |p| p.top_p = 0.0);
        refuses("top_p", |p| p.top_p = 1.1);
        refuses("min_p", |p| p.min_p = 1.0);
        refuses("repetition_penalty", |p| p.repetition_penalty = 0.0);
        refuses("presence_penalty", |p| p.presence_penalty = f64::NAN);
        refuses("frequency_penalty", |p| p.frequency_penalty = f64::INFINITY);
        refuses("logit_bias", |p| p.logit_bias = [(3, f32::INFINITY)].into());
        refuses("logit_bias", |p| p.logit_bias = [(3, f32::NAN)].into());

        let sampler = params(|_| ());
        let mut rng = stream(0, 0, Purpose::FinalToken, 0);
        for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2], &[]] {
            assert!(
                matches!(sampler.sample(logits, History::default(), &mut rng), Err(Error::Logits { .. })),
                "{logits:?}"
            );
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [1.0f32, 0.0, -1.0, 2.0, f32::NEG_INFINITY, 0.5];
        let temperature = 0.7;
        let expected = params(|p| p.temperature = temperature).distribution(&logits, History::default()).unwrap();
        let count = 100_000;
        let mut rng = stream(1, 0, Purpose::FinalToken, 0);
        let mut check = |draw: &mut dyn FnMut(&mut rand_chacha::ChaCha8Rng) -> usize| {
            let mut seen = [0usize; 6];
            (0..count).for_each(|_| seen[draw(&mut rng)] += 1);
            for candidate in &expected {
                let p = candidate.probability;
                let deviation = (seen[candidate.id] as f64 - p * f64::from(count)).abs();
                assert!(deviation < 5.0 * (p * (1.0 - p) * f64::from(count)).sqrt(), "{candidate:?}: {seen:?}");
            }
            assert_eq!(seen[4], 0);
        };
        check(&mut |rng| params(|p| p.temperature = temperature).sample(&logits, History::default(), rng).unwrap());
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let logs = log_softmax(&[1e4, 1e4 - 1.0, -1e4]).unwrap();
        assert!((logs.iter().map(|l| l.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((logs[0] - logs[1] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_top_comes_in_order() {
        let values = [0.5, 2.0, f64::NEG_INFINITY, 2.0, -1.0];
        assert_eq!(top(&values, 3), [(1, 2.0), (3, 2.0), (0, 0.5)]);
        assert_eq!(top(&values, 0), []);
        assert_eq!(top(&values, 9).len(), 5);
    }

    fn rows() -> impl Strategy<Value = Vec<f32>> {
        // Few distinct values, so that ties are common, and enough tokens to need more than one chunk of `leading`.
        prop::collection::vec((-40i32..40).prop_map(|x| x as f32 / 8.0), 1..300)
    }

    proptest! {
        #[test]
        fn filters_that_keep_all_change_no_draw(logits in rows(), seed: u64) {
            let plain = params(|_| ());
            let wide = params(|p| (p.top_k, p.min_p) = (logits.len(), 1e-30));
            let draw = |s: &Sampler| s.sample(&logits, History::default(), &mut stream(seed, 0, Purpose::FinalToken, 0)).unwrap();
            prop_assert_eq!(draw(&plain), draw(&wide));
        }

        #[test]
        fn temperature_zero_and_top_k_one_are_the_argmax(logits in rows(), seed: u64) {
            let mut rng = stream(seed, 0, Purpose::FinalToken, 0);
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = logits.iter().position(|&l| l == largest).unwrap();
            prop_assert_eq!(SamplingParams::greedy().check().unwrap().sample(&logits, History::default(), &mut rng).unwrap(), first);
            let one = params(|p| p.top_k = 1).sample(&logits, History::default(), &mut rng).unwrap();
            prop_assert_eq!(logits[one], largest);
        }

        /// Against sorting everything.
        #[test]
        fn top_p_is_the_smallest_set_that_reaches_its_mass(logits in rows(), top_p in 0.01f64..1.0) {
            let full = params(|_| ()).distribution(&logits, History::default()).unwrap();
            prop_assert!((full.iter().map(|c| c.probability).sum::<f64>() - 1.0).abs() < 1e-9);
            let mut order: Vec<_> = full.iter().map(|c| (c.id, c.probability)).collect();
            order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let kept = params(|p| p.top_p = top_p).distribution(&logits, History::default()).unwrap();
            prop_assert!((kept.iter().map(|c| c.probability).sum::<f64>() - 1.0).abs() < 1e-9);
            let mut expected: Vec<usize> = order[..kept.len()].iter().map(|e| e.0).collect();
            expected.sort_unstable();
            prop_assert_eq!(kept.iter().map(|c| c.id).collect::<Vec<_>>(), expected);
            let mass = |n: usize| order[..n].iter().map(|e| e.1).sum::<f64>();
            prop_assert!(mass(kept.len()) >= top_p - 1e-9);
            prop_assert!(mass(kept.len() - 1) < top_p + 1e-9);
        }

        #[test]
        fn a_filtered_token_is_never_drawn(
            logits in rows(), seed: u64, top_k in 0usize..40, top_p in 0.05f64..=1.0, min_p in 0.0f64..0.9,
            temperature in 0.05f64..3.0,
        ) {
            let sampler = params(|p| *p = SamplingParams { temperature, top_k, top_p, min_p, ..Default::default() });
            let allowed = ids(&sampler, &logits);
            prop_assert!(!allowed.is_empty());
            for token in 0..20 {
                let mut rng = stream(seed, 0, Purpose::FinalToken, token);
                prop_assert!(allowed.contains(&sampler.sample(&logits, History::default(), &mut rng).unwrap()));
            }
        }
    }
}
