//! Small functions against the reference implementation, on grids of times and for the rotary tables of real models.

use std::path::Path;

use l2d_core::config::LmConfig;
use l2d_core::corruption::{TimestepDistribution, TimestepSampling};
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig};
use l2d_core::lm::{Rope, host_values};
use l2d_testkit::models::golden_lm;
use l2d_testkit::{Golden, TestBackend, assert_close};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

type B = TestBackend;

fn path(edit: impl FnOnce(&mut RawDiffusionConfig)) -> DiffusionPath<B> {
    let mut raw = RawDiffusionConfig { dim: 8, conditioning: 8, time_features: 8, ..Default::default() };
    edit(&mut raw);
    let config = raw.check(Path::new("test")).expect("valid");
    DiffusionPath::init(&golden_lm("base_llama", &Default::default()), &config, &mut ChaCha8Rng::seed_from_u64(0))
}

#[test]
fn parity_training_times() {
    let golden = Golden::load("helpers");
    let grid = golden.get("time_grid");
    let cosmap = TimestepSampling { distribution: TimestepDistribution::Cosmap, minimum_noise: 0.0 };
    let times: Vec<f32> = grid.values.iter().map(|&u| cosmap.time(u)).collect();
    assert_close("cosmap", &times, golden.get("cosmap"), 1e-6);
    // Minimum noise scales both distributions; uniform times are the number itself.
    for distribution in [TimestepDistribution::Uniform, TimestepDistribution::Cosmap] {
        let (plain, scaled) = (0.0, 0.25);
        let plain = TimestepSampling { distribution, minimum_noise: plain };
        let scaled = TimestepSampling { distribution, minimum_noise: scaled };
        for &u in &grid.values {
            assert!((scaled.time(u) - 0.75 * plain.time(u)).abs() < 1e-6);
        }
    }
    assert_eq!(TimestepSampling::default().time(0.375), 0.375);
}

#[test]
fn parity_time_features() {
    let golden = Golden::load("helpers");
    let times = golden.get("time_grid").f32();
    let names = golden.names("sinusoidal/");
    assert!(!names.is_empty());
    for name in names {
        let expected = golden.get(&name);
        let path = path(|raw| raw.time_features = expected.shape[1]);
        assert_close(&name, &host_values(path.timestep.features(&times)), expected, 1e-6);
    }
}

#[test]
fn parity_input_scale() {
    let golden = Golden::load("helpers");
    let times = golden.get("time_grid").f32();
    let names = golden.names("path_std/sigma");
    assert!(!names.is_empty());
    for name in names {
        let sigma: f64 = name.trim_start_matches("path_std/sigma").parse().expect("a number");
        let scale = host_values(path(|raw| raw.sigma = sigma).modulation(&times, None).input_scale);
        let expected = golden.get(&name);
        // Relative: the deviation goes from sigma to 1.
        for ((&t, scale), &std) in times.iter().zip(scale).zip(&expected.values) {
            assert!((f64::from(scale) * std - 1.0).abs() < 1e-6, "{name} at {t}: 1 / {scale} for {std}");
        }
    }
}

#[test]
fn parity_rotary_frequencies_of_real_models() {
    let golden = Golden::load("helpers");
    let llama3 = |factor: f64| {
        format!(
            r#""rope_theta":500000.0,"rope_scaling":{{"rope_type":"llama3","factor":{factor},"low_freq_factor":1.0,
               "high_freq_factor":4.0,"original_max_position_embeddings":8192}}"#
        )
    };
    let mut compared = 0;
    for name in golden.names("rope_inv_freq/") {
        // As in the config.json that these models are published with.
        let rope = match name.trim_start_matches("rope_inv_freq/") {
            "llama32_1b" | "llama32_3b" => llama3(32.0),
            "llama31_8b" | "llama31_70b" => llama3(8.0),
            "smollm2_135m" | "smollm2_360m" => r#""rope_theta":100000.0"#.to_string(),
            "qwen25_1.5b" | "qwen25_7b" => r#""rope_theta":1000000.0"#.to_string(),
            _ => continue,
        };
        compared += 1;
        let expected = golden.get(&name);
        let head_dim = 2 * expected.shape[0];
        let json = format!(
            r#"{{"model_type":"llama","vocab_size":8,"hidden_size":{head_dim},"intermediate_size":8,"num_hidden_layers":1,
                "num_attention_heads":1,"head_dim":{head_dim},"rms_norm_eps":1e-5,"max_position_embeddings":131072,{rope}}}"#
        );
        let config = LmConfig::from_json(&json, Path::new("config.json")).expect("valid");
        let found = Rope::new(&config).inv_freq;
        for (i, (found, expected)) in found.iter().zip(&expected.values).enumerate() {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{name}[{i}]: {found} for {expected}");
        }
    }
    assert!(compared > 0, "no model of these is known here: {:?}", golden.names("rope_inv_freq/"));
}
