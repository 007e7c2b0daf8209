//! Laws of the token search.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use l2d_core::L2d;
use l2d_core::cpu::WeightFormat;
use l2d_core::lm::{Lm, host_values};
use l2d_infer::decode::{BeamParams, Detokenizer, FinishReason, Search, Stopping, TextStream};
use l2d_infer::sampler::{SamplingParams, log_softmax};
use l2d_infer::velocity::Estimate;
use l2d_infer::{Decoder, DiffusionParams, Error, GenerationParams, Request, Result};
use l2d_testkit::models::golden_l2d;
use l2d_testkit::{Golden, TestBackend};

type B = TestBackend;

fn model(file: &str, packed: bool) -> L2d<B> {
    let (lm, path) = golden_l2d(&Golden::load(file), &Default::default());
    let model = L2d { lm, path };
    if packed { model.packed(WeightFormat::F32) } else { model }
}

fn request(sequence: u64) -> Request {
    let length = 5 + 3 * sequence as u32;
    Request { tokens: (0..length).map(|i| 3 + (7 * i + sequence as u32) % 40).collect(), class: None, sequence }
}

fn generation(max_tokens: usize) -> GenerationParams {
    GenerationParams { max_tokens, seed: 5, ..Default::default() }
}

fn beam(hypotheses: usize) -> BeamParams {
    BeamParams { hypotheses, length_exponent: 0.0, ..Default::default() }
}

fn search(
    decoder: &Decoder<'_, B>,
    requests: &[Request],
    generation: &GenerationParams,
    beam: BeamParams,
) -> Vec<Search> {
    let generation = generation.clone().check().unwrap();
    decoder.search(requests, &generation, &beam.check().unwrap(), None, None).unwrap()
}

/// The log-probability of every next token.
fn next(lm: &Lm<B>, tokens: &[u32]) -> Vec<f64> {
    let mut cache = lm.new_cache(vec![0], tokens.len());
    let logits = host_values(lm.logits(lm.forward(&[tokens.to_vec()], &mut cache)));
    log_softmax(&logits[logits.len() - lm.config.vocab_size..]).unwrap()
}

#[test]
fn one_hypothesis_is_greedy_decoding() {
    for packed in [false, true] {
        let model = model("l2d_llama_lora", packed);
        let requests = [request(0), request(1)];
        let stops = {
            let plain = Decoder::plain(&model.lm);
            let free = search(&plain, &requests, &generation(9), beam(1));
            vec![free[0].hypotheses[0].completion.tokens[5]]
        };
        for (evaluations, estimate) in [(1, Estimate::Argmax), (7, Estimate::Argmax), (7, Estimate::default())] {
            let diffusion = DiffusionParams { evaluations, estimate, ..Default::default() }.check().unwrap();
            let decoder = Decoder::new(&model, &diffusion).unwrap();
            for stop_tokens in [vec![], stops.clone()] {
                let generation = GenerationParams { stop_tokens, ..generation(9) };
                let greedy = GenerationParams { sampling: SamplingParams::greedy(), ..generation.clone() };
                let expected = decoder.generate(&requests, &greedy.check().unwrap(), Default::default()).unwrap();
                let found = search(&decoder, &requests, &generation, beam(1));
                for (found, expected) in found.iter().zip(&expected) {
                    let best = &found.hypotheses[found.chosen].completion;
                    assert_eq!((&best.tokens, &best.finish), (&expected.tokens, &expected.finish));
                    assert_eq!(best.passes, expected.passes);
                    assert_eq!(found.passes, expected.passes, "nothing else was evaluated");
                }
            }
        }
    }
}

#[test]
fn a_beam_as_wide_as_the_vocabulary_finds_the_most_likely_text() {
    let model = model("l2d_qwen2_lora", true);
    let vocabulary = model.lm.config.vocab_size;
    let request = request(1);
    let found = search(&Decoder::plain(&model.lm), std::slice::from_ref(&request), &generation(2), beam(vocabulary));
    let first = next(&model.lm, &request.tokens);
    let mut best = (f64::NEG_INFINITY, Vec::new());
    for (a, log_a) in first.iter().enumerate() {
        let tokens = [request.tokens.clone(), vec![a as u32]].concat();
        for (b, log_b) in next(&model.lm, &tokens).iter().enumerate() {
            if log_a + log_b > best.0 {
                best = (log_a + log_b, vec![a as u32, b as u32]);
            }
        }
    }
    let top = &found[0].hypotheses[0];
    assert_eq!(top.completion.tokens, best.1);
    assert!((top.log_likelihood - best.0).abs() < 1e-4);
    assert_eq!(found[0].hypotheses.len(), vocabulary);
}

#[test]
fn hypotheses_are_ranked_by_what_they_say_they_are() {
    let model = model("l2d_llama_lora", true);
    let request = request(2);
    let plain = Decoder::plain(&model.lm);
    for (exponent, stopping) in [(0.0, Stopping::Likely), (1.0, Stopping::Certain), (-1.0, Stopping::First)] {
        let free = search(&plain, std::slice::from_ref(&request), &generation(6), beam(5));
        let stop_tokens = vec![free[0].hypotheses[0].completion.tokens[2], free[0].hypotheses[1].completion.tokens[4]];
        let generation = GenerationParams { stop_tokens, ..generation(12) };
        let params = BeamParams { length_exponent: exponent, stopping, ..beam(5) };
        let found = &search(&plain, std::slice::from_ref(&request), &generation, params)[0];
        assert_eq!((found.hypotheses.len(), found.chosen), (5, 0));
        for hypothesis in &found.hypotheses {
            let mut tokens = request.tokens.clone();
            let mut log_likelihood = 0.0;
            for &token in &hypothesis.completion.tokens {
                log_likelihood += next(&model.lm, &tokens)[token as usize];
                tokens.push(token);
            }
            let count = hypothesis.completion.tokens.len() as f64;
            assert!((hypothesis.log_likelihood - log_likelihood).abs() < 1e-3);
            assert!((hypothesis.score - hypothesis.log_likelihood / count.powf(exponent)).abs() < 1e-12);
        }
        assert!(found.hypotheses.windows(2).all(|pair| pair[0].score >= pair[1].score));
        let mut texts: Vec<_> = found.hypotheses.iter().map(|hypothesis| &hypothesis.completion.tokens).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 5, "no text is found twice");
    }
}

#[test]
fn a_wider_beam_finds_likelier_texts_and_a_longer_exponent_longer_ones() {
    let model = model("l2d_llama_lora", true);
    let plain = Decoder::plain(&model.lm);
    let requests: Vec<Request> = (0..4).map(request).collect();
    let likelihood = |width: usize| -> f64 {
        let found = search(&plain, &requests, &generation(8), beam(width));
        found.iter().map(|search| search.hypotheses[0].log_likelihood).sum()
    };
    assert!(likelihood(15) > likelihood(1));
    // An end that is likely at once.
    let stop_tokens = (0..160).collect::<Vec<u32>>();
    let generation = GenerationParams { stop_tokens, ..generation(12) };
    let length = |exponent: f64| -> usize {
        let params = BeamParams { length_exponent: exponent, stopping: Stopping::Certain, ..beam(6) };
        let found = search(&plain, &requests, &generation, params);
        found.iter().map(|search| search.hypotheses[0].completion.tokens.len()).sum()
    };
    assert!(length(2.0) > length(0.0), "{} {}", length(2.0), length(0.0));
}

#[test]
fn with_diffusion_tensors_and_pages_find_the_same() {
    let [dense, packed] = [false, true].map(|packed| {
        let model = model("l2d_qwen2_lora", packed);
        let diffusion = DiffusionParams { evaluations: 7, ..Default::default() }.check().unwrap();
        let decoder = Decoder::new(&model, &diffusion).unwrap();
        search(&decoder, &[request(0), request(3)], &generation(5), beam(7))
    });
    for (dense, packed) in dense.iter().zip(&packed) {
        assert_eq!(dense.hypotheses.len(), 7);
        let tokens = |search: &Search| -> Vec<Vec<u32>> {
            search.hypotheses.iter().map(|hypothesis| hypothesis.completion.tokens.clone()).collect()
        };
        assert_eq!(tokens(dense), tokens(packed));
        // One row at the first token, seven at each of the four others; six evaluations of the path each.
        assert_eq!((packed.passes, packed.main_passes), (6 * (1 + 7 * 4), 7 * 4));
        assert!(packed.hypotheses.iter().all(|hypothesis| hypothesis.completion.passes == 6 * 5));
    }
}

#[test]
fn a_hypothesis_may_be_drawn_by_its_score() {
    let model = model("l2d_llama_lora", true);
    let plain = Decoder::plain(&model.lm);
    let chosen = |seed: u64, score_temperature: f64| {
        let generation = GenerationParams { seed, ..generation(4) };
        let params = BeamParams { score_temperature, ..beam(8) };
        search(&plain, &[request(0)], &generation, params)[0].chosen
    };
    let drawn: Vec<usize> = (0..30).map(|seed| chosen(seed, 5.0)).collect();
    assert_eq!(drawn, (0..30).map(|seed| chosen(seed, 5.0)).collect::<Vec<_>>());
    assert!(drawn.iter().any(|&place| place != drawn[0]));
    assert!((0..30).all(|seed| chosen(seed, 0.0) == 0 && chosen(seed, 1e-9) == 0));
}

#[test]
fn penalties_shape_the_likelihood() {
    let model = model("l2d_llama_lora", true);
    let plain = Decoder::plain(&model.lm);
    let sampling = SamplingParams { presence_penalty: 1e4, ..Default::default() };
    let generation = GenerationParams { sampling, ..generation(12) };
    for hypothesis in &search(&plain, &[request(0)], &generation, beam(6))[0].hypotheses {
        let mut tokens = hypothesis.completion.tokens.clone();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 12, "no token comes twice");
    }
}

/// Each token is a letter.
struct Letters;

impl Detokenizer for Letters {
    fn begin(&self) -> Box<dyn TextStream + '_> {
        Box::new(Self)
    }
}

impl TextStream for Letters {
    fn push(&mut self, token: u32) -> String {
        char::from(b'a' + (token % 26) as u8).to_string()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

#[test]
fn stop_strings_end_hypotheses() {
    let model = model("l2d_llama_lora", true);
    let plain = Decoder::plain(&model.lm);
    let run = |stop_strings: Vec<String>| {
        let generation = GenerationParams { stop_strings, ..generation(8) }.check().unwrap();
        plain.search(&[request(0)], &generation, &beam(4).check().unwrap(), Some(&Letters), None).unwrap().remove(0)
    };
    let free = run(Vec::new());
    let text = &free.hypotheses[0].completion.text;
    assert_eq!(text.len(), 8);
    let stop = text[3..5].to_owned();
    let found = run(vec![stop.clone()]);
    assert!(found.hypotheses.iter().all(|hypothesis| !hypothesis.completion.text.contains(&stop)));
    let stopped = found.hypotheses.iter().find(|h| h.completion.finish == FinishReason::StopString(stop.clone()));
    let stopped = stopped.expect("one ended there");
    let letters: String = stopped.completion.tokens.iter().map(|&token| Letters.push(token)).collect();
    assert_eq!(letters, format!("{}{stop}", stopped.completion.text));
}

#[test]
fn enough_ways_go_on_however_many_a_stop_string_ends() {
    let model = model("l2d_llama_lora", true);
    let plain = Decoder::plain(&model.lm);
    // All letters but two.
    let stop_strings = ('a'..='x').map(String::from).collect();
    let generation = GenerationParams { stop_strings, ..generation(3) }.check().unwrap();
    // So fond of long texts that no short one ends the search.
    let beam = BeamParams { length_exponent: 5.0, stopping: Stopping::Certain, ..beam(4) }.check().unwrap();
    let found = plain.search(&[request(0)], &generation, &beam, Some(&Letters), None).unwrap().remove(0);
    assert_eq!(found.main_passes, 4 + 4, "four hypotheses go on from the first and from the second token");
    assert!(found.hypotheses.iter().any(|hypothesis| hypothesis.completion.tokens.len() == 3));
}

#[test]
fn more_hypotheses_than_there_are_tokens_are_as_many_as_there_are() {
    let model = model("l2d_llama_lora", true);
    let found = search(&Decoder::plain(&model.lm), &[request(0)], &generation(1), beam(usize::MAX));
    assert_eq!(found[0].hypotheses.len(), model.lm.config.vocab_size);
}

/// Letters that raise a flag after so many.
struct CallsOff<'a>(&'a AtomicBool, &'a AtomicUsize);

impl Detokenizer for CallsOff<'_> {
    fn begin(&self) -> Box<dyn TextStream + '_> {
        Box::new(CallsOff(self.0, self.1))
    }
}

impl TextStream for CallsOff<'_> {
    fn push(&mut self, token: u32) -> String {
        self.0.store(self.1.fetch_sub(1, Ordering::Relaxed) <= 1, Ordering::Relaxed);
        Letters.push(token)
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

#[test]
fn a_search_that_was_called_off_says_so() {
    let model = model("l2d_llama_lora", true);
    let plain = Decoder::plain(&model.lm);
    let stop_tokens =
        vec![search(&plain, &[request(0)], &generation(8), beam(4))[0].hypotheses[0].completion.tokens[1]];
    let generation = GenerationParams { stop_tokens, stop_strings: vec!["~".into()], ..generation(40) };
    // Short texts are liked, so what has not ended would otherwise be ahead of what has.
    let run = |pushes: usize| {
        let (flag, left) = (AtomicBool::new(false), AtomicUsize::new(pushes));
        let beam = BeamParams { length_exponent: -1.0, stopping: Stopping::Certain, ..beam(4) };
        let text = CallsOff(&flag, &left);
        let (generation, beam) = (generation.clone().check().unwrap(), beam.check().unwrap());
        plain.search(&[request(0)], &generation, &beam, Some(&text), Some(&flag)).unwrap().remove(0)
    };
    let found = run(60);
    assert!(found.interrupted);
    let cancelled: Vec<bool> =
        found.hypotheses.iter().map(|h| h.completion.finish == FinishReason::Cancelled).collect();
    assert!(cancelled.contains(&true) && cancelled.contains(&false), "{cancelled:?}");
    assert!(cancelled.is_sorted(), "those that had ended come first: {cancelled:?}");
    assert!(!run(1 << 40).interrupted);
}

#[test]
fn what_a_search_cannot_do_is_said() {
    let model = model("l2d_llama_lora", true);
    let plain = Decoder::plain(&model.lm);
    let run = |sampling: SamplingParams, beam: BeamParams| -> Result<Vec<Search>> {
        let generation = GenerationParams { sampling, ..generation(3) }.check()?;
        plain.search(&[request(0)], &generation, &beam.check()?, None, None)
    };
    let refused = |name: &str, sampling: SamplingParams, beam: BeamParams| {
        let error = run(sampling, beam).unwrap_err();
        assert!(matches!(error, Error::Parameter { name: found, .. } if found == name), "{error}");
    };
    let usual = SamplingParams::default;
    refused("temperature", SamplingParams { temperature: 0.7, ..usual() }, beam(2));
    refused("top_k", SamplingParams { top_k: 5, ..usual() }, beam(2));
    refused("top_p", SamplingParams { top_p: 0.9, ..usual() }, beam(2));
    refused("min_p", SamplingParams { min_p: 0.1, ..usual() }, beam(2));
    refused("hypotheses", usual(), beam(0));
    refused("length_exponent", usual(), BeamParams { length_exponent: f64::NAN, ..beam(2) });
    refused("score_temperature", usual(), BeamParams { score_temperature: -1.0, ..beam(2) });
    refused("token of a logit bias", SamplingParams { logit_bias: [(320, 1.0)].into(), ..usual() }, beam(2));

    let generation = generation(3).check().unwrap();
    let called_off = AtomicBool::new(true);
    let found = plain.search(&[request(0)], &generation, &beam(3).check().unwrap(), None, Some(&called_off)).unwrap();
    assert_eq!(found[0].hypotheses[0].completion.finish, FinishReason::Cancelled);
    assert!(found[0].interrupted);
}
