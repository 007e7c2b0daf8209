//! Laws of the learner: resuming, accumulating, stopping.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::{AutodiffModule, Module, Param};
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::lm::{Lm, host_values};
use l2d_core::parameters::{parameters, replace_trained_parameters, trainable};
use l2d_testkit::models::golden_lm;
use l2d_testkit::{TestAutodiff, TestBackend};
use l2d_train::data::{Batch, Example};
use l2d_train::objective::{DrawSettings, Labelled, LmObjective, StepLoss, add_lora};
use l2d_train::optimiser::NamedGradients;
use l2d_train::{
    EngineSettings, L2dEngine, L2dTask, LmEngine, LmTask, Observer, Outcome, RunDir, Silent, StepReport, Storage, Task,
    TrainConfig, TrainError, Trained, train,
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
            Example { tokens, prompt: rng.random_range(1..length), class: None, conversation: 0 }
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

/// The task by automatic differentiation.
fn l2d_task(lm: Lm<B>) -> L2dTask<AB> {
    L2dTask::new(L2dEngine::new(lm, EngineSettings::default()), DrawSettings::default())
}

/// A line of the metrics without what no two runs have in common.
fn timeless(line: &str) -> serde_json::Value {
    let mut row: serde_json::Value = serde_json::from_str(line).expect("json");
    let timed = |key: &str| key.starts_with("seconds") || key.ends_with("per_second") || key.ends_with("memory");
    row.as_object_mut().expect("object").retain(|key, _| !timed(key));
    row
}

/// Writes a checkpoint's checksums anew, so that what a test changed counts as what was written.
fn sign(checkpoint: &Path) {
    use sha2::{Digest, Sha256};
    let sums: String = ["adapter.safetensors", "optimizer.safetensors", "state.json"]
        .map(|name| {
            let sum = Sha256::digest(std::fs::read(checkpoint.join(name)).expect("read"));
            format!("{}  {name}\n", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        })
        .concat();
    std::fs::write(checkpoint.join("SHA256SUMS"), sums).expect("written");
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
            text.lines().map(timeless).collect::<Vec<_>>()
        };
        assert_eq!(strip(folder.path()), strip(whole_folder.path()));
    }
}

#[test]
fn accumulated_gradients_are_those_of_one_large_batch() {
    // AdamW forgives a wrong factor before the gradients, so losses alone would not show one: the norms do.
    struct Norms(Vec<f64>);
    impl Observer for Norms {
        fn step(&mut self, report: &StepReport) {
            self.0.push(report.gradient_norm);
        }
    }
    let norms = |micro_batch_size: Option<usize>| {
        let config = TrainConfig { micro_batch_size, ..config() };
        let lm = golden_lm::<B>("base_llama", &Default::default());
        let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
        let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(0));
        let mut observer = Norms(vec![]);
        train(
            &l2d_task(lm),
            trainable(AutodiffModule::from_inner(path)),
            &examples(17, 1),
            &[],
            &config,
            None,
            &Default::default(),
            &AtomicBool::new(false),
            &mut observer,
        )
        .expect("trained");
        observer.0
    };
    let whole = norms(None);
    assert!(whole.len() == 12 && whole.iter().all(|&norm| norm > 1e-6), "{whole:?}");
    for size in 1..5 {
        for (a, b) in norms(Some(size)).iter().zip(&whole) {
            assert!((a / b - 1.0).abs() < 1e-4, "micro-batches of {size}: {a} against {b}");
        }
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
        &l2d_task(lm),
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

/// The L2D task, except that from a given micro-batch on its losses or gradients are no numbers.
struct Poisoned {
    task: L2dTask<AB>,
    calls: Cell<usize>,
    from_call: usize,
    what: Poison,
}

#[derive(Clone, Copy)]
enum Poison {
    Loss,
    Gradient,
    Validation,
}

impl Task<AB> for Poisoned {
    type Model = DiffusionPath<AB>;

    fn gradients(&self, model: &Self::Model, batch: &Batch, rngs: &mut [ChaCha8Rng]) -> (StepLoss, NamedGradients<B>) {
        let (mut loss, mut gradients) = Task::<AB>::gradients(&self.task, model, batch, rngs);
        self.calls.set(self.calls.get() + 1);
        if self.calls.get() >= self.from_call {
            match self.what {
                Poison::Loss => loss.sum = f64::NAN,
                Poison::Gradient => gradients.scale(f64::INFINITY),
                Poison::Validation => {}
            }
        }
        (loss, gradients)
    }

    fn loss(&self, model: &Self::Model, batch: &Batch, rngs: &mut [ChaCha8Rng]) -> StepLoss {
        let mut loss = Task::<AB>::loss(&self.task, model, batch, rngs);
        if matches!(self.what, Poison::Validation) && self.calls.get() >= self.from_call {
            loss.sum = f64::INFINITY;
        }
        loss
    }

    fn no_class(&self, model: &Self::Model) -> Option<usize> {
        Task::<AB>::no_class(&self.task, model)
    }

    fn save(&self, model: &Self::Model, folder: &Path, notes: &BTreeMap<String, String>) -> Result<(), TrainError> {
        Task::<AB>::save(&self.task, model, folder, notes)
    }

    fn load(&self, model: Self::Model, folder: &Path) -> Result<Self::Model, TrainError> {
        Task::<AB>::load(&self.task, model, folder)
    }
}

#[test]
fn a_value_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint() {
    // Six updates go well. Then the loss of the weights after the sixth is no number, so those after the fifth are the last
    // good ones; where only the gradient or the validation fails, so much the better or the same.
    let cases = [
        (Poison::Loss, "step 7: the loss is NaN", 5, "(", 6),
        (Poison::Gradient, "step 7: the gradient norm is", 6, "", 6),
        (Poison::Validation, "step 8: the validation loss is inf", 7, "", 7),
    ];
    for (what, stopped, good, bracket, newest) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let lm = golden_lm::<B>("base_llama", &Default::default());
        let config = TrainConfig { keep_last: 1, checkpoint_every: 1, ..config() };
        let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
        let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(0));
        let task = Poisoned { task: l2d_task(lm), calls: Cell::new(0), from_call: 7, what };
        let dir = RunDir::create(folder.path()).expect("a folder");
        let result = train::<AB, _>(
            &task,
            trainable(AutodiffModule::from_inner(path)),
            &examples(17, 1),
            &examples(6, 2),
            &config,
            Some(&Storage { dir: dir.clone(), resume: false, notes: BTreeMap::new() }),
            &Default::default(),
            &AtomicBool::new(false),
            &mut Silent,
        );
        let error = result.map(|trained| trained.steps).expect_err("stopped");
        let message = error.to_string();
        assert!(matches!(error, TrainError::Diverged { .. }) && message.contains(stopped), "{message}");
        let named = format!("last good checkpoint is {}", dir.checkpoint(good).display());
        assert!(message.contains(&named) && message.contains(bracket), "{message}");
        // What failed stands aside under another name, so that a resumed run begins with the good one.
        let kept = dir.checkpoints().expect("listed");
        assert_eq!(kept.last(), Some(&good), "{kept:?}");
        let failed = dir.checkpoint(newest).with_extension("failed");
        assert_eq!(failed.exists(), newest != good, "{}", failed.display());
        dir.load::<B>(good, config.adamw, &Default::default()).expect("the good one is whole");
    }
}

#[test]
fn weights_that_were_saved_before_any_loss_saw_them_are_not_called_good() {
    let folder = tempfile::tempdir().expect("a folder");
    // A rate that throws the weights out of f32 with the first update; clipping off, so nothing catches it.
    let wild = TrainConfig {
        learning_rate: 1e30,
        warmup_steps: 0,
        clip_norm: 0.0,
        checkpoint_every: 1,
        validate_every: 0,
        ..config()
    };
    let (result, losses) = run(&wild, Some(folder.path()), false, None);
    let message = result.expect_err("stopped").to_string();
    assert_eq!(losses.len(), 1, "{message}");
    assert!(message.contains("checkpoint is none (") && message.contains("holds the weights that failed"), "{message}");
}

/// A task whose validation raises a flag the first time it is asked.
struct Impatient<'a> {
    task: L2dTask<AB>,
    cancel: &'a AtomicBool,
    asked: Cell<usize>,
}

impl Task<AB> for Impatient<'_> {
    type Model = DiffusionPath<AB>;

    fn gradients(&self, model: &Self::Model, batch: &Batch, rngs: &mut [ChaCha8Rng]) -> (StepLoss, NamedGradients<B>) {
        Task::<AB>::gradients(&self.task, model, batch, rngs)
    }

    fn loss(&self, model: &Self::Model, batch: &Batch, rngs: &mut [ChaCha8Rng]) -> StepLoss {
        self.asked.set(self.asked.get() + 1);
        self.cancel.store(true, Ordering::Relaxed);
        Task::<AB>::loss(&self.task, model, batch, rngs)
    }

    fn no_class(&self, model: &Self::Model) -> Option<usize> {
        Task::<AB>::no_class(&self.task, model)
    }

    fn save(&self, model: &Self::Model, folder: &Path, notes: &BTreeMap<String, String>) -> Result<(), TrainError> {
        Task::<AB>::save(&self.task, model, folder, notes)
    }

    fn load(&self, model: Self::Model, folder: &Path) -> Result<Self::Model, TrainError> {
        Task::<AB>::load(&self.task, model, folder)
    }
}

#[test]
fn a_validation_that_was_called_off_is_made_when_the_run_goes_on() {
    // Several micro-batches a validation, so that it can be stopped in its middle; the last update's is stopped, too.
    for steps in [12, 4] {
        let config = TrainConfig { steps: Some(steps), micro_batch_size: Some(2), ..config() };
        let whole_folder = tempfile::tempdir().expect("a folder");
        let (whole, expected) = run(&config, Some(whole_folder.path()), false, None);
        let whole = whole.expect("trained");

        let folder = tempfile::tempdir().expect("a folder");
        let lm = golden_lm::<B>("base_llama", &Default::default());
        let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
        let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(config.seed));
        let cancel = AtomicBool::new(false);
        let task = Impatient { task: l2d_task(lm), cancel: &cancel, asked: Cell::new(0) };
        let stopped = train::<AB, _>(
            &task,
            trainable(AutodiffModule::from_inner(path)),
            &examples(17, 1),
            &examples(6, 2),
            &config,
            Some(&Storage {
                dir: RunDir::create(folder.path()).expect("a folder"),
                resume: false,
                notes: BTreeMap::new(),
            }),
            &Default::default(),
            &cancel,
            &mut Silent,
        )
        .expect("stopped cleanly");
        assert_eq!((stopped.outcome, stopped.steps, task.asked.get()), (Outcome::Interrupted, 4, 1));
        assert!(stopped.best_validation.is_none());

        let (resumed, rest) = run(&config, Some(folder.path()), true, None);
        let resumed = resumed.expect("finished");
        assert_eq!((resumed.outcome, rest.as_slice()), (Outcome::Finished, &expected[4..]));
        assert_eq!(resumed.best_validation, whole.best_validation);
        let validations = |folder: &Path| {
            let text = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
            text.lines().filter(|line| line.contains("\"validation\"")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(validations(folder.path()), validations(whole_folder.path()));
        // Once made, it is not made again.
        let (again, _) = run(&config, Some(folder.path()), true, None);
        assert_eq!(again.expect("nothing left").best_validation, whole.best_validation);
        assert_eq!(validations(folder.path()), validations(whole_folder.path()));
    }
}

/// An LM task's run: all weights of a tied LM, or low-rank corrections.
fn run_lm(
    low_rank: bool,
    folder: &Path,
    resume: bool,
    stop_after: Option<u64>,
) -> (Result<Trained<Lm<AB>>, TrainError>, Vec<f64>) {
    let config = TrainConfig { learning_rate: 1e-3, head_chunk: 7, ..config() };
    let storage = Storage { dir: RunDir::create(folder).expect("a folder"), resume, notes: BTreeMap::new() };
    let mut observer = Losses { losses: vec![], stop_after, cancel: Box::leak(Box::new(AtomicBool::new(false))) };
    let cancel = observer.cancel;
    let task =
        LmTask::new(LmEngine::Autodiff(LmObjective { head_chunk: config.head_chunk, ..LmObjective::default() }), 0.0);
    let (training, validation) = (examples(17, 1), examples(6, 2));
    let lm = lm_to_train(low_rank);
    let device = Default::default();
    (train(&task, lm, &training, &validation, &config, Some(&storage), &device, cancel, &mut observer), observer.losses)
}

fn lm_to_train(low_rank: bool) -> Lm<AB> {
    let lm: Lm<AB> = AutodiffModule::from_inner(golden_lm::<B>("base_llama", &Default::default()));
    if low_rank {
        add_lora(lm, 2, 4.0, &mut ChaCha8Rng::seed_from_u64(5))
    } else {
        trainable(if lm.config.tie_word_embeddings { Lm { head: None, ..lm } } else { lm })
    }
}

#[test]
fn finetuning_the_lm_resumes_bitwise_and_keeps_only_what_it_trains() {
    for low_rank in [false, true] {
        let whole_folder = tempfile::tempdir().expect("a folder");
        let (whole, expected) = run_lm(low_rank, whole_folder.path(), false, None);
        let whole = whole.expect("trained");
        let folder = tempfile::tempdir().expect("a folder");
        let (_, mut losses) = run_lm(low_rank, folder.path(), false, Some(5));
        let (resumed, rest) = run_lm(low_rank, folder.path(), true, None);
        losses.extend(rest);
        assert_eq!(losses, expected);
        assert_eq!(parameters(&resumed.expect("finished").model), parameters(&whole.model));
        let file = folder.path().join("checkpoints/step-00000012/parameters.safetensors");
        let (stored, _) = l2d_core::checkpoint::read_tensors(&file).expect("read");
        assert_eq!(stored.keys().all(|name| name.contains(".lora.")), low_rank, "{:?}", stored.keys());
        if low_rank {
            let task = LmTask::new(LmEngine::Autodiff(LmObjective { head_chunk: 7, ..LmObjective::default() }), 0.0);
            let other = lm_to_train(true);
            let shifted = other.final_norm.weight.val() + 0.5;
            let mut other = other;
            other.final_norm.weight = Param::from_tensor(shifted.detach()).no_grad();
            let error = Task::<AB>::load(&task, other, file.parent().expect("a folder")).map(|_| ());
            assert!(error.expect_err("another base").to_string().contains("another base model"));
        }
    }
}

/// The gradient of every trained parameter, moved along by `distance` times its direction.
fn moved(lm: Lm<AB>, gradients: &NamedGradients<B>, distance: f32) -> Lm<AB> {
    let values = parameters(&lm);
    replace_trained_parameters(lm, &mut |name, _| {
        let old = &values.iter().find(|tensor| tensor.name == name).expect("a parameter").values;
        let direction =
            gradients.get(name).map(|slope| host_values(slope.clone())).unwrap_or_else(|| vec![0.0; old.len()]);
        Ok(old.iter().zip(direction).map(|(value, slope)| value + distance * slope).collect())
    })
    .expect("moved")
}

#[test]
fn the_gradient_of_the_lm_is_the_slope_of_its_loss() {
    for low_rank in [false, true] {
        let examples = examples(4, 9);
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), None);
        let objective = LmObjective { head_chunk: 3, ..LmObjective::default() };
        // Fresh corrections begin at zero and their other factor without a slope: begin a little further on.
        let mut lm = lm_to_train(low_rank);
        let (_, gradients) = objective.loss_and_gradients(&lm, &batch.labelled(), None);
        lm = moved(lm.clone(), &gradients, 1e-3);
        let (loss, gradients) = objective.loss_and_gradients(&lm, &batch.labelled(), None);
        let norm = gradients.norm();
        let loss_at = |distance: f64| {
            let there = moved(lm.clone(), &gradients, (distance / norm) as f32);
            objective.loss(&there.valid(), &batch.labelled()).sum
        };
        assert!((loss_at(0.0) / loss.sum - 1.0).abs() < 1e-6, "{} and {}", loss_at(0.0), loss.sum);
        let slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2;
        assert!((slope / norm - 1.0).abs() < 2e-2, "low rank {low_rank}: slope {slope}, gradient {norm}");
    }
}

#[test]
fn class_dropout_is_drawn_for_every_position() {
    let raw = RawDiffusionConfig { classes: vec!["math".into(), "code".into()], ..config().diffusion };
    let config = raw.check(Path::new("test")).expect("valid");
    let labels: Vec<Vec<(usize, u32)>> = vec![(0..2000).map(|k| (k, 1)).collect(); 2];
    let tokens = vec![vec![1; 2001]; 2];
    let batch = Labelled { tokens: &tokens, labels: &labels, classes: Some(&[1, 0]) };
    let mut rngs = [ChaCha8Rng::seed_from_u64(1), ChaCha8Rng::seed_from_u64(2)];
    let classes = DrawSettings::default().draw(&config, &batch, &mut rngs).classes.expect("drawn");
    for (own, drawn) in [1, 0].into_iter().zip(classes.chunks(2000)) {
        assert!(drawn.iter().all(|&class| class == own || class == 2));
        let dropped = drawn.iter().filter(|&&class| class == 2).count() as f64 / 2000.0;
        // Four standard deviations of a share of 0.2 of 2000.
        assert!((dropped - 0.2).abs() < 0.036, "{dropped}");
        let changes = drawn.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes > 500, "dropped position by position: {changes} changes");
    }
}

#[test]
fn a_killed_run_goes_on_from_its_last_whole_checkpoint() {
    let whole_folder = tempfile::tempdir().expect("a folder");
    let config = TrainConfig { keep_last: 100, ..config() };
    let (whole, expected) = run(&config, Some(whole_folder.path()), false, None);
    let whole = whole.expect("trained");
    let rows = |folder: &Path| {
        let text = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
        text.lines().map(timeless).collect::<Vec<_>>()
    };
    // Killed in update 8, while a checkpoint was being written: the last whole one is two updates old.
    let folder = tempfile::tempdir().expect("a folder");
    run(&config, Some(folder.path()), false, Some(8)).0.expect("stopped");
    let newest = RunDir::create(folder.path()).expect("open").checkpoint(8);
    let half = folder.path().join("checkpoints/.incomplete-x");
    std::fs::rename(newest, &half).expect("renamed");
    std::fs::remove_file(half.join("state.json")).expect("removed");
    let metrics = folder.path().join("metrics.jsonl");
    let torn = std::fs::read_to_string(&metrics).expect("metrics") + "{\"kind\":\"train\",\"st";
    std::fs::write(&metrics, torn).expect("written");
    let (resumed, rest) = run(&config, Some(folder.path()), true, None);
    let resumed = resumed.expect("finished");
    assert_eq!(rest, expected[6..]);
    assert_eq!(parameters(&resumed.model), parameters(&whole.model));
    assert_eq!(rows(folder.path()), rows(whole_folder.path()));
    assert!(!half.exists(), "the half-written checkpoint is gone");
}

#[test]
fn a_checkpoint_whose_parts_do_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    run(&config(), Some(folder.path()), false, Some(2)).0.expect("stopped");
    let checkpoint = |step| RunDir::create(folder.path()).expect("open").checkpoint(step);
    let other = tempfile::tempdir().expect("a folder");
    let wider = TrainConfig { diffusion: RawDiffusionConfig { dim: 16, ..config().diffusion }, ..config() };
    run(&wider, Some(other.path()), false, Some(2)).0.expect("stopped");
    let moments = "checkpoints/step-00000002/optimizer.safetensors";
    std::fs::copy(other.path().join(moments), folder.path().join(moments)).expect("copied");
    sign(&checkpoint(2));
    let message = run(&config(), Some(folder.path()), true, None).0.expect_err("refused").to_string();
    assert!(message.contains("moments of `") && message.contains("do not fit"), "{message}");
    std::fs::rename(checkpoint(2), checkpoint(9)).expect("renamed");
    let message = run(&config(), Some(folder.path()), true, None).0.expect_err("refused").to_string();
    assert!(message.contains("after 2 updates, not after 9"), "{message}");
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
fn a_path_of_its_own_layers_resumes() {
    for variant in [Variant::Full, Variant::Scratch] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = TrainConfig { diffusion: RawDiffusionConfig { variant, ..config().diffusion }, ..config() };
        let (whole, expected) = run(&config, None, false, None);
        let (_, mut losses) = run(&config, Some(folder.path()), false, Some(5));
        let (resumed, rest) = run(&config, Some(folder.path()), true, None);
        losses.extend(rest);
        assert_eq!(losses, expected);
        assert_eq!(parameters(&resumed.expect("finished").model), parameters(&whole.expect("trained").model));
        let other = TrainConfig {
            diffusion: RawDiffusionConfig { variant: Variant::Full, ..config.diffusion.clone() },
            ..config
        };
        if variant == Variant::Scratch {
            let message = run(&other, Some(folder.path()), true, None).0.expect_err("another variant").to_string();
            assert!(message.contains("diffusion.variant.kind: \"scratch\" -> \"full\""), "{message}");
        }
    }
}

#[test]
fn a_used_folder_another_config_and_an_unwritable_place_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    run(&config(), Some(folder.path()), false, Some(2)).0.expect("trained");
    let error = run(&config(), Some(folder.path()), false, None).0.expect_err("a used folder");
    assert!(error.to_string().contains("--resume"), "{error}");
    let other = TrainConfig { learning_rate: 1e-3, ..config() };
    let error = run(&other, Some(folder.path()), true, None).0.expect_err("another config");
    let message = error.to_string();
    assert!(message.contains("learning_rate: 0.003 -> 0.001") && !message.contains("adamw"), "{message}");
    let running = RunDir::create(folder.path()).expect("nobody runs here");
    let error = RunDir::create(folder.path()).expect_err("somebody runs here").to_string();
    assert!(error.contains("another run is writing"), "{error}");
    drop(running);
    RunDir::create(folder.path()).expect("free again");
    let error = RunDir::create(&folder.path().join("metrics.jsonl")).expect_err("a file is no folder").to_string();
    assert!(error.contains("metrics.jsonl") && error.contains("needs a folder"), "{error}");
}

#[test]
fn silent_runs_need_no_folder() {
    let lm = golden_lm::<B>("base_qwen2", &Default::default());
    let config = TrainConfig { steps: Some(1), ..config() };
    let raw = config.diffusion.clone().check(Path::new("test")).expect("valid");
    let path: DiffusionPath<B> = DiffusionPath::init(&lm, &raw, &mut ChaCha8Rng::seed_from_u64(0));
    let trained = train(
        &l2d_task(lm),
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
