//! The same golden numbers on the GPU backend. Runs wherever a Vulkan, Metal or DX12 driver is found, a software one
//! (lavapipe) included; skips itself, saying so, where there is none, unless `L2D_REQUIRE_WGPU` is set.
#![cfg(feature = "wgpu")]

use burn::backend::wgpu::WgpuDevice;
use burn::backend::{Autodiff, Wgpu};
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor};
use l2d_core::diffusion::{DiffusionPath, merge};
use l2d_core::lm::host_values;
use l2d_core::parameters::trainable;
use l2d_testkit::models::{BASE_FOLDERS, golden_l2d, golden_lm};
use l2d_testkit::{Golden, assert_close};
use l2d_train::objective::{Draws, L2dObjective, Labelled};

type B = Wgpu;

/// Initialising without an adapter panics inside wgpu; that is the only way it reports one.
fn device() -> Option<WgpuDevice> {
    let found = std::panic::catch_unwind(|| {
        let device = WgpuDevice::default();
        let one = Tensor::<B, 1>::from_floats([1.0], &device);
        assert_eq!(host_values(one + 1.0), [2.0]);
        device
    });
    match found {
        Ok(device) => Some(device),
        Err(_) if std::env::var_os("L2D_REQUIRE_WGPU").is_some() => panic!("no usable GPU driver, and one is required"),
        Err(_) => {
            eprintln!("skipped: no usable GPU driver on this machine");
            None
        }
    }
}

#[test]
fn parity_of_the_base_lm() {
    let Some(device) = device() else { return };
    for folder in BASE_FOLDERS {
        let golden = Golden::load(&format!("{folder}/expected"));
        let lm = golden_lm::<B>(folder, &device);
        let tokens = golden.token_rows("in/input_ids");
        let mut cache = lm.new_cache(vec![0; tokens.len()], 4);
        let logits = lm.logits(lm.forward(&tokens, &mut cache));
        assert_close(folder, &host_values(logits), golden.get("out/logits"), 5e-5);

        let last = tokens[0].len() - 1;
        let mut cache = lm.new_cache(vec![0; tokens.len()], 4);
        let head: Vec<Vec<u32>> = tokens.iter().map(|row| row[..last].to_vec()).collect();
        lm.forward(&head, &mut cache);
        let tail: Vec<Vec<u32>> = tokens.iter().map(|row| row[last..].to_vec()).collect();
        let cached = host_values(lm.logits(lm.forward(&tail, &mut cache)));
        let vocab = lm.config.vocab_size;
        for (row, found) in cached.chunks(vocab).enumerate() {
            let expected = &golden.get("out/logits").values[(row * (last + 1) + last) * vocab..][..vocab];
            for (a, b) in found.iter().zip(expected) {
                assert!((*a as f64 - b).abs() < 5e-5, "{folder} cached row {row}: {a} against {b}");
            }
        }
    }
}

#[test]
fn parity_of_the_diffusion_path() {
    let Some(device) = device() else { return };
    for file in ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full", "l2d_llama_guidance"] {
        let golden = Golden::load(file);
        let (lm, path) = golden_l2d::<B>(&golden, &device);
        assert_close(file, &host_values(path.vocabulary.table(&lm)), golden.get("out/V"), 5e-5);
        let tokens = golden.token_rows("in/input_ids");
        let (batch, length) = (tokens.len(), tokens[0].len());
        let mut cache = lm.new_cache(vec![0; batch], length);
        let hidden = lm.forward(&tokens, &mut cache);
        let plan = lm.plan_at(&cache, &vec![(0..length).collect(); batch]);
        let timesteps = golden.get("in/timesteps").f32();
        let classes: Option<Vec<usize>> = golden.has("in/class_labels").then(|| {
            golden.get("in/class_labels").values.iter().flat_map(|&class| vec![class as usize; length]).collect()
        });
        let modulation = path.modulation(&timesteps, classes.as_deref());
        let z = path.forward(&lm, &cache, &plan, &modulation, golden.get("in/x_t").rows(&device));
        let logits = lm.logits(merge(hidden, z, &modulation));
        assert_close(file, &host_values(logits), golden.get("out/flow_logits"), 3e-4);
    }
}

#[test]
fn parity_of_the_training_loss() {
    let Some(device) = device() else { return };
    let golden = Golden::load("l2d_llama_lora");
    let (lm, path) = golden_l2d::<B>(&golden, &device);
    let path: DiffusionPath<Autodiff<B>> = trainable(AutodiffModule::from_inner(path));
    let labels: Vec<i64> = golden.get("in/labels_aligned").values.iter().map(|&y| y as i64).collect();
    let tokens = golden.token_rows("in/input_ids");
    let length = tokens[0].len();
    let labelled: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] >= 0).collect();
    let pairs: Vec<Vec<(usize, u32)>> = (0..tokens.len())
        .map(|b| labelled.iter().filter(|&&i| i / length == b).map(|&i| (i % length, labels[i] as u32)).collect())
        .collect();
    let noise = golden.get("in/noise").f32();
    let dim = path.config.dim;
    let timesteps = golden.get("in/timesteps").f32();
    let draws = Draws {
        timesteps: labelled.iter().map(|&i| timesteps[i]).collect(),
        noise: labelled.iter().flat_map(|&i| noise[i * dim..][..dim].to_vec()).collect(),
        classes: None,
        dropout: None,
    };
    let objective = L2dObjective::<Autodiff<B>>::new(lm);
    let batch = Labelled { tokens: &tokens, labels: &pairs, classes: None };
    let (loss, gradients) = objective.loss_and_gradients(&path, &batch, &draws);
    assert!((loss.mean() - golden.get("out/loss").values[0]).abs() < 1e-5, "{}", loss.mean());
    let gradient = host_values(gradients.get("vocabulary.projection.bias").expect("a gradient").clone());
    let expected = golden.get("grad/model.flow_token_embedder.embedder.layers_module.0.bias");
    let mean: Vec<f32> = gradient.iter().map(|g| g / labelled.len() as f32).collect();
    let largest = expected.values.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert_close("W_v bias", &mean, expected, 1e-3 * largest);
}

#[test]
fn parity_of_selecting_rows_of_a_cache() {
    let Some(device) = device() else { return };
    let lm = golden_lm::<B>("base_llama", &device);
    let mut cache = lm.new_cache(vec![0, 0], 3);
    lm.forward(&[vec![5, 6], vec![7, 8]], &mut cache);
    cache.select(&[1], &device);
    let after = host_values(lm.logits(lm.forward(&[vec![9]], &mut cache)));
    let mut alone = lm.new_cache(vec![0], 3);
    let hidden = lm.forward(&[vec![7, 8, 9]], &mut alone);
    let last = hidden.select(0, Tensor::<B, 1, Int>::from_ints([2], &device));
    for (a, b) in after.iter().zip(host_values(lm.logits(last))) {
        assert!((a - b).abs() < 5e-5, "{a} against {b}");
    }
}
