//! Several ranks train as one does: the same losses and weights for the same batch, whoever computes which part of it; and what
//! happens to one happens to all.

#[path = "common/trainee.rs"]
mod trainee;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::AutodiffModule;
use l2d_core::lm::Lm;
use l2d_core::parameters::trained_parameters;
use l2d_testkit::models::golden_lm;
use l2d_testkit::{TestAutodiff as AB, TestBackend as B};
use l2d_train::data::{Batch, Example};
use l2d_train::objective::add_lora;
use l2d_train::optimiser::NamedGradients;
use l2d_train::ranks::{Alone, Ranks, Threads};
use l2d_train::{
    EngineSettings, LmEngine, LmTask, NoEvaluator, Observer, Outcome, RunDir, StepReport, Storage, Task, TrainConfig,
    TrainError, Trained, train_together,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use trainee::{examples, fresh, task};

fn config() -> TrainConfig {
    TrainConfig { steps: Some(8), ..trainee::config() }
}

/// Remembers losses, and may press Ctrl-C or fall over after an update.
#[derive(Default)]
struct Seen<'a> {
    losses: Vec<f64>,
    norms: Vec<f64>,
    stop: Option<(u64, &'a AtomicBool)>,
    die_after: Option<u64>,
}

impl Observer for Seen<'_> {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss.mean());
        self.norms.push(report.gradient_norm);
        if let Some((after, flag)) = self.stop
            && after == report.step
        {
            flag.store(true, Ordering::Relaxed);
        }
        assert!(self.die_after != Some(report.step), "this machine has lost its power");
    }
}

/// Whose folder it is to this rank.
fn storage(folder: Option<&Path>, ranks: &dyn Ranks, resume: bool) -> Option<Storage> {
    let folder = folder?;
    let dir = ranks.is_first().then(|| RunDir::create(folder).expect("a folder"));
    ranks.wait().expect("together");
    let dir = dir.unwrap_or_else(|| RunDir::shared(folder).expect("the same folder"));
    Some(Storage { dir, resume, notes: BTreeMap::new() })
}

type Found<M> = Result<Trained<M>, TrainError>;

/// One rank's run.
fn rank<T: Task<AB>>(
    task: &T,
    model: T::Model,
    config: &TrainConfig,
    folder: Option<(&Path, bool)>,
    seen: &mut Seen<'_>,
    cancel: &AtomicBool,
    ranks: &dyn Ranks,
) -> Found<T::Model> {
    let (examples, validation) = (examples(23, 1), examples(7, 2));
    let storage = storage(folder.map(|folder| folder.0), ranks, folder.is_some_and(|folder| folder.1));
    let device = Default::default();
    let found = train_together(
        task,
        model,
        &examples,
        &validation,
        config,
        storage.as_ref(),
        &device,
        cancel,
        seen,
        &mut NoEvaluator,
        ranks,
    );
    if found.is_err() {
        ranks.abandon();
    }
    found
}

/// What `work` gives on each rank; `None` where it panicked.
fn on_all<T: Send>(size: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<Option<T>> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = Threads::new(size).into_iter().map(|ranks| scope.spawn(move || work(&ranks))).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    })
}

fn weights<M: AutodiffModule<AB>>(model: &M) -> Vec<f32> {
    trained_parameters(model).into_iter().flat_map(|tensor| tensor.values).collect()
}

fn close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{i}: {a} against {b}");
    }
}

/// Losses, norms, weights and the validation loss.
type Trail = (Vec<f64>, Vec<f64>, Vec<f32>, Option<f64>);

fn trail<M: AutodiffModule<AB>>(found: Found<M>, seen: Seen<'_>) -> Trail {
    let trained = found.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(trained.outcome, Outcome::Finished);
    (seen.losses, seen.norms, weights(&trained.model), trained.best_validation)
}

fn same_with_any_number_of_ranks(run: impl Fn(&dyn Ranks) -> Trail + Sync) {
    let alone = run(&Alone);
    for size in [2, 3, 5] {
        let found: Vec<Trail> =
            on_all(size, |ranks| run(ranks)).into_iter().map(|found| found.expect("no panic")).collect();
        assert!(found.iter().all(|trail| trail == &found[0]), "ranks differ among {size}");
        let (losses, norms, weights, validation) = &found[0];
        close(losses, &alone.0, 1e-5);
        close(norms, &alone.1, 1e-4);
        close(&[validation.expect("validated")], &[alone.3.expect("validated")], 1e-5);
        let largest = weights.iter().zip(&alone.2).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-4, "{size} ranks: weights differ by {largest}");
    }
}

#[test]
fn the_diffusion_path_is_trained_alike() {
    let config = config();
    same_with_any_number_of_ranks(|ranks| {
        let mut seen = Seen::default();
        let found = rank(&task(), fresh(&config), &config, None, &mut seen, &AtomicBool::new(false), ranks);
        trail(found, seen)
    });
}

#[test]
fn corrections_of_the_lm_are_trained_alike() {
    let config = config();
    same_with_any_number_of_ranks(|ranks| {
        let lm: Lm<AB> = AutodiffModule::from_inner(golden_lm::<B>("base_qwen2", &Default::default()));
        let lm = add_lora(lm, 2, 2.0, &mut ChaCha8Rng::seed_from_u64(1));
        let task = LmTask::new(LmEngine::new(&lm, false, EngineSettings::default()), 0.1);
        let mut seen = Seen::default();
        let found = rank(&task, lm, &config, None, &mut seen, &AtomicBool::new(false), ranks);
        trail(found, seen)
    });
}

/// Summed over two ranks with half of the batch each, the gradients are those of the whole batch.
#[test]
fn summed_gradients_are_those_of_the_whole_batch() {
    let (config, examples) = (config(), examples(6, 3));
    let gradients = |places: Vec<usize>| -> NamedGradients<B> {
        let picked: Vec<&Example> = places.iter().map(|&place| &examples[place]).collect();
        let mut rngs: Vec<ChaCha8Rng> = places.iter().map(|&place| ChaCha8Rng::seed_from_u64(place as u64)).collect();
        task().gradients(&fresh(&config), &Batch::new(&picked, None), &mut rngs).1
    };
    let whole = gradients((0..6).collect());
    let summed = on_all(2, |ranks| {
        let mut own = gradients((ranks.rank()..6).step_by(2).collect());
        own.sum_over(ranks).expect("both are there");
        own
    });
    let names: Vec<String> = trained_parameters(&fresh(&config)).into_iter().map(|tensor| tensor.name).collect();
    let mut compared = 0;
    for name in names {
        let Some(expected) = whole.get(&name) else { continue };
        let expected: Vec<f32> = expected.clone().into_data().to_vec().expect("f32");
        for own in &summed {
            let found = own.as_ref().expect("no panic").get(&name).expect("the same names").clone();
            let found: Vec<f32> = found.into_data().to_vec().expect("f32");
            let largest = expected.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5 * largest, "{name}: {a} against {b}");
            }
        }
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}

#[test]
fn all_stop_when_one_is_told_to_and_any_number_go_on() {
    let config = config();
    let folder = tempfile::tempdir().expect("a folder");
    let whole = on_all(2, |ranks| {
        let mut seen = Seen::default();
        let found = rank(&task(), fresh(&config), &config, None, &mut seen, &AtomicBool::new(false), ranks);
        trail(found, seen)
    });
    let whole = whole[0].clone().expect("no panic");
    let stopped = on_all(2, |ranks| {
        let cancel = AtomicBool::new(false);
        // The one that writes nothing.
        let stop = (ranks.rank() == 1).then_some((5, &cancel));
        let mut seen = Seen { stop, ..Seen::default() };
        let found = rank(&task(), fresh(&config), &config, Some((folder.path(), false)), &mut seen, &cancel, ranks);
        found.map(|trained| (trained.outcome, trained.steps)).map_err(|error| error.to_string())
    });
    for found in stopped {
        assert_eq!(found.expect("no panic").expect("no error"), (Outcome::Interrupted, 5));
    }
    let copy = tempfile::tempdir().expect("a folder");
    let copied = std::process::Command::new("cp").arg("-r").arg(folder.path().join(".")).arg(copy.path()).status();
    assert!(copied.expect("cp").success());
    let resume = |folder: &Path, ranks: &dyn Ranks| {
        let mut seen = Seen::default();
        let found =
            rank(&task(), fresh(&config), &config, Some((folder, true)), &mut seen, &AtomicBool::new(false), ranks);
        trail(found, seen)
    };
    for found in on_all(2, |ranks| resume(folder.path(), ranks)) {
        let found = found.expect("no panic");
        assert_eq!((&found.0[..], &found.2), (&whole.0[5..], &whole.2), "two ranks go on bit for bit");
    }
    let alone = resume(copy.path(), &Alone);
    close(&alone.0, &whole.0[5..], 1e-5);
}

#[test]
fn the_death_of_one_ends_all_and_leaves_a_checkpoint() {
    let config = config();
    let folder = tempfile::tempdir().expect("a folder");
    let found = on_all(3, |ranks| {
        let mut seen = Seen { die_after: (ranks.rank() == 2).then_some(7), ..Seen::default() };
        let found = rank(
            &task(),
            fresh(&config),
            &config,
            Some((folder.path(), false)),
            &mut seen,
            &AtomicBool::new(false),
            ranks,
        );
        found.map(drop).expect_err("one is dead").to_string()
    });
    assert!(found[2].is_none(), "it died");
    for said in &found[..2] {
        let said = said.as_ref().expect("no panic");
        assert!(said.contains("no longer together") && said.contains("rank"), "{said}");
    }
    let dir = RunDir::create(folder.path()).expect("nobody holds it");
    assert_eq!(dir.checkpoints().expect("read"), [4, 6]);
    assert_eq!(dir.damage(6).expect("read"), None);
    drop(dir);
    let mut seen = Seen::default();
    let found =
        rank(&task(), fresh(&config), &config, Some((folder.path(), true)), &mut seen, &AtomicBool::new(false), &Alone);
    assert_eq!(trail(found, seen).0.len(), 2, "updates 7 and 8");
}

#[test]
fn unequal_ranks_are_refused_by_name() {
    let refusal = |change: &(dyn Fn(&mut TrainConfig) + Sync)| {
        let found = on_all(2, |ranks| {
            let mut config = config();
            if ranks.rank() == 1 {
                change(&mut config);
            }
            let task = task();
            let model = fresh(&config);
            rank(&task, model, &config, None, &mut Seen::default(), &AtomicBool::new(false), ranks)
                .map(drop)
                .expect_err("unequal")
                .to_string()
        });
        let said: Vec<String> = found.into_iter().map(|said| said.expect("no panic")).collect();
        assert_eq!(said[0], said[1]);
        said[0].clone()
    };
    let said = refusal(&|config| config.learning_rate = 1e-3);
    assert!(said.contains("rank 1 differs from rank 0 in its settings") && said.contains("learning_rate"), "{said}");
    let said = refusal(&|config| config.seed = 7);
    assert!(said.contains("settings") && said.contains("seed"), "{said}");
}

#[test]
fn a_batch_is_not_shared_by_more_ranks_than_it_has_sequences() {
    let found = on_all(6, |ranks| {
        rank(&task(), fresh(&config()), &config(), None, &mut Seen::default(), &AtomicBool::new(false), ranks)
            .map(drop)
            .expect_err("too many")
            .to_string()
    });
    let said = found[0].as_ref().expect("no panic");
    assert!(said.contains("batch_size") && said.contains("6 ranks"), "{said}");
}
