//! A small diffusion path beside the golden Llama, and examples for it: what the tests of whole runs train.

use std::path::Path;

use burn::module::AutodiffModule;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::parameters::trainable;
use l2d_testkit::models::golden_lm;
use l2d_testkit::{TestAutodiff as AB, TestBackend as B};
use l2d_train::data::Example;
use l2d_train::objective::DrawSettings;
use l2d_train::{EngineSettings, L2dEngine, L2dTask, TrainConfig};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(crate) fn examples(count: usize, seed: u64) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|conversation| {
            let length = rng.random_range(4..14);
            let tokens = (0..length).map(|_| rng.random_range(0..300)).collect();
            Example { tokens, prompt: rng.random_range(1..length), class: None, conversation }
        })
        .collect()
}

pub(crate) fn config() -> TrainConfig {
    TrainConfig {
        steps: Some(12),
        batch_size: 5,
        learning_rate: 3e-3,
        warmup_steps: 3,
        validate_every: 4,
        checkpoint_every: 3,
        diffusion: RawDiffusionConfig {
            dim: 8,
            conditioning: 8,
            time_features: 8,
            variant: Variant::Lora { rank: 2, alpha: 2.0 },
            ..Default::default()
        },
        ..Default::default()
    }
}

pub(crate) fn task() -> L2dTask<AB> {
    let lm = golden_lm::<B>("base_llama", &Default::default());
    L2dTask::new(L2dEngine::new(lm, EngineSettings::default()), DrawSettings::default())
}

pub(crate) fn fresh(config: &TrainConfig) -> DiffusionPath<AB> {
    let lm = golden_lm::<B>("base_llama", &Default::default());
    let checked = config.diffusion.clone().check(Path::new("test")).expect("valid");
    let path: DiffusionPath<B> = DiffusionPath::init(&lm, &checked, &mut ChaCha8Rng::seed_from_u64(config.seed));
    trainable(AutodiffModule::from_inner(path))
}
