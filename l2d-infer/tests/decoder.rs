//! Laws of the decoder that need no golden numbers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use l2d_core::L2d;
use l2d_core::cpu::WeightFormat;
use l2d_core::lm::host_values;
use l2d_core::parameters::replace_parameters;
use l2d_infer::decode::{
    AdaptiveSteps, Completion, DecodeMode, Detokenizer, Event, FinishReason, Hooks, Lane, Noise, Place, SeededNoise,
    TextStream,
};
use l2d_infer::ode::{AdaptiveParams, AdaptiveSolver, Solver};
use l2d_infer::sampler::{History, Sampler, SamplingParams, log_softmax};
use l2d_infer::schedule::TemperatureSchedule;
use l2d_infer::velocity::{Estimate, Normalise, VelocityForm};
use l2d_infer::{Decoder, DiffusionParams, Error, GenerationParams, Request, Result};
use l2d_testkit::models::golden_l2d;
use l2d_testkit::{Golden, TestBackend};

type B = TestBackend;

fn model(file: &str) -> L2d<B> {
    let (lm, path) = golden_l2d(&Golden::load(file), &Default::default());
    L2d { lm, path }
}

fn request(length: u32, sequence: u64) -> Request {
    Request { tokens: (0..length).map(|i| 3 + (7 * i + sequence as u32) % 40).collect(), class: None, sequence }
}

fn diffusion(change: impl FnOnce(&mut DiffusionParams)) -> DiffusionParams {
    let mut params = DiffusionParams { evaluations: 7, ..Default::default() };
    change(&mut params);
    params
}

fn run(model: &L2d<B>, params: DiffusionParams, generation: GenerationParams, requests: &[Request]) -> Vec<Completion> {
    let decoder = Decoder::new(model, &params.check().unwrap()).unwrap();
    decoder.generate(requests, &generation.check().unwrap(), Hooks::default()).unwrap()
}

fn tokens(count: usize) -> GenerationParams {
    GenerationParams { max_tokens: count, seed: 5, ..Default::default() }
}

#[test]
fn one_evaluation_is_the_plain_lm() {
    let model = model("l2d_llama_lora");
    let requests = [request(5, 0), request(9, 1)];
    let one = run(&model, diffusion(|p| p.evaluations = 1), tokens(6), &requests);
    let plain = Decoder::plain(&model.lm).generate(&requests, &tokens(6).check().unwrap(), Hooks::default()).unwrap();
    assert_eq!(one, plain);
    assert!(one.iter().all(|completion| completion.passes == 0));

    // And greedily it is the arg-max of an uncached forward pass.
    let greedy = GenerationParams { sampling: SamplingParams::greedy(), ..tokens(6) };
    let completion = run(&model, diffusion(|p| p.evaluations = 1), greedy, &requests[1..]).remove(0);
    let mut sequence = requests[1].tokens.clone();
    for token in completion.tokens {
        let mut cache = model.lm.new_cache(vec![0], sequence.len());
        let logits = host_values(model.lm.logits(model.lm.forward(&[sequence.clone()], &mut cache)));
        let last = &logits[logits.len() - model.lm.config.vocab_size..];
        assert_eq!(token as usize, l2d_infer::sampler::argmax(last).unwrap());
        sequence.push(token);
    }
}

#[test]
fn a_sequence_does_not_notice_its_neighbours() {
    let model = model("l2d_llama_guidance");
    for guidance in [1.0, 2.5] {
        let params = diffusion(|p| p.guidance = guidance);
        let requests: Vec<Request> = [(4, None), (11, Some(0)), (7, Some(2)), (2, Some(1)), (9, None)]
            .into_iter()
            .enumerate()
            .map(|(i, (length, class))| Request { class, ..request(length, i as u64) })
            .collect();
        let free = run(&model, params, tokens(12), &requests);
        // Stop tokens taken from the output end the rows at different times.
        let stop_tokens = vec![free[0].tokens[3], free[1].tokens[6]];
        let generation = GenerationParams { stop_tokens: stop_tokens.clone(), ..tokens(12) };
        // How many evaluations are made at once does depend on the batch.
        let results = |requests: &[Request]| -> Vec<Completion> {
            let completions = run(&model, params, generation.clone(), requests);
            completions.into_iter().map(|completion| Completion { rounds: 0, ..completion }).collect()
        };
        let together = results(&requests);
        for (request, (completion, free)) in requests.iter().zip(together.iter().zip(&free)) {
            let alone = results(std::slice::from_ref(request)).remove(0);
            assert_eq!(*completion, alone, "guidance {guidance}, sequence {}", request.sequence);
            let end = free.tokens.iter().position(|token| stop_tokens.contains(token)).map_or(12, |at| at + 1);
            assert_eq!(completion.tokens, free.tokens[..end], "stopping early changes nothing before");
        }
        let mut reversed = requests.clone();
        reversed.reverse();
        let mut backwards = results(&reversed);
        backwards.reverse();
        assert_eq!(backwards, together);
        let lengths: Vec<usize> = together.iter().map(|completion| completion.tokens.len()).collect();
        assert!(lengths.iter().any(|&n| n < 12), "some row ended early: {lengths:?}");
    }
}

#[test]
fn seed_and_sequence_decide() {
    let model = model("l2d_qwen2_lora");
    let seeded = |seed: u64, sequence: u64| {
        let request = Request { sequence, ..request(6, 0) };
        run(&model, diffusion(|_| ()), GenerationParams { seed, ..tokens(10) }, &[request]).remove(0).tokens
    };
    assert_eq!(seeded(1, 1), seeded(1, 1));
    assert_ne!(seeded(1, 1), seeded(2, 1));
    assert_ne!(seeded(1, 1), seeded(1, 2));
}

/// Tokens, evaluations and forward passes in both modes, over several requests one after the other.
fn both_modes(
    model: &L2d<B>,
    params: DiffusionParams,
    requests: &[Vec<Request>],
) -> [(Vec<Vec<u32>>, usize, usize); 2] {
    [DecodeMode::Sequential, DecodeMode::Parallel].map(|mode| {
        let decoder = Decoder::new(model, &params.check().unwrap()).unwrap().with_mode(mode);
        let generation = tokens(10).check().unwrap();
        let completions: Vec<Completion> = requests
            .iter()
            .flat_map(|requests| decoder.generate(requests, &generation, Hooks::default()).unwrap())
            .collect();
        let passes = completions.iter().map(|completion| completion.passes).sum();
        let rounds = completions.iter().map(|completion| completion.rounds).sum();
        (completions.into_iter().map(|completion| completion.tokens).collect(), passes, rounds)
    })
}

#[test]
fn evaluations_at_once_change_no_token() {
    let cooling = TemperatureSchedule::Polynomial { power: 1.0, end: 0.6 };
    let estimates = [Estimate::default(), Estimate::Sampled { schedule: cooling }, Estimate::Argmax];
    for file in ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full", "l2d_llama_guidance"] {
        let model = model(file);
        let has_classes = model.path.config.no_class().is_some();
        let class =
            |i: u64| (has_classes && i % 3 != 2).then_some(i as usize % 3 % model.path.config.classes.len().max(1));
        let ask = |length, i: u64| Request { class: class(i), ..request(length, i) };
        let requests = [vec![ask(5, 0)], vec![ask(9, 1), ask(4, 2), ask(7, 3)]];
        let mut saved = 0;
        for solver in Solver::ALL {
            for (estimate, guidance, velocity, final_t) in
                estimates.map(|estimate| (estimate, 1.0, VelocityForm::Constant, 1.0)).into_iter().chain([
                    (Estimate::default(), 2.5, VelocityForm::Constant, 0.9),
                    (Estimate::Argmax, 0.0, VelocityForm::Edm, 0.5),
                ])
            {
                if guidance != 1.0 && !has_classes {
                    continue;
                }
                let params = DiffusionParams {
                    evaluations: 4 * solver.tableau().stages() + 1,
                    solver,
                    adaptive: None,
                    final_t,
                    estimate,
                    velocity,
                    guidance,
                };
                let [sequential, parallel] = both_modes(&model, params, &requests);
                assert_eq!(parallel.0, sequential.0, "{file} {params:?}");
                assert_eq!(parallel.1, sequential.1, "{file} {params:?}: evaluations that count");
                assert!(parallel.2 <= sequential.2, "{file} {params:?}: {} rounds of {}", parallel.2, sequential.2);
                saved += sequential.2 - parallel.2;
            }
        }
        assert!(saved > 0, "{file}: no guess was ever right");
    }
}

#[test]
fn an_expectation_is_decoded_sequentially() {
    let estimate =
        Estimate::Expectation { schedule: TemperatureSchedule::default(), normalise: Normalise::ClampToNearest };
    let [sequential, parallel] =
        both_modes(&model("l2d_llama_lora"), diffusion(|p| p.estimate = estimate), &[vec![request(5, 0)]]);
    assert_eq!(sequential, parallel);
}

#[test]
fn guidance_at_strength_one_is_the_class_alone() {
    let model = model("l2d_llama_guidance");
    let classed = Request { class: Some(1), ..request(6, 3) };
    let logits = |guidance: f64, class: Option<usize>| {
        let request = Request { class, ..classed.clone() };
        let mut probe = Probe::default();
        let decoder = Decoder::new(&model, &diffusion(|p| p.guidance = guidance).check().unwrap()).unwrap();
        let decoder = decoder.with_mode(DecodeMode::Sequential);
        let hooks = Hooks { noise: Some(&mut probe), ..Hooks::default() };
        let completion = decoder.generate(&[request], &tokens(1).check().unwrap(), hooks).unwrap().remove(0);
        (probe.logits.remove(0), probe.lanes, completion.passes)
    };
    let (single, lanes, passes) = logits(1.0, classed.class);
    assert!(lanes.iter().all(|lane| *lane == Lane::Class));
    assert_eq!(passes, 6, "three midpoint steps less the one at t = 0, and the closing one");
    let (barely, lanes, passes) = logits(1.0 + 1e-12, classed.class);
    assert_eq!(lanes.iter().filter(|lane| **lane == Lane::NoClass).count(), 6);
    assert_eq!(passes, 11);
    let difference = single.iter().zip(&barely).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-4, "{difference}");
    assert_ne!(single, logits(2.0, classed.class).0);
    // Without a class there is nothing to guide between.
    assert_eq!(logits(1.0, None).0, logits(2.0, None).0);
}

/// Seeded noise that keeps what it was asked.
#[derive(Default)]
struct Probe {
    logits: Vec<Vec<f32>>,
    lanes: Vec<Lane>,
    draws: usize,
    raise: Option<(usize, &'static AtomicBool)>,
}

impl Noise for Probe {
    fn initial(&mut self, at: Place, count: usize) -> Vec<f64> {
        SeededNoise { seed: 5 }.initial(at, count)
    }

    fn velocity_token(
        &mut self,
        at: Place,
        call: usize,
        lane: Lane,
        logits: &[f32],
        temperature: f64,
    ) -> Result<usize> {
        self.lanes.push(lane);
        self.draws += 1;
        if let Some((_, flag)) = self.raise.filter(|(after, _)| self.draws >= *after) {
            flag.store(true, Ordering::Relaxed);
        }
        SeededNoise { seed: 5 }.velocity_token(at, call, lane, logits, temperature)
    }

    fn emitted_token(&mut self, at: Place, sampler: &Sampler, logits: &[f32], history: History<'_>) -> Result<usize> {
        self.logits.push(logits.to_vec());
        SeededNoise { seed: 5 }.emitted_token(at, sampler, logits, history)
    }
}

#[test]
fn a_long_prompt_goes_through_in_parts_and_changes_nothing() {
    let model = model("l2d_llama_lora");
    let requests = [request(600, 0), request(300, 1)];
    let mut probe = Probe::default();
    let hooks = Hooks { noise: Some(&mut probe), ..Hooks::default() };
    Decoder::plain(&model.lm).generate(&requests, &tokens(1).check().unwrap(), hooks).unwrap();
    for (request, found) in requests.iter().zip(&probe.logits) {
        let mut cache = model.lm.new_cache(vec![0], request.tokens.len());
        let whole = host_values(model.lm.logits(model.lm.forward(std::slice::from_ref(&request.tokens), &mut cache)));
        let expected = &whole[whole.len() - found.len()..];
        let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 5e-5, "{difference}");
    }
}

/// One letter a token, of which every third comes a token late, as the parts of a character do.
struct Letters(VecDeque<char>, usize);

impl TextStream for Letters {
    fn push(&mut self, token: u32) -> String {
        self.0.push_back(letter(token));
        self.1 += 1;
        if self.1.is_multiple_of(3) { String::new() } else { self.0.drain(..).collect() }
    }

    fn finish(&mut self) -> String {
        self.0.drain(..).collect()
    }
}

fn letter(token: u32) -> char {
    char::from(b'a' + (token % 26) as u8)
}

struct Alphabet;

impl Detokenizer for Alphabet {
    fn begin(&self) -> Box<dyn TextStream + '_> {
        Box::new(Letters(VecDeque::new(), 0))
    }
}

#[test]
fn text_streams_and_stops_at_strings() {
    let model = model("l2d_llama_lora");
    let requests = [request(5, 0), request(8, 1), request(3, 2)];
    let decoder = Decoder::new(&model, &diffusion(|_| ()).check().unwrap()).unwrap();
    let texts = |generation: GenerationParams| {
        let streamed = RefCell::new(vec![(String::new(), 0usize, 0usize, None); requests.len()]);
        let mut on_event = |event: Event<'_>| match event {
            Event::Token { request, text, passes, .. } => {
                let row = &mut streamed.borrow_mut()[request];
                row.0 += text;
                row.1 += 1;
                row.2 += passes;
            }
            Event::Finished { request, text, reason } => {
                let row = &mut streamed.borrow_mut()[request];
                row.0 += text;
                row.3 = Some(reason.clone());
            }
        };
        let hooks = Hooks { text: Some(&Alphabet), on_event: Some(&mut on_event), ..Hooks::default() };
        let completions = decoder.generate(&requests, &generation.check().unwrap(), hooks).unwrap();
        for (completion, streamed) in completions.iter().zip(streamed.into_inner()) {
            let whole =
                (completion.text.clone(), completion.tokens.len(), completion.passes, Some(completion.finish.clone()));
            assert_eq!(streamed, whole, "events and completion tell the same");
        }
        completions
    };
    let free = texts(tokens(9));
    for completion in &free {
        assert_eq!(completion.text, completion.tokens.iter().map(|&token| letter(token)).collect::<String>());
        assert_eq!(completion.finish, FinishReason::MaxTokens);
        assert_eq!(completion.passes, 9 * 6);
    }
    // A stop string over three tokens of the first row.
    let string: String = free[0].text.chars().skip(4).take(3).collect();
    let stopped = texts(GenerationParams { stop_strings: vec![string.clone()], ..tokens(9) });
    for (stopped, free) in stopped.iter().zip(&free) {
        match free.text.split_once(&string) {
            Some((before, _)) => {
                assert_eq!(stopped.text, before);
                assert_eq!(stopped.finish, FinishReason::StopString(string.clone()));
            }
            // How many evaluations are made at once does depend on the batch.
            None => assert_eq!(*stopped, Completion { rounds: stopped.rounds, ..free.clone() }),
        }
    }
    // A stop token has no text; what the stream held back comes out all the same.
    let stop_tokens = vec![free[0].tokens[3]];
    let stopped = texts(GenerationParams { stop_tokens: stop_tokens.clone(), ..tokens(9) });
    let end = free[0].tokens.iter().position(|token| stop_tokens.contains(token)).unwrap();
    assert_eq!(stopped[0].text, free[0].text[..end]);
    assert_eq!(stopped[0].finish, FinishReason::StopToken(stop_tokens[0]));
}

#[test]
fn a_caller_may_call_it_off_between_tokens_and_within_one() {
    let model = model("l2d_llama_lora");
    let decoder = Decoder::new(&model, &diffusion(|_| ()).check().unwrap()).unwrap();
    let whole = run(&model, diffusion(|_| ()), tokens(9), &[request(5, 0)]).remove(0);

    let flag = AtomicBool::new(false);
    let mut count = 0;
    let mut on_event = |event: Event<'_>| {
        count += usize::from(matches!(event, Event::Token { .. }));
        flag.store(count == 4, Ordering::Relaxed);
    };
    let hooks = Hooks { on_event: Some(&mut on_event), cancel: Some(&flag), ..Hooks::default() };
    let cut = decoder.generate(&[request(5, 0)], &tokens(9).check().unwrap(), hooks).unwrap().remove(0);
    assert_eq!((cut.finish, &cut.tokens[..]), (FinishReason::Cancelled, &whole.tokens[..4]));

    static WITHIN: AtomicBool = AtomicBool::new(false);
    let decoder = decoder.with_mode(DecodeMode::Sequential);
    // Six draws a token: the flag goes up in the middle of the third.
    let mut probe = Probe { raise: Some((15, &WITHIN)), ..Probe::default() };
    let hooks = Hooks { noise: Some(&mut probe), cancel: Some(&WITHIN), ..Hooks::default() };
    let cut = decoder.generate(&[request(5, 0)], &tokens(9).check().unwrap(), hooks).unwrap().remove(0);
    assert_eq!((cut.finish, &cut.tokens[..]), (FinishReason::Cancelled, &whole.tokens[..2]));
    assert_eq!(probe.draws, 15, "no evaluation after the flag");
}

#[test]
fn bad_requests_are_refused_before_anything_is_computed() {
    let model = model("l2d_llama_guidance");
    let decoder = Decoder::new(&model, &diffusion(|_| ()).check().unwrap()).unwrap();
    let refused = |request: Request, generation: GenerationParams| {
        let requests = [self::request(3, 0), request];
        decoder.generate(&requests, &generation.check().unwrap(), Hooks::default()).unwrap_err()
    };
    let empty = refused(Request { tokens: vec![], ..request(1, 0) }, tokens(1));
    assert!(matches!(empty, Error::Request { request: 1, .. }), "{empty}");
    let foreign = refused(Request { tokens: vec![1, 1 << 20], ..request(1, 0) }, tokens(1));
    assert!(foreign.to_string().contains("1048576"), "{foreign}");
    let classes = refused(Request { class: Some(3), ..request(4, 0) }, tokens(1));
    assert!(classes.to_string().contains("class 3"), "{classes}");
    let context = model.lm.config.max_positions;
    let long = refused(request(context as u32 - 3, 0), tokens(4));
    assert!(matches!(long, Error::Context { request: 1, wanted: 4, .. }), "{long}");
    let strings = GenerationParams { stop_strings: vec!["x".into()], ..tokens(1) };
    assert!(refused(request(2, 0), strings).to_string().contains("text stream"));

    assert!(tokens(0).check().unwrap_err().to_string().contains("max_tokens"));
    let even = diffusion(|p| p.evaluations = 8).check().unwrap_err();
    assert!(even.to_string().contains("7 and 9"), "{even}");
    assert!(diffusion(|p| p.guidance = f64::NAN).check().is_err());
    let unguided = self::model("l2d_llama_lora");
    let guided = diffusion(|p| p.guidance = 2.0).check().unwrap();
    assert!(Decoder::new(&unguided, &guided).unwrap_err().to_string().contains("guidance"));
    assert_eq!(decoder.generate(&[], &tokens(3).check().unwrap(), Hooks::default()).unwrap(), []);
}

#[test]
fn weights_that_are_not_numbers_are_an_error() {
    let mut model = model("l2d_llama_lora");
    let broken = |_: &str, shape: &[usize]| Ok(vec![f32::NAN; shape.iter().product()]);
    model.path = replace_parameters(model.path, &mut { broken }).unwrap();
    for solver in [Solver::Euler, Solver::Midpoint] {
        let decoder = Decoder::new(&model, &diffusion(|p| p.solver = solver).check().unwrap()).unwrap();
        let error = decoder.generate(&[request(4, 0)], &tokens(2).check().unwrap(), Hooks::default()).unwrap_err();
        assert!(
            matches!(&error, Error::At { request: 0, token: 0, source } if matches!(**source, Error::Logits { .. }))
        );
        assert!(error.to_string().contains("NaN"), "{error}");
    }
}

/// Completions without the number of forward passes, which does depend on the batch.
fn without_rounds(completions: Vec<Completion>) -> Vec<Completion> {
    completions.into_iter().map(|completion| Completion { rounds: 0, ..completion }).collect()
}

#[test]
fn waiting_sequences_take_the_places_of_finished_ones_and_nobody_notices() {
    for packed in [false, true] {
        for file in ["l2d_llama_guidance", "l2d_qwen2_lora"] {
            let model = if packed { model(file).packed(WeightFormat::F32) } else { model(file) };
            let classes = if file.ends_with("guidance") { [Some(0), None, Some(2)] } else { [None; 3] };
            // Long and short prompts, the second half of them sharing a beginning with the first.
            let requests: Vec<Request> = (0..8u64)
                .map(|i| {
                    let mut request =
                        Request { class: classes[i as usize % 3], ..request([4, 40, 9, 17][i as usize % 4], i % 4) };
                    request.sequence = i;
                    if i >= 4 {
                        request.tokens.extend([9, 8, 7 + i as u32]);
                    }
                    request
                })
                .collect();
            let params = diffusion(|p| p.guidance = if file.ends_with("guidance") { 1.7 } else { 1.0 });
            let free = run(&model, params, tokens(12), &requests);
            let stop_tokens = vec![free[1].tokens[2], free[4].tokens[7], free[6].tokens[0]];
            let generation = GenerationParams { stop_tokens, ..tokens(12) }.check().unwrap();
            let decoder = || Decoder::new(&model, &params.check().unwrap()).unwrap();
            let alone: Vec<Completion> = requests
                .iter()
                .flat_map(|request| {
                    decoder().generate(std::slice::from_ref(request), &generation, Hooks::default()).unwrap()
                })
                .collect();
            let alone = without_rounds(alone);
            assert!(alone.iter().any(|completion| completion.tokens.len() < 12));
            for limit in [1, 2, 3, 8, 100] {
                for mode in [DecodeMode::Sequential, DecodeMode::Parallel] {
                    let decoder = decoder().with_batch(limit).with_mode(mode);
                    // Twice: the second time every prompt is known.
                    for _ in 0..2 {
                        let together = decoder.generate(&requests, &generation, Hooks::default()).unwrap();
                        assert_eq!(
                            without_rounds(together),
                            alone,
                            "{file}, at most {limit}, {mode:?}, packed {packed}"
                        );
                    }
                }
            }
        }
    }
}

/// Records the logits from which tokens are drawn.
struct Recorder<'a>(SeededNoise, &'a RefCell<Vec<(u64, u32, Vec<f32>)>>);

impl Noise for Recorder<'_> {
    fn initial(&mut self, at: Place, count: usize) -> Vec<f64> {
        self.0.initial(at, count)
    }

    fn velocity_token(
        &mut self,
        at: Place,
        call: usize,
        lane: Lane,
        logits: &[f32],
        temperature: f64,
    ) -> Result<usize> {
        self.0.velocity_token(at, call, lane, logits, temperature)
    }

    fn emitted_token(&mut self, at: Place, sampler: &Sampler, logits: &[f32], history: History<'_>) -> Result<usize> {
        self.1.borrow_mut().push((at.sequence, at.token, logits.to_vec()));
        self.0.emitted_token(at, sampler, logits, history)
    }
}

#[test]
fn packed_logits_are_the_same_bits_alone_in_a_batch_and_in_both_modes() {
    for file in ["l2d_llama_lora", "l2d_llama_full", "l2d_qwen2_lora", "l2d_llama_guidance"] {
        let model = model(file).packed(WeightFormat::F32);
        let class = file.ends_with("guidance").then_some(1);
        let requests: Vec<Request> =
            (0..8u64).map(|i| Request { class, ..request([4, 33, 9, 17, 12, 2, 64, 5][i as usize], i) }).collect();
        let params = diffusion(|p| {
            p.evaluations = 9;
            p.guidance = if class.is_some() { 2.0 } else { 1.0 };
        });
        let logits = |requests: &[Request], mode| {
            let decoder = Decoder::new(&model, &params.check().unwrap()).unwrap().with_mode(mode);
            let record = RefCell::new(Vec::new());
            let generation = tokens(6).check().unwrap();
            let mut noise = Recorder(SeededNoise { seed: 5 }, &record);
            let hooks = Hooks { noise: Some(&mut noise), ..Hooks::default() };
            decoder.generate(requests, &generation, hooks).unwrap();
            let mut record = record.into_inner();
            record.sort_by_key(|(sequence, token, _)| (*sequence, *token));
            record
        };
        let alone: Vec<_> =
            requests.iter().flat_map(|request| logits(std::slice::from_ref(request), DecodeMode::Sequential)).collect();
        for mode in [DecodeMode::Sequential, DecodeMode::Parallel] {
            assert_eq!(logits(&requests, mode), alone, "{file} {mode:?}");
            assert_eq!(logits(&requests[6..7], mode), alone[36..42], "{file} {mode:?}");
        }
    }
}

#[test]
fn adaptive_steps_are_each_sequences_own() {
    for file in ["l2d_llama_lora", "l2d_llama_guidance"] {
        let model = model(file).packed(WeightFormat::F32);
        let class = file.ends_with("guidance").then_some(1);
        let requests: Vec<Request> =
            (0..5u64).map(|i| Request { class, ..request([4, 33, 9, 17, 12][i as usize], i) }).collect();
        let expectation = |normalise| Estimate::Expectation { schedule: TemperatureSchedule::default(), normalise };
        for (solver, estimate) in [
            (AdaptiveSolver::Fehlberg2, expectation(Normalise::None)),
            (AdaptiveSolver::AdaptiveHeun, Estimate::default()),
            (AdaptiveSolver::Dopri5, expectation(Normalise::None)),
            (AdaptiveSolver::Bosh3, expectation(Normalise::Renormalise)),
            (AdaptiveSolver::AdaptiveHeun, expectation(Normalise::ClampToNearest)),
        ] {
            // Fehlberg's pair sees 1/512 of what the others see.
            let allowed = if solver == AdaptiveSolver::Fehlberg2 { 1e-4 } else { 1e-2 };
            let tolerance = AdaptiveParams { atol: allowed, rtol: allowed, ..Default::default() };
            let params = diffusion(|p| {
                p.adaptive = Some(AdaptiveSteps { solver, tolerance, as_reference: None });
                (p.final_t, p.estimate) = (0.95, estimate);
                p.guidance = if class.is_some() { 1.5 } else { 1.0 };
            });
            let together = run(&model, params, tokens(4), &requests);
            let alone: Vec<Completion> =
                requests.iter().flat_map(|one| run(&model, params, tokens(4), std::slice::from_ref(one))).collect();
            // Tokens, text and how many evaluations each took.
            assert_eq!(together, alone, "{file} {solver}");
            assert!(together.iter().any(|row| row.passes != together[0].passes), "{file} {solver}: all took alike");
            let lanes = if class.is_some() { 2 } else { 1 };
            assert!(together.iter().all(|row| row.passes - 4 == lanes * (row.rounds - 4)), "{file} {solver}");
        }
    }
}

#[test]
fn adaptive_steps_in_a_dense_batch_of_unequal_rows() {
    let model = model("l2d_qwen2_lora");
    let requests: Vec<Request> = (0..4u64).map(|i| request(3 + 4 * i as u32, i)).collect();
    let params = diffusion(|p| {
        p.adaptive = Some(AdaptiveSteps {
            solver: AdaptiveSolver::Bosh3,
            tolerance: AdaptiveParams { atol: 1e-2, rtol: 1e-2, ..Default::default() },
            as_reference: None,
        });
        p.estimate = Estimate::Argmax;
        p.final_t = 0.9;
    });
    let together = run(&model, params, tokens(3), &requests);
    let alone: Vec<_> =
        requests.iter().flat_map(|one| run(&model, params, tokens(3), std::slice::from_ref(one))).collect();
    let tokens = |all: &[Completion]| -> Vec<Vec<u32>> { all.iter().map(|row| row.tokens.clone()).collect() };
    assert_eq!(tokens(&together), tokens(&alone));
}

#[test]
fn an_adaptive_solver_that_does_not_arrive_says_where() {
    let model = model("l2d_llama_lora");
    let with = |change: fn(&mut AdaptiveParams), cancelled: bool| {
        let mut tolerance = AdaptiveParams::default();
        change(&mut tolerance);
        let adaptive = AdaptiveSteps { solver: AdaptiveSolver::Dopri5, tolerance, as_reference: None };
        let params = diffusion(|p| p.adaptive = Some(adaptive)).check()?;
        let cancel = AtomicBool::new(cancelled);
        let hooks = Hooks { cancel: Some(&cancel), ..Hooks::default() };
        Decoder::new(&model, &params)?.generate(&[request(4, 0), request(5, 1)], &tokens(2).check()?, hooks)
    };
    let error = with(|p| p.max_evaluations = 9, false).unwrap_err().to_string();
    assert!(error.contains("request 0, new token 0") && error.contains("9 evaluations"), "{error}");
    assert!(error.contains("raise atol"), "{error}");
    for (name, change) in [("atol", (|p| p.atol = 0.0) as fn(&mut AdaptiveParams)), ("rtol", |p| p.rtol = -1.0)] {
        let error = with(change, false).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let called_off = with(|_| (), true).unwrap();
    assert!(called_off.iter().all(|row| row.finish == FinishReason::Cancelled && row.tokens.is_empty()));
}

#[test]
fn log_probabilities_are_the_plain_lms() {
    for packed in [false, true] {
        let model = model("l2d_qwen2_lora");
        let model = if packed { model.packed(WeightFormat::F32) } else { model };
        let sampling = SamplingParams { logit_bias: [(7, 3.0)].into(), temperature: 0.8, ..Default::default() };
        let generation = GenerationParams { sampling, ..tokens(5) }.check().unwrap();
        let mut seen = Vec::new();
        let mut note = |event: Event<'_>| {
            if let Event::Token { log_probability, .. } = event {
                seen.push(log_probability.cloned());
            }
        };
        let requests = [request(4, 0), request(9, 1)];
        let hooks = Hooks { on_event: Some(&mut note), log_probabilities: Some(3), ..Hooks::default() };
        let completions = Decoder::plain(&model.lm).generate(&requests, &generation, hooks).unwrap();
        assert_eq!(seen.iter().flatten().count(), 10);
        for (request, completion) in requests.iter().zip(&completions) {
            let mut sequence = request.tokens.clone();
            for (&token, found) in completion.tokens.iter().zip(&completion.log_probabilities) {
                let mut cache = model.lm.new_cache(vec![0], sequence.len());
                let logits = host_values(model.lm.logits(model.lm.forward(&[sequence.clone()], &mut cache)));
                // Of the model, not of the biased and tempered draw.
                let all = log_softmax(&logits[logits.len() - model.lm.config.vocab_size..]).unwrap();
                assert!((found.chosen - all[token as usize]).abs() < 1e-4);
                let best = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert!((found.top[0].1 - best).abs() < 1e-4 && found.top.len() == 3);
                assert!(found.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
                sequence.push(token);
            }
            assert_eq!(completion.log_probabilities.len(), 5);
        }
        let decoder = Decoder::new(&model, &diffusion(|_| ()).check().unwrap()).unwrap();
        let hooks = Hooks { log_probabilities: Some(0), ..Hooks::default() };
        let error = decoder.generate(&requests, &generation, hooks).unwrap_err();
        assert!(error.to_string().contains("no log-probability"), "{error}");
        let one = Decoder::new(&model, &diffusion(|p| p.evaluations = 1).check().unwrap()).unwrap();
        let hooks = Hooks { log_probabilities: Some(0), ..Hooks::default() };
        let completions = one.generate(&requests, &generation, hooks).unwrap();
        assert!(completions[1].log_probabilities.iter().all(|found| found.top.is_empty() && found.chosen < 0.0));
    }
}

#[test]
fn guesses_on_the_way_are_reported_alike_in_both_modes() {
    let model = model("l2d_llama_guidance");
    for estimate in [Estimate::default(), Estimate::Argmax] {
        let params = diffusion(|p| (p.estimate, p.guidance) = (estimate, 1.5));
        let requests = [Request { class: Some(1), ..request(5, 0) }, request(8, 1)];
        let guesses = |mode: DecodeMode, wanted: bool| {
            let decoder = Decoder::new(&model, &params.check().unwrap()).unwrap().with_mode(mode);
            let mut all = Vec::new();
            let mut collect = |event: Event<'_>| {
                if let Event::Token { request, guesses, .. } = event {
                    all.push((request, guesses.to_vec()));
                }
            };
            let hooks = Hooks { on_event: Some(&mut collect), guesses: wanted, ..Hooks::default() };
            decoder.generate(&requests, &tokens(4).check().unwrap(), hooks).unwrap();
            all
        };
        let sequential = guesses(DecodeMode::Sequential, true);
        assert_eq!(sequential.len(), 8);
        for (_, guesses) in &sequential {
            // The midpoint rule at 7 evaluations: three steps of two slopes.
            let times: Vec<f64> = guesses.iter().map(|guess| guess.t).collect();
            assert_eq!(times.len(), 6);
            assert!(times[0] == 0.0 && times.windows(2).all(|pair| pair[0] < pair[1]) && times[5] < 1.0);
        }
        assert_eq!(guesses(DecodeMode::Parallel, true), sequential);
        assert!(guesses(DecodeMode::Parallel, false).iter().all(|(_, guesses)| guesses.is_empty()));
    }
}
