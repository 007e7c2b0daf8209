//! Whether a device computes what it should, before anything depends on it. Fused and tuned kernels have been wrong without a word
//! (tracel-ai/burn has the reports), so a GPU backend computes a few known numbers first.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::Backend;
use l2d_core::config::LmConfig;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant, merge};
use l2d_core::lm::{Lm, host_values};
use l2d_core::parameters::{replace_parameters, trainable};
use l2d_train::objective::{Draws, L2dObjective, Labelled};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

use crate::error::CliError;

/// Two layers with everything that a real model has: grouped heads, biases, a head of its own, an odd vocabulary.
const CONFIG: &str = r#"{
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 97, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": false
}"#;

/// Which of the values are compared; what they are on flex.
const GOLDEN: [(usize, f32); 8] = [
    (0, -0.7648538),
    (96, -0.54852265),
    (400, 0.81108195),
    (777, 0.7633973),
    (1000, -0.10867055),
    (1164, -0.76306134),
    (1700, 0.27966622),
    (2327, -0.6410706),
];
/// Sum of the values of all logits of the plain LM and of the diffusion path.
const SUMS: [f64; 2] = [-73.7973, -71.8699];
/// Loss and gradient norm of a training step.
const STEP: [f64; 2] = [4.728578, 3.189697];

/// Half precision on tensor cores (TF32) rounds the factors of a product to 11 bits; a wrong kernel is further off.
const TOLERANCE: f64 = 2e-2;

/// The same weights on every backend.
fn model<B: Backend>(device: &B::Device) -> (Lm<B>, DiffusionPath<B>) {
    let config = LmConfig::from_json(CONFIG, Path::new("self-check")).expect("a valid config");
    let diffusion = RawDiffusionConfig {
        dim: 16,
        conditioning: 16,
        time_features: 16,
        sigma: 4.0,
        variant: Variant::Lora { rank: 4, alpha: 4.0 },
        ..Default::default()
    };
    let diffusion = diffusion.check(Path::new("self-check")).expect("a valid config");
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let lm = drawn(Lm::init(&config, &mut rng, device), 1);
    let path = drawn(DiffusionPath::init(&lm, &diffusion, &mut rng), 2);
    (lm, path)
}

/// A module of which no parameter is zero: what begins at zero would hide what is multiplied with it.
fn drawn<B: Backend, M: Module<B>>(module: M, seed: u64) -> M {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |_: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        // Matrices `[in, out]` that keep the size of what they are multiplied with.
        let scale = if let &[inputs, _] = shape { (3.0 / inputs as f32).sqrt() } else { 1.0 };
        Ok((0..count).map(|_| scale * rng.random_range(-1.0..1.0)).collect())
    };
    replace_parameters(module, &mut draw).expect("drawing never fails")
}

/// Two prompts of six tokens.
fn prompts() -> Vec<Vec<u32>> {
    (0..2).map(|row| (0..6).map(|i| (5 + 31 * row + 17 * i) % 97).collect()).collect()
}

/// Logits `[12, 97]` of the plain LM, then of the diffusion path at t from 0.05 to 0.95.
fn logits<B: Backend>(device: &B::Device) -> Vec<f32> {
    let (lm, path) = model::<B>(device);
    let prompts = prompts();
    let mut cache = lm.new_cache(vec![0; 2], 6);
    let hidden = lm.forward(&prompts, &mut cache);
    let plan = lm.plan_at(&cache, &vec![(0..6).collect(); 2]);
    let times: Vec<f32> = (0..12).map(|row| 0.05 + 0.9 * row as f32 / 11.0).collect();
    let modulation = path.modulation(&times, None);
    let x: Vec<f32> = (0..12 * 16).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
    let x = burn::tensor::Tensor::from_data(burn::tensor::TensorData::new(x, [12, 16]), device);
    let z = path.forward(&lm, &cache, &plan, &modulation, x);
    let mut values = host_values(lm.logits(hidden.clone()));
    values.extend(host_values(lm.logits(merge(hidden, z, &modulation))));
    values
}

/// Loss and gradient norm of one step.
fn step<B: Backend>(device: &B::Device) -> [f64; 2] {
    let (lm, path) = model::<B>(device);
    let path: DiffusionPath<Autodiff<B>> = trainable(AutodiffModule::from_inner(path));
    let tokens = prompts();
    let labels: Vec<Vec<(usize, u32)>> =
        tokens.iter().map(|row| (1..5).map(|position| (position, row[position + 1])).collect()).collect();
    let draws = Draws {
        timesteps: (0..8).map(|i| 0.1 + 0.1 * i as f32).collect(),
        noise: (0..8 * 16).map(|i| (i as f32 * 1.3).cos()).collect(),
        classes: None,
        dropout: None,
    };
    let batch = Labelled { tokens: &tokens, labels: &labels, classes: None };
    let (loss, gradients) = L2dObjective::<Autodiff<B>>::new(lm).loss_and_gradients(&path, &batch, &draws);
    [loss.mean(), gradients.norm()]
}

/// Compares a few logits with what they must be.
///
/// # Errors
/// [`CliError::WrongNumbers`].
pub(crate) fn decoding<B: Backend>(device: &B::Device) -> Result<(), CliError> {
    let values = logits::<B>(device);
    let (plain, diffused) = values.split_at(values.len() / 2);
    let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
    let picked = GOLDEN.iter().map(|&(place, expected)| (f64::from(values[place]), f64::from(expected), TOLERANCE));
    // Errors of single logits add up in a sum.
    let sums = [(sum(plain), SUMS[0], 10.0 * TOLERANCE), (sum(diffused), SUMS[1], 10.0 * TOLERANCE)];
    compare("logits", picked.chain(sums))
}

/// The same for a step of training.
///
/// # Errors
/// As there.
pub(crate) fn training<B: Backend>(device: &B::Device) -> Result<(), CliError> {
    let found = step::<B>(device);
    compare("a training step", (0..2).map(|i| (found[i], STEP[i], TOLERANCE * STEP[i].abs().max(1.0))))
}

fn compare(what: &'static str, pairs: impl Iterator<Item = (f64, f64, f64)>) -> Result<(), CliError> {
    for (found, expected, tolerance) in pairs {
        // What is no number is not near anything.
        let near = (found - expected).abs() <= tolerance;
        if !near {
            return Err(CliError::WrongNumbers { what, found, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use l2d_testkit::TestBackend as B;

    #[test]
    fn the_numbers_are_those_of_flex() {
        let device = Default::default();
        let values = logits::<B>(&device);
        let (plain, diffused) = values.split_at(values.len() / 2);
        let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
        for (place, expected) in GOLDEN {
            assert!((values[place] - expected).abs() < 1e-4, "{place}: {} against {expected}", values[place]);
        }
        assert!((sum(plain) - SUMS[0]).abs() < 1e-2 && (sum(diffused) - SUMS[1]).abs() < 1e-2);
        let found = step::<B>(&device);
        assert!(found.iter().zip(STEP).all(|(a, b)| (a - b).abs() < 1e-3), "{found:?}");
        // Large enough that a wrong one is told from a rounded one.
        assert!(values.iter().map(|value| value.abs()).fold(0.0, f32::max) > 1.0);
        assert!(plain.iter().zip(diffused).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) > 0.2);
        decoding::<B>(&device).expect("right");
        training::<B>(&device).expect("right");
    }

    #[test]
    fn a_wrong_number_is_refused() {
        let said = |found: f64| compare("logits", [(found, 1.0, 0.1)].into_iter()).expect_err("wrong").to_string();
        assert!(said(1.2).contains("1.2") && said(f64::NAN).contains("NaN"));
        assert!(compare("logits", [(1.05, 1.0, 0.1)].into_iter()).is_ok());
    }
}
