//! SmolLM2-135M-Instruct, the real file: its tokenizer, chat template and logits against Hugging Face's results. Set
//! `L2D_SMOLLM2` to the path of its GGUF file; without it these tests say that they were skipped.

use std::path::PathBuf;

use l2d_core::checkpoint::{Checkpoint, TensorSource};
use l2d_core::config::Family;
use l2d_core::cpu::{CacheFormat, WeightFormat};
use l2d_core::lm::{Lm, host_values};
use l2d_core::text::{Ending, Message};
use l2d_testkit::{Golden, TestBackend};
use serde::Deserialize;

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct PromptCase {
    prompt: String,
    rendered: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    greedy_text: String,
}

fn cases<T: serde::de::DeserializeOwned>(file: &str) -> Vec<T> {
    serde_json::from_str(&std::fs::read_to_string(l2d_testkit::parity_dir().join(file)).unwrap()).unwrap()
}

fn checkpoint() -> Option<Checkpoint> {
    match std::env::var_os("L2D_SMOLLM2") {
        Some(path) => Some(Checkpoint::open(&PathBuf::from(path)).unwrap()),
        None => {
            println!("skipped: L2D_SMOLLM2 is not set to the SmolLM2-135M-Instruct GGUF file");
            None
        }
    }
}

#[test]
fn the_tokenizer_gives_hugging_face_ids() {
    let Some(checkpoint) = checkpoint() else { return };
    let tokenizer = &checkpoint.tokenizer;
    for case in cases::<TokenizerCase>("smollm2_tokenizer.json") {
        assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&case.ids, false).unwrap(), case.text);
        let mut stream = tokenizer.stream(false);
        let mut streamed: String = case.ids.iter().filter_map(|&id| stream.push(id)).collect();
        streamed.extend(stream.finish());
        assert_eq!(streamed, case.text);
    }
}

#[test]
fn prompts_render_and_encode_as_hugging_face_does() {
    let Some(checkpoint) = checkpoint() else { return };
    let template = checkpoint.template.as_ref().unwrap();
    for case in cases::<PromptCase>("smollm2_lm.json") {
        let rendered = template.render(&[Message::user(&case.prompt)], Ending::GenerationPrompt).unwrap();
        assert_eq!(rendered, case.rendered);
        assert_eq!(checkpoint.tokenizer.encode(&rendered, false).unwrap(), case.ids);
        assert_eq!(checkpoint.tokenizer.decode(&case.greedy, true).unwrap(), case.greedy_text);
    }
}

#[test]
fn the_architecture_and_the_tensors_are_hugging_faces() {
    let Some(checkpoint) = checkpoint() else { return };
    let config = &checkpoint.config;
    assert_eq!((config.family, config.num_layers, config.head_dim), (Family::Llama, 30, 64));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-5, 100_000.0));
    assert!(config.tie_word_embeddings);
    assert_eq!(config.num_parameters(), 134_515_008);
    // The metadata names <|im_end|>; <|endoftext|> ends a text too, by its spelling, as llama.cpp has it.
    assert_eq!(checkpoint.generation.eos_token_ids, [2, 0]);

    let tensors: &dyn TensorSource = &*checkpoint.tensors;
    let counted: usize =
        tensors.names().iter().map(|name| tensors.shape(name).unwrap().iter().product::<usize>()).sum();
    assert_eq!(counted, config.num_parameters());
    for name in tensors.names() {
        let values = tensors.read_f32(&name).unwrap();
        assert_eq!(values.len(), tensors.shape(&name).unwrap().iter().product::<usize>());
        assert!(values.iter().all(|x| x.is_finite() && x.abs() < 1e3), "{name}");
    }
}

#[test]
fn parity_logits_and_greedy_tokens() {
    let Some(checkpoint) = checkpoint() else { return };
    let load = [Lm::<TestBackend>::load, Lm::<TestBackend>::load_packed];
    for load in load {
        logits_and_greedy_tokens(load(&checkpoint.config, &*checkpoint.tensors, &Default::default()).unwrap());
    }
}

/// Blocks multiplied as they lie in the file give the very logits of the matrices they decode to.
#[test]
fn packed_blocks_lose_nothing() {
    let Some(checkpoint) = checkpoint() else { return };
    let device = Default::default();
    let blocks = Lm::<TestBackend>::load_packed(&checkpoint.config, &*checkpoint.tensors, &device).unwrap();
    let whole = Lm::<TestBackend>::load(&checkpoint.config, &*checkpoint.tensors, &device).unwrap();
    let whole = whole.packed(WeightFormat::F32);
    assert!(blocks.weight_bytes() * 5 < whole.weight_bytes());
    let tokens: Vec<u32> = (0..70).map(|i| (i * 7919) % 49_152).collect();
    let logits = |lm: &Lm<TestBackend>| {
        host_values(lm.logits(lm.forward(std::slice::from_ref(&tokens), &mut lm.new_cache(vec![0], 70))))
    };
    let (a, b) = (logits(&blocks), logits(&whole));
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert_eq!(worst, 0.0);
}

/// How far rounded weights, and rounded keys and values, take the next-token distributions of a text, and what that does to its perplexity. Prints the
/// table of docs/performance.md.
#[test]
fn rounded_weights_stay_near() {
    let Some(checkpoint) = checkpoint() else { return };
    let rows = include_str!("../../l2d-eval/tests/fixtures/openai__gsm8k/main/test.jsonl");
    let text: String = rows
        .lines()
        .map(|row| serde_json::from_str::<serde_json::Value>(row).expect("a row"))
        .map(|row| format!("{}\n{}\n\n", row["question"].as_str().unwrap(), row["answer"].as_str().unwrap()))
        .collect();
    let mut tokens = checkpoint.tokenizer.encode(&text, false).unwrap();
    tokens.truncate(512);
    let distributions = |format: WeightFormat, cache: CacheFormat| -> Vec<Vec<f64>> {
        let lm = Lm::<TestBackend>::load(&checkpoint.config, &*checkpoint.tensors, &Default::default()).unwrap();
        let lm = lm.packed(format).with_cache_format(cache);
        let logits =
            host_values(lm.logits(lm.forward(std::slice::from_ref(&tokens), &mut lm.new_cache(vec![0], tokens.len()))));
        let log_softmax = |row: &[f32]| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
            row.iter().map(|x| f64::from(x - largest) - sum.ln()).collect()
        };
        logits.chunks_exact(lm.config.vocab_size).map(log_softmax).collect()
    };
    let perplexity = |rows: &[Vec<f64>]| {
        let sum: f64 = rows.iter().zip(&tokens[1..]).map(|(row, &token)| row[token as usize]).sum();
        (-sum / (tokens.len() - 1) as f64).exp()
    };
    let exact = distributions(WeightFormat::F32, CacheFormat::F32);
    let reference = perplexity(&exact);
    println!("| weights | keys and values | KL from f32, nats a token | most likely token the same | perplexity |");
    println!("| f32 | f32 | 0 | 100 % | {reference:.4} |");
    for (format, cache, bound) in [
        (WeightFormat::F32, CacheFormat::F16, 1e-5),
        (WeightFormat::Bf16, CacheFormat::F32, 1e-3),
        (WeightFormat::F16, CacheFormat::F32, 1e-5),
        (WeightFormat::Q8_0, CacheFormat::F32, 5e-3),
        (WeightFormat::Q4_1, CacheFormat::F32, 0.1),
    ] {
        let rounded = distributions(format, cache);
        let kl: f64 = exact
            .iter()
            .zip(&rounded)
            .map(|(p, q)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>())
            .sum::<f64>()
            / exact.len() as f64;
        let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let same = exact.iter().zip(&rounded).filter(|(p, q)| best(p) == best(q)).count();
        let (percent, perplexity) = (100.0 * same as f64 / exact.len() as f64, perplexity(&rounded));
        println!("| {format} | {} | {kl:.2e} | {percent:.1} % | {perplexity:.4} |", cache.name());
        assert!(kl < bound, "{format:?}: {kl}");
        assert!((perplexity / reference - 1.0).abs() < bound.sqrt(), "{format:?}: {perplexity} for {reference}");
    }
}

fn logits_and_greedy_tokens(lm: Lm<TestBackend>) {
    let golden = Golden::load("smollm2_lm");
    for (i, case) in cases::<PromptCase>("smollm2_lm.json").into_iter().enumerate() {
        let mut cache = lm.new_cache(vec![0], case.ids.len() + case.greedy.len());
        let mut logits = lm.logits(lm.forward(&[case.ids], &mut cache));
        let best: Vec<f64> = host_values(logits.clone().argmax(1).float()).into_iter().map(f64::from).collect();
        assert_eq!(best, golden.get(&format!("{i}.argmax_per_position")).values, "arg-max of prompt {i}");

        let rows = best.len();
        let last = host_values(logits.clone().narrow(0, rows - 1, 1));
        let expected = &golden.get(&format!("{i}.last_logits")).values;
        let largest = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let worst = last.iter().zip(expected).fold(0.0_f64, |m, (&a, b)| m.max((f64::from(a) - b).abs()));
        assert!(worst / largest < 1e-3, "prompt {i}: relative error {:e}", worst / largest);

        for (step, &expected) in case.greedy.iter().enumerate() {
            let rows = logits.dims()[0];
            let next = host_values(logits.narrow(0, rows - 1, 1).argmax(1).float())[0] as u32;
            assert_eq!(next, expected, "prompt {i}, token {step}");
            logits = lm.logits(lm.forward(&[vec![next]], &mut cache));
        }
    }
}
