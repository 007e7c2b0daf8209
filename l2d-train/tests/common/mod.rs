//! A small run beside a golden base, for tests that start, stop and resume it.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::AutodiffModule;
use l2d_core::cpu::dense::Products;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::lm::Lm;
use l2d_core::parameters::trainable;
use l2d_testkit::models::golden_lm;
use l2d_testkit::{TestAutodiff, TestBackend};
use l2d_train::data::Example;
use l2d_train::objective::{DrawSettings, Recompute};
use l2d_train::{L2dEngine, L2dTask, Observer, RunDir, StepReport, Storage, TrainConfig, TrainError, Trained, train};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub type B = TestBackend;
pub type AB = TestAutodiff;

pub fn examples(count: usize, seed: u64) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let length = rng.random_range(4..14);
            let tokens = (0..length).map(|_| rng.random_range(0..300)).collect();
            Example { tokens, prompt: rng.random_range(1..length), class: None, conversation: 0 }
        })
        .collect()
}

pub fn config() -> TrainConfig {
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

/// The task by automatic differentiation.
pub fn l2d_task(lm: Lm<B>) -> L2dTask<AB> {
    L2dTask::new(L2dEngine::new(lm, 1024, Products::F32, Recompute::None), DrawSettings::default())
}

pub struct Losses {
    pub losses: Vec<f64>,
    pub stop_after: Option<u64>,
    pub cancel: &'static AtomicBool,
}

impl Observer for Losses {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss.sum);
        if self.stop_after == Some(report.step) {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

pub fn run(
    config: &TrainConfig,
    folder: Option<&Path>,
    resume: bool,
    stop_after: Option<u64>,
) -> (Result<Trained<DiffusionPath<AB>>, TrainError>, Vec<f64>) {
    run_beside(golden_lm::<B>("base_llama", &Default::default()), config, folder, resume, stop_after)
}

/// [`run`] beside a given LM: by hand where it is packed.
pub fn run_beside(
    lm: Lm<B>,
    config: &TrainConfig,
    folder: Option<&Path>,
    resume: bool,
    stop_after: Option<u64>,
) -> (Result<Trained<DiffusionPath<AB>>, TrainError>, Vec<f64>) {
    let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
    let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(config.seed));
    let task = l2d_task(lm);
    let storage =
        folder.map(|folder| Storage { dir: RunDir::create(folder).expect("a folder"), resume, notes: BTreeMap::new() });
    let mut observer = Losses { losses: vec![], stop_after, cancel: Box::leak(Box::new(AtomicBool::new(false))) };
    let cancel = observer.cancel;
    let result = train(
        &task,
        trainable(AutodiffModule::from_inner(path)),
        &examples(17, 1),
        &examples(6, 2),
        config,
        storage.as_ref(),
        &Default::default(),
        cancel,
        &mut observer,
    );
    (result, observer.losses)
}

/// The lines of a run's metrics, without what a clock or the system says.
pub fn rows(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    text.lines()
        .map(|line| {
            let mut row: serde_json::Value = serde_json::from_str(line).expect("json");
            for key in ["tokens_per_second", "labels_per_second", "memory"] {
                row.as_object_mut().expect("object").remove(key);
            }
            row
        })
        .collect()
}
