//! Laws of a run that goes on for days: what is damaged is noticed, what ends early ends for a reason, what is averaged,
//! frozen or generated comes back after an interruption.

#[path = "common/trainee.rs"]
mod trainee;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::HostTensor;
use l2d_core::parameters::parameters;
use l2d_testkit::TestAutodiff as AB;
use l2d_train::{
    BestBy, Evaluator, GenerateConfig, GenerationReport, GenerationScore, Observer, Outcome, RunDir, StepReport,
    Storage, Task, TrainConfig, TrainError, Trained, ValidationReport, train_and_generate,
};

use trainee::{config, examples, fresh, task};

type Trainee = DiffusionPath<AB>;

/// Remembers everything, and may ask for the end after an update.
struct Seen<'a> {
    losses: Vec<f64>,
    validations: Vec<ValidationReport>,
    generations: Vec<GenerationReport>,
    stop_after: Option<u64>,
    cancel: &'a AtomicBool,
}

impl Observer for Seen<'_> {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss.sum);
        if self.stop_after == Some(report.step) {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
    fn validation(&mut self, report: &ValidationReport) {
        self.validations.push(report.clone());
    }
    fn generation(&mut self, report: &GenerationReport) {
        self.generations.push(report.clone());
    }
}

/// An accuracy that is a plain function of the weights, as answers would be; called off when `cancel` is raised.
struct Weigh<'a> {
    cancel: &'a AtomicBool,
    asked: Cell<usize>,
    call_off_at: Option<usize>,
}

impl Evaluator<Trainee> for Weigh<'_> {
    fn task(&self) -> &str {
        "weighing"
    }
    fn generate(
        &mut self,
        model: &Trainee,
    ) -> Result<Option<Vec<GenerationScore>>, Box<dyn std::error::Error + Send + Sync>> {
        self.asked.set(self.asked.get() + 1);
        if self.call_off_at == Some(self.asked.get()) {
            self.cancel.store(true, Ordering::Relaxed);
            return Ok(None);
        }
        let sum: f64 = parameters(model).iter().flat_map(|tensor| &tensor.values).map(|&x| f64::from(x).abs()).sum();
        let score = |steps| GenerationScore {
            steps,
            accuracy: (sum * steps as f64).fract(),
            standard_error: None,
            problems: 7,
        };
        Ok(Some(vec![score(1), score(15)]))
    }
}

struct Run {
    result: Result<Trained<Trainee>, TrainError>,
    losses: Vec<f64>,
    validations: Vec<ValidationReport>,
    generations: Vec<GenerationReport>,
}

fn run_with(
    config: &TrainConfig,
    folder: Option<&Path>,
    resume: bool,
    stop_after: Option<u64>,
    call_off_at: Option<usize>,
) -> Run {
    let storage =
        folder.map(|folder| Storage { dir: RunDir::create(folder).expect("a folder"), resume, notes: BTreeMap::new() });
    let cancel = AtomicBool::new(false);
    let mut seen = Seen { losses: vec![], validations: vec![], generations: vec![], stop_after, cancel: &cancel };
    let mut evaluator = Weigh { cancel: &cancel, asked: Cell::new(0), call_off_at };
    let result = train_and_generate(
        &task(),
        fresh(config),
        &examples(17, 1),
        &examples(6, 2),
        config,
        storage.as_ref(),
        &Default::default(),
        &cancel,
        &mut seen,
        &mut evaluator,
    );
    let Seen { losses, validations, generations, .. } = seen;
    Run { result, losses, validations, generations }
}

fn run(config: &TrainConfig, folder: Option<&Path>, resume: bool, stop_after: Option<u64>) -> Run {
    run_with(config, folder, resume, stop_after, None)
}

fn weights(trained: &Trained<Trainee>) -> Vec<HostTensor> {
    parameters(&trained.model)
}

#[test]
fn a_damaged_newest_checkpoint_falls_back_to_the_one_before() {
    let config = TrainConfig { keep_last: 100, ..config() };
    let whole = run(&config, None, false, None);
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 5] = [
        ("truncated", |folder| {
            let file = folder.join("adapter.safetensors");
            let bytes = std::fs::read(&file).expect("read");
            std::fs::write(file, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("a flipped bit", |folder| {
            let file = folder.join("optimizer.safetensors");
            let mut bytes = std::fs::read(&file).expect("read");
            *bytes.last_mut().expect("not empty") ^= 1;
            std::fs::write(file, bytes).expect("written");
        }),
        ("a file that cannot be read", |folder| {
            let file = folder.join("adapter.safetensors");
            std::fs::remove_file(&file).expect("removed");
            std::os::unix::fs::symlink("nowhere", file).expect("linked");
        }),
        ("a file missing", |folder| std::fs::remove_file(folder.join("state.json")).expect("removed")),
        ("without checksums", |folder| std::fs::remove_file(folder.join("SHA256SUMS")).expect("removed")),
    ];
    for (what, harm) in harms {
        let folder = tempfile::tempdir().expect("a folder");
        run(&config, Some(folder.path()), false, Some(8)).result.expect("stopped");
        let checkpoint = |step| folder.path().join(format!("checkpoints/step-{step:08}"));
        harm(&checkpoint(8));
        // The one after six updates is whole: two updates are made again.
        let resumed = run(&config, Some(folder.path()), true, None);
        assert_eq!(weights(&resumed.result.expect(what)), weights(whole.result.as_ref().expect("trained")), "{what}");
        assert_eq!(resumed.losses, whole.losses[6..], "{what}");
        assert!(checkpoint(8).with_extension("damaged").exists(), "{what}");
    }
}

#[test]
fn where_no_checkpoint_is_whole_all_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    run(&config(), Some(folder.path()), false, Some(6)).result.expect("stopped");
    let steps = RunDir::create(folder.path()).expect("open").checkpoints().expect("listed");
    assert!(steps.len() > 1, "{steps:?}");
    for step in &steps {
        std::fs::write(folder.path().join(format!("checkpoints/step-{step:08}/state.json")), "{}").expect("written");
    }
    let error = run(&config(), Some(folder.path()), true, None).result.expect_err("refused");
    let message = error.to_string();
    assert!(matches!(error, TrainError::NoGoodCheckpoint { .. }), "{message}");
    assert!(steps.iter().all(|step| message.contains(&format!("step {step}: state.json"))), "{message}");
}

#[test]
fn a_lost_best_checkpoint_is_no_longer_the_best() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = TrainConfig { keep_last: 100, ..config() };
    let stopped = run(&config, Some(folder.path()), false, Some(7)).result.expect("stopped");
    let best = stopped.best_checkpoint.expect("validated");
    assert!(best.ends_with("step-00000004"), "{}", best.display());
    std::fs::write(best.join("adapter.safetensors"), "x").expect("written");
    let resumed = run(&config, Some(folder.path()), true, None);
    assert!(resumed.validations[0].best, "the next one counts as the best");
    let trained = resumed.result.expect("finished");
    assert!(trained.best_checkpoint.is_some_and(|path| path != best && path.exists()));
}

#[test]
fn a_resume_names_each_changed_setting_and_no_free_one() {
    let folder = tempfile::tempdir().expect("a folder");
    run(&config(), Some(folder.path()), false, Some(2)).result.expect("stopped");
    let mut other = config();
    (other.learning_rate, other.adamw.beta2, other.steps) = (1e-3, 0.95, Some(20));
    (other.freeze, other.diffusion.dim) = (vec!["*.bias".into()], 16);
    (other.log_every, other.micro_batch_size, other.early_stop_patience) = (2, Some(1), 9);
    let message = run(&other, Some(folder.path()), true, None).result.expect_err("refused").to_string();
    for difference in [
        "learning_rate: 0.003 -> 0.001",
        "adamw.beta2: 0.999 -> 0.95",
        "number of updates: 12 -> 20",
        "freeze: [] -> [\"*.bias\"]",
        "diffusion.dim: 8 -> 16",
    ] {
        assert!(message.contains(difference), "{difference} in {message}");
    }
    assert_eq!(message.matches("->").count(), 5, "{message}");
    assert!(!message.contains("training examples"), "{message}");
    // What is free may change, and is then what the next checkpoint says.
    let free = TrainConfig { log_every: 2, keep_last: 7, early_stop_patience: 9, ..config() };
    run(&free, Some(folder.path()), true, None).result.expect("finished");
}

#[test]
fn the_running_mean_is_validated_left_behind_and_resumed() {
    let config = TrainConfig { ema_decay: 0.8, ..config() };
    let whole_folder = tempfile::tempdir().expect("a folder");
    let whole = run(&config, Some(whole_folder.path()), false, None);
    let plain = run(&TrainConfig { ema_decay: 0.0, ..config.clone() }, None, false, None);
    assert_eq!(whole.losses, plain.losses, "training goes on from the raw weights");
    let (whole_trained, plain_trained) = (whole.result.expect("trained"), plain.result.expect("trained"));
    assert_ne!(weights(&whole_trained), weights(&plain_trained));
    assert_ne!(whole.validations[1].loss, plain.validations[1].loss, "the mean is what is validated");
    // What the best checkpoint leaves behind is the mean that gave its loss.
    let best = whole_trained.best_weights.as_ref().expect("validated");
    assert!(best.ends_with("ema"), "{}", best.display());
    Task::<AB>::load(&task(), fresh(&config), best).expect("an adapter as any other");
    for stop in [1, 5, 8] {
        let folder = tempfile::tempdir().expect("a folder");
        run(&config, Some(folder.path()), false, Some(stop)).result.expect("stopped");
        let resumed = run(&config, Some(folder.path()), true, None);
        assert_eq!(resumed.losses, whole.losses[stop as usize..]);
        assert_eq!(resumed.validations.last().expect("one").loss, whole.validations.last().expect("one").loss);
        assert_eq!(weights(&resumed.result.expect("finished")), weights(&whole_trained), "stopped after {stop}");
    }
}

#[test]
fn only_what_the_patterns_name_is_trained() {
    let config = TrainConfig { trainable: vec!["blocks.*.modulation.*".into(), "final_weight.*".into()], ..config() };
    let folder = tempfile::tempdir().expect("a folder");
    let trained = run(&config, Some(folder.path()), false, None).result.expect("trained");
    let (before, after) = (parameters(&fresh(&config)), weights(&trained));
    let mut moved = 0;
    for (old, new) in before.iter().zip(&after) {
        let named = old.name.contains(".modulation.") || old.name.starts_with("final_weight.");
        assert!(named || old.values == new.values, "{} is frozen", old.name);
        moved += usize::from(named && old.values != new.values);
    }
    assert!(moved > 4, "{moved} tensors were trained");
    let file = folder.path().join("checkpoints/step-00000012/optimizer.safetensors");
    let (moments, _) = l2d_core::checkpoint::read_tensors(&file).expect("read");
    assert!(moments.keys().all(|name| name.contains(".modulation.") || name.contains("/final_weight.")), "{moments:?}");
    let misspelt = TrainConfig { freeze: vec!["bloks.*".into()], ..config };
    let message = run(&misspelt, None, false, None).result.expect_err("refused").to_string();
    assert!(message.contains("`freeze`") && message.contains("bloks.*"), "{message}");
}

#[test]
fn a_run_that_improves_no_more_ends_early_and_stays_ended() {
    // No loss falls by five nats: the first validation is an improvement over nothing, the next two are none.
    let config = TrainConfig { validate_every: 2, early_stop_patience: 2, early_stop_min_delta: 5.0, ..config() };
    let folder = tempfile::tempdir().expect("a folder");
    let first = run(&config, Some(folder.path()), false, None);
    let trained = first.result.expect("trained");
    assert_eq!((trained.outcome, trained.steps), (Outcome::StoppedEarly, 6));
    assert!(trained.last_checkpoint.is_some_and(|path| path.exists()));
    let again = run(&config, Some(folder.path()), true, None);
    assert_eq!(
        again.result.map(|trained| (trained.outcome, trained.steps)).expect("ended"),
        (Outcome::StoppedEarly, 6)
    );
    // Interrupted between the two, it counts on where it was.
    let folder = tempfile::tempdir().expect("a folder");
    run(&config, Some(folder.path()), false, Some(5)).result.expect("stopped");
    let resumed = run(&config, Some(folder.path()), true, None).result.expect("ended");
    assert_eq!((resumed.outcome, resumed.steps), (Outcome::StoppedEarly, 6));
    // A patient one goes on where the other had ended: patience is free to change.
    let patient = TrainConfig { early_stop_patience: 0, ..config };
    let resumed = run(&patient, Some(folder.path()), true, None).result.expect("finished");
    assert_eq!((resumed.outcome, resumed.steps), (Outcome::Finished, 12));
}

#[test]
fn answers_are_scored_logged_and_may_decide_which_weights_are_best() {
    let generate =
        GenerateConfig { task: Some("weighing".into()), data: Some("x".into()), every: 3, ..Default::default() };
    let config = TrainConfig { generate, best: BestBy::Generation, keep_last: 1, ..config() };
    let whole_folder = tempfile::tempdir().expect("a folder");
    let whole = run(&config, Some(whole_folder.path()), false, None);
    assert_eq!(whole.generations.iter().map(|report| report.step).collect::<Vec<_>>(), [3, 6, 9, 12]);
    let highest = whole.generations.iter().map(|report| report.scores[1].accuracy).fold(0.0, f64::max);
    let best = whole.generations.iter().rfind(|report| report.best).expect("one is the best");
    assert_eq!(best.scores[1].accuracy, highest);
    let trained = whole.result.expect("trained");
    assert_eq!(trained.best_generation, Some(highest));
    assert!(trained.best_checkpoint.is_some_and(|path| path.ends_with(format!("step-{:08}", best.step))));
    let text = std::fs::read_to_string(whole_folder.path().join("metrics.jsonl")).expect("metrics");
    assert_eq!(text.lines().filter(|line| line.contains("\"kind\":\"generation\"")).count(), 4, "{text}");

    // Called off in the middle of the second round: the resumed run begins with it, and all is as it would have been.
    let folder = tempfile::tempdir().expect("a folder");
    let stopped = run_with(&config, Some(folder.path()), false, None, Some(2));
    assert_eq!(
        stopped.result.map(|trained| (trained.outcome, trained.steps)).expect("stopped"),
        (Outcome::Interrupted, 6)
    );
    let resumed = run(&config, Some(folder.path()), true, None);
    let scores = |reports: &[GenerationReport]| -> Vec<_> {
        reports.iter().map(|report| (report.step, report.scores.clone(), report.best)).collect()
    };
    assert_eq!(scores(&resumed.generations), scores(&whole.generations)[1..]);
    assert_eq!(resumed.losses, whole.losses[6..]);
}

#[test]
fn a_loss_beyond_its_limit_stops_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = TrainConfig { max_loss: 3.0, ..config() };
    let error = run(&config, Some(folder.path()), false, None).result.expect_err("the untrained LM's loss is 5 or so");
    let message = error.to_string();
    assert!(matches!(error, TrainError::Diverged { step: 1, what: "loss", .. }), "{message}");
    assert!(message.contains("above max_loss 3") && message.contains("learning_rate"), "{message}");
}
