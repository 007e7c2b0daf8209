//! Laws of the learner: resuming, accumulating, stopping.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::AutodiffModule;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::parameters::{parameters, trainable};
use l2d_testkit::models::golden_lm;
use l2d_testkit::{TestAutodiff, TestBackend};
use l2d_train::data::Example;
use l2d_train::objective::L2dObjective;
use l2d_train::{
    L2dTask, Observer, Outcome, RunDir, Silent, StepReport, Storage, TrainConfig, TrainError, Trained, train,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

type B = TestBackend;
type AB = TestAutodiff;

fn examples(count: usize, seed: u64) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let length = rng.random_range(4..14);
            let tokens = (0..length).map(|_| rng.random_range(0..300)).collect();
            Example { tokens, prompt: rng.random_range(1..length), class: None }
        })
        .collect()
}

fn config() -> TrainConfig {
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

struct Losses {
    losses: Vec<f64>,
    stop_after: Option<u64>,
    cancel: &'static AtomicBool,
}

impl Observer for Losses {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss.sum);
        if self.stop_after == Some(report.step) {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

fn run(
    config: &TrainConfig,
    folder: Option<&Path>,
    resume: bool,
    stop_after: Option<u64>,
) -> (Result<Trained<DiffusionPath<AB>>, TrainError>, Vec<f64>) {
    let lm = golden_lm::<B>("base_llama", &Default::default());
    let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
    let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(config.seed));
    let task = L2dTask::<AB>::new(L2dObjective::new(lm));
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

#[test]
fn a_resumed_run_is_bitwise_the_uninterrupted_one() {
    let whole_folder = tempfile::tempdir().expect("a folder");
    let (whole, expected) = run(&config(), Some(whole_folder.path()), false, None);
    let whole = whole.expect("trained");
    assert_eq!((whole.outcome, expected.len()), (Outcome::Finished, 12));
    for stop in [1, 5, 7] {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, mut losses) = run(&config(), Some(folder.path()), false, Some(stop));
        let first = first.expect("stopped cleanly");
        assert_eq!((first.outcome, first.steps), (Outcome::Interrupted, stop));
        let (second, rest) = run(&config(), Some(folder.path()), true, None);
        let second = second.expect("finished");
        losses.extend(rest);
        assert_eq!(losses, expected, "stopped after {stop}");
        assert_eq!(parameters(&second.model), parameters(&whole.model));
        assert_eq!(second.best_validation, whole.best_validation);
        let strip = |folder: &Path| {
            let text = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
            text.lines()
                .map(|line| {
                    let mut row: serde_json::Value = serde_json::from_str(line).expect("json");
                    row.as_object_mut().expect("object").remove("tokens_per_second");
                    row
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(strip(folder.path()), strip(whole_folder.path()));
    }
}

#[test]
fn accumulated_micro_batches_equal_one_large_batch() {
    let (whole, expected) = run(&config(), None, false, None);
    for size in [1, 2, 3] {
        let cut = TrainConfig { micro_batch_size: Some(size), ..config() };
        let (accumulated, losses) = run(&cut, None, false, None);
        for (a, b) in losses.iter().zip(&expected) {
            assert!((a / b - 1.0).abs() < 1e-4, "micro-batches of {size}: {a} against {b}");
        }
        let whole = parameters(&whole.as_ref().expect("trained").model);
        for (a, b) in parameters(&accumulated.expect("trained").model).iter().zip(&whole) {
            let squares: f32 = a.values.iter().zip(&b.values).map(|(x, y)| (x - y).powi(2)).sum();
            let rms = (squares / a.values.len() as f32).sqrt();
            // AdamW divides by the size of the gradient, so rounding in a tiny gradient moves a weight visibly.
            assert!(rms < 2e-3, "{}: {rms}", a.name);
        }
    }
}

#[test]
fn the_path_learns_to_read_its_diffusion_token() {
    // At t near 1 the diffusion token is the answer itself: however random the LM, that loss must fall.
    struct Late(Vec<(f64, u64)>);
    impl Observer for Late {
        fn step(&mut self, report: &StepReport) {
            let bins = report.loss.by_timestep.expect("l2d reports bins");
            self.0.push((bins.sum[9], bins.tokens[9]));
        }
    }
    let config = TrainConfig { steps: Some(150), batch_size: 16, learning_rate: 1e-2, validate_every: 0, ..config() };
    let lm = golden_lm::<B>("base_llama", &Default::default());
    let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
    let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(0));
    let mut observer = Late(vec![]);
    train(
        &L2dTask::<AB>::new(L2dObjective::new(lm)),
        trainable(AutodiffModule::from_inner(path)),
        &examples(60, 1),
        &[],
        &config,
        None,
        &Default::default(),
        &AtomicBool::new(false),
        &mut observer,
    )
    .expect("trained");
    let mean = |part: &[(f64, u64)]| {
        part.iter().map(|(sum, _)| sum).sum::<f64>() / part.iter().map(|(_, tokens)| tokens).sum::<u64>() as f64
    };
    let (early, late) = (mean(&observer.0[..20]), mean(&observer.0[130..]));
    assert!(late < 0.9 * early, "loss at t > 0.9: {early} at first, {late} at last");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    // A rate that throws the weights out of f32 within a few updates; clipping off, so nothing catches it.
    let wild = TrainConfig {
        learning_rate: 1e30,
        warmup_steps: 0,
        clip_norm: 0.0,
        checkpoint_every: 1,
        validate_every: 0,
        ..config()
    };
    let (result, losses) = run(&wild, Some(folder.path()), false, None);
    let error = result.expect_err("stopped");
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("step-") && losses.len() < 12, "{message}");
    let kept = RunDir::create(folder.path()).expect("open").checkpoints().expect("listed");
    assert!(!kept.is_empty(), "a checkpoint is left");
}

#[test]
fn checkpoints_are_pruned_but_the_best_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let short = TrainConfig { keep_last: 1, checkpoint_every: 1, ..config() };
    let (result, _) = run(&short, Some(folder.path()), false, None);
    let trained = result.expect("trained");
    let dir = RunDir::create(folder.path()).expect("open");
    let kept = dir.checkpoints().expect("listed");
    assert!(kept.len() <= 2 && kept.contains(&12), "{kept:?}");
    assert!(trained.best_checkpoint.is_some_and(|path| path.exists()));
}

#[test]
fn a_used_folder_another_config_and_an_unwritable_place_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    run(&config(), Some(folder.path()), false, Some(2)).0.expect("trained");
    let error = run(&config(), Some(folder.path()), false, None).0.expect_err("a used folder");
    assert!(error.to_string().contains("--resume"), "{error}");
    let other = TrainConfig { learning_rate: 1e-3, ..config() };
    let error = run(&other, Some(folder.path()), true, None).0.expect_err("another config");
    assert!(error.to_string().contains("settings or data"), "{error}");
    let file = folder.path().join("metrics.jsonl");
    let error = RunDir::create(&file).expect_err("a file is no folder");
    assert!(matches!(error, TrainError::Io { .. }) && error.to_string().contains("metrics.jsonl"), "{error}");
}

#[test]
fn silent_runs_need_no_folder() {
    let lm = golden_lm::<B>("base_qwen2", &Default::default());
    let config = TrainConfig { steps: Some(1), ..config() };
    let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
    let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(0));
    let trained = train(
        &L2dTask::<AB>::new(L2dObjective::new(lm)),
        trainable(AutodiffModule::from_inner(path)),
        &examples(4, 3),
        &[],
        &config,
        None,
        &Default::default(),
        &AtomicBool::new(false),
        &mut Silent,
    )
    .expect("trained");
    assert!(trained.last_checkpoint.is_none() && trained.best_validation.is_none());
}
