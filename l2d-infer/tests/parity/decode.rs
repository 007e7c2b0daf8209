//! Token-by-token decoding with recorded noise against the golden tokens and logits.

use std::collections::BTreeMap;

use l2d_core::L2d;
use l2d_core::cpu::WeightFormat;
use l2d_infer::decode::{DecodeMode, FinishReason, Hooks, Lane, Noise, Place};
use l2d_infer::ode::FixedGrid;
use l2d_infer::sampler::{History, Sampler, SamplingParams};
use l2d_infer::velocity::Estimate;
use l2d_infer::{Decoder, DiffusionParams, GenerationParams, Request, Result};
use l2d_testkit::models::golden_l2d;
use l2d_testkit::{Golden, GoldenTensor, assert_close};

use super::{B, CPU};

const FILES: [&str; 4] = ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full", "l2d_llama_guidance"];
const TOLERANCE: f64 = 3e-4;

/// Recorded noise in; the logits every token was drawn from out, by (sequence, token).
struct Recorded<'a> {
    noise: Option<&'a GoldenTensor>,
    seen: BTreeMap<(u64, u32), Vec<f32>>,
}

impl Noise for Recorded<'_> {
    fn initial(&mut self, at: Place, count: usize) -> Vec<f64> {
        let noise = self.noise.expect("this case has noise"); // [token, batch, d]
        let row = at.token as usize * noise.shape[1] + at.sequence as usize;
        noise.values[row * count..][..count].to_vec()
    }

    fn velocity_token(&mut self, _: Place, _: usize, _: Lane, _: &[f32], _: f64) -> Result<usize> {
        unreachable!("the golden cases take the arg-max")
    }

    fn emitted_token(&mut self, at: Place, sampler: &Sampler, logits: &[f32], history: History<'_>) -> Result<usize> {
        self.seen.insert((at.sequence, at.token), logits.to_vec());
        sampler.sample(logits, history, &mut l2d_infer::rng::stream(0, 0, l2d_infer::rng::Purpose::FinalToken, 0))
    }
}

fn prompts(golden: &Golden, ragged: bool) -> Vec<Vec<u32>> {
    if !ragged {
        return golden.token_rows("in/input_ids");
    }
    let mask = golden.token_rows("in/pad_attention_mask");
    let rows = golden.token_rows("in/pad_input_ids");
    let real =
        |(row, mask): (Vec<u32>, Vec<u32>)| row.into_iter().zip(mask).filter(|x| x.1 == 1).map(|x| x.0).collect();
    rows.into_iter().zip(mask).map(real).collect()
}

/// The json says it in words: "argmax: 8 grid points, midpoint, ...".
fn recorded_grid(golden: &Golden) -> FixedGrid {
    let note = golden.info["decode_note"].as_str().expect("decode_note");
    let (points, rest) = note.split_once("argmax: ").and_then(|x| x.1.split_once(" grid points, ")).expect(note);
    let solver = rest.split(',').next().expect(note);
    FixedGrid::new(solver.parse().expect(note), points.parse().expect(note), 1.0).expect(note)
}

fn check(file: &str, golden: &Golden, model: &L2d<B>, name: &str, mode: DecodeMode) {
    let tokens = golden.get(&format!("{name}/tokens"));
    let logits = golden.get(&format!("{name}/logits"));
    let (steps, vocab) = (tokens.shape[1], logits.shape[2]);
    let noise = golden.has(&format!("{name}/noise")).then(|| golden.get(&format!("{name}/noise")));
    let classes = golden.has("in/class_labels").then(|| golden.get("in/class_labels").values.clone());
    let requests: Vec<Request> = prompts(golden, name.contains("ragged"))
        .into_iter()
        .enumerate()
        .map(|(row, tokens)| Request {
            tokens,
            class: classes.as_ref().map(|classes| classes[row] as usize),
            sequence: row as u64,
        })
        .collect();
    let grid = recorded_grid(golden);
    let params = DiffusionParams {
        evaluations: grid.evaluations(),
        solver: grid.solver(),
        final_t: grid.final_t(),
        estimate: Estimate::Argmax,
        ..Default::default()
    };
    let decoder = match noise {
        Some(_) => Decoder::new(model, &params.check().unwrap()).unwrap(),
        None => Decoder::new(model, &DiffusionParams { evaluations: 1, ..params }.check().unwrap()).unwrap(),
    };
    let decoder = decoder.with_mode(mode);
    let generation = GenerationParams {
        max_tokens: steps,
        sampling: SamplingParams::greedy(),
        stop_tokens: model.lm.config.eos_token_ids.clone(),
        ..Default::default()
    };
    let generation = generation.check().unwrap();
    let mut recorded = Recorded { noise, seen: BTreeMap::new() };
    let hooks = Hooks { noise: Some(&mut recorded), ..Hooks::default() };
    let completions = decoder.generate(&requests, &generation, hooks).unwrap();
    for (row, completion) in completions.iter().enumerate() {
        let expected: Vec<u32> = tokens.values[row * steps..][..steps]
            .iter()
            .take_while(|&&token| token >= 0.0)
            .map(|&token| token as u32)
            .collect();
        assert_eq!(completion.tokens, expected, "{file} {name} row {row}");
        match completion.finish {
            FinishReason::StopToken(token) => assert_eq!(expected.last(), Some(&token)),
            FinishReason::MaxTokens => assert_eq!(expected.len(), steps),
            ref other => panic!("{other:?}"),
        }
        for step in 0..expected.len() {
            let start = (row * steps + step) * vocab;
            let golden = GoldenTensor { shape: vec![vocab], values: logits.values[start..start + vocab].to_vec() };
            let found = &recorded.seen[&(row as u64, step as u32)];
            assert_close(&format!("{file} {name} row {row} token {step}"), found, &golden, TOLERANCE);
        }
        let between = grid.slope_times().iter().filter(|&&t| t > 0.0 && t < 1.0).count();
        let per_token = if noise.is_some() { between + 1 } else { 0 };
        assert_eq!(completion.passes, per_token * expected.len(), "t = 0 costs no pass");
    }
}

#[test]
fn parity_decoding() {
    for file in FILES {
        let golden = Golden::load(file);
        let (lm, path) = golden_l2d(&golden, &Default::default());
        let model = L2d { lm, path };
        let packed = CPU.then(|| model.clone().packed(WeightFormat::F32));
        for name in ["decode/equal_ar", "decode/equal_argmax", "decode/ragged_ar", "decode/ragged_argmax"] {
            for mode in [DecodeMode::Sequential, DecodeMode::Parallel] {
                check(file, &golden, &model, name, mode);
                if let Some(packed) = &packed {
                    check(file, &golden, packed, name, mode);
                }
            }
        }
    }
}
