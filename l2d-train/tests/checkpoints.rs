//! Checkpoints that were harmed, averages, groups of parameters, and the early end.

mod common;

use std::path::{Path, PathBuf};

use common::{B, config, rows, run, run_beside};
use l2d_core::cpu::WeightFormat;
use l2d_core::parameters::parameters;
use l2d_testkit::models::golden_lm;
use l2d_train::optimiser::ParameterGroup;
use l2d_train::{Outcome, RunDir, TrainConfig, TrainError};

fn checkpoint(folder: &Path, step: u64) -> PathBuf {
    RunDir::create(folder).expect("open").checkpoint(step)
}

fn keeping_all() -> TrainConfig {
    TrainConfig { keep_last: 100, ema_decay: Some(0.5), ..config() }
}

#[test]
fn a_damaged_newest_checkpoint_gives_way_to_the_one_before() {
    let whole_folder = tempfile::tempdir().expect("a folder");
    let (whole, expected) = run(&keeping_all(), Some(whole_folder.path()), false, None);
    let whole = whole.expect("trained");
    let damages: [(&str, fn(&Path)); 5] = [
        ("truncated", |folder| {
            let file = folder.join("optimizer.safetensors");
            let bytes = std::fs::read(&file).expect("read");
            std::fs::write(file, &bytes[..bytes.len() / 2]).expect("written");
        }),
        ("a bit flipped", |folder| {
            let file = folder.join("adapter.safetensors");
            let mut bytes = std::fs::read(&file).expect("read");
            *bytes.last_mut().expect("bytes") ^= 1;
            std::fs::write(file, bytes).expect("written");
        }),
        ("a file missing", |folder| std::fs::remove_file(folder.join("average/adapter.safetensors")).expect("removed")),
        ("no checksums", |folder| std::fs::remove_file(folder.join("checksums.json")).expect("removed")),
        ("empty checksums", |folder| std::fs::write(folder.join("checksums.json"), "{}").expect("written")),
    ];
    for (what, damage) in damages {
        let folder = tempfile::tempdir().expect("a folder");
        run(&keeping_all(), Some(folder.path()), false, Some(6)).0.expect("stopped");
        let newest = checkpoint(folder.path(), 6);
        damage(&newest);
        let (resumed, losses) = run(&keeping_all(), Some(folder.path()), true, None);
        // The validation after update 4 saved the best so far.
        assert_eq!(losses, expected[4..], "{what}: from update 4 on");
        assert_eq!(parameters(&resumed.expect("finished").model), parameters(&whole.model), "{what}");
        assert_eq!(rows(folder.path()), rows(whole_folder.path()), "{what}");
        assert!(newest.with_extension("damaged").exists() && newest.exists(), "{what}: put away, and made again");
    }
}

#[test]
fn without_a_whole_checkpoint_a_run_is_not_resumed() {
    let folder = tempfile::tempdir().expect("a folder");
    run(&config(), Some(folder.path()), false, Some(2)).0.expect("stopped");
    std::fs::write(checkpoint(folder.path(), 2).join("state.json"), "{}").expect("written");
    let error = run(&config(), Some(folder.path()), true, None).0.expect_err("refused");
    let message = error.to_string();
    assert!(matches!(error, TrainError::Resume { .. }), "{message}");
    assert!(
        message.contains("no checkpoint is whole") && message.contains("state.json is not what was written"),
        "{message}"
    );
}

#[test]
fn a_run_by_hand_resumes_bit_for_bit() {
    let lm = || golden_lm::<B>("base_llama", &Default::default()).packed(WeightFormat::F32);
    let config = TrainConfig { draws_per_position: 2, micro_batch_size: Some(2), ..keeping_all() };
    let whole_folder = tempfile::tempdir().expect("a folder");
    let (whole, expected) = run_beside(lm(), &config, Some(whole_folder.path()), false, None);
    let whole = whole.expect("trained");
    for stop in [1, 4, 11] {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, mut losses) = run_beside(lm(), &config, Some(folder.path()), false, Some(stop));
        let (resumed, rest) = run_beside(lm(), &config, Some(folder.path()), true, None);
        losses.extend(rest);
        assert_eq!(losses, expected, "stopped after {stop}");
        assert_eq!(parameters(&resumed.expect("finished").model), parameters(&whole.model));
        assert_eq!(rows(folder.path()), rows(whole_folder.path()));
    }
}

#[test]
fn an_average_is_the_weights_of_all_updates() {
    // Weights after each of three updates, from runs that end there under the same schedule.
    let config = TrainConfig { validate_every: 0, checkpoint_every: 1, keep_last: 100, ..config() };
    let folder = tempfile::tempdir().expect("a folder");
    let averaging = TrainConfig { ema_decay: Some(0.75), ..config };
    let trained = run(&averaging, Some(folder.path()), false, Some(3)).0.expect("stopped");
    let read = |step: u64, file: &str| {
        let (tensors, _) =
            l2d_core::checkpoint::read_tensors(&checkpoint(folder.path(), step).join(file)).expect("read");
        tensors["translation.outer.weight"].values.clone()
    };
    let [one, two, three] = [1, 2, 3].map(|step| read(step, "adapter.safetensors"));
    let first_average = read(1, "average/adapter.safetensors");
    let found = read(3, "average/adapter.safetensors");
    for i in 0..found.len() {
        let expected = 0.75 * (0.75 * first_average[i] + 0.25 * two[i]) + 0.25 * three[i];
        assert!((found[i] - expected).abs() < 1e-7, "{} against {expected}", found[i]);
    }
    assert_ne!(one, three);
    // What comes out, and what is validated, is the average.
    let left = parameters(&trained.model);
    let left = left.iter().find(|tensor| tensor.name == "translation.outer.weight").expect("there");
    assert_eq!(left.values, found);
    assert!(trained.best_checkpoint.is_none());
}

#[test]
fn groups_freeze_and_slow_down_what_they_name() {
    let start = {
        let config = TrainConfig { learning_rate: 1e-12, ..config() };
        let config =
            TrainConfig { adamw: l2d_train::optimiser::AdamWConfig { weight_decay: 0.0, ..config.adamw }, ..config };
        parameters(&run(&config, None, false, Some(1)).0.expect("trained").model)
    };
    let moved = |config: &TrainConfig| -> Vec<(String, f32)> {
        let trained = run(config, None, false, Some(3)).0.expect("trained");
        let pairs = parameters(&trained.model).into_iter().zip(&start);
        pairs
            .map(|(now, before)| {
                let most = now.values.iter().zip(&before.values).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                (now.name, most)
            })
            .collect()
    };
    let all = moved(&config());
    let only =
        moved(&TrainConfig { trainable: vec!["*.modulation.*".into(), "final_{weight,bias}.*".into()], ..config() });
    for ((name, usual), (_, moved)) in all.iter().zip(&only) {
        let chosen = name.contains("modulation") || name.starts_with("final_weight");
        assert!(*usual > 1e-6, "{name} moves");
        assert_eq!(*moved > 1e-6, chosen, "{name} moved by {moved}");
    }
    let group =
        |scale| ParameterGroup { pattern: "translation.*".into(), learning_rate_scale: scale, weight_decay: Some(0.0) };
    let slow = moved(&TrainConfig { groups: vec![group(0.01)], ..config() });
    let frozen = moved(&TrainConfig { groups: vec![group(0.0)], ..config() });
    for (((name, usual), (_, slow)), (_, frozen)) in all.iter().zip(&slow).zip(&frozen) {
        if name.starts_with("translation") {
            assert!(*slow < 0.1 * usual && *slow > 0.0 && *frozen < 1e-9, "{name}: {usual} {slow} {frozen}");
        }
    }
    for (key, config) in [
        ("translations.*", TrainConfig { trainable: vec!["translations.*".into()], ..config() }),
        (
            "nothing is left",
            TrainConfig { groups: vec![ParameterGroup { pattern: "*".into(), ..group(0.0) }], ..config() },
        ),
        ("unclosed", TrainConfig { trainable: vec!["{a".into()], ..config() }),
    ] {
        let message = run(&config, None, false, None).0.expect_err("refused").to_string();
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn a_loss_that_does_not_fall_ends_the_run_and_a_resumed_run_counts_on() {
    // With so small a rate no validation is much lower than the first.
    let stopping = TrainConfig {
        learning_rate: 1e-9,
        validate_every: 2,
        early_stop_patience: Some(3),
        early_stop_min_delta: 1e-3,
        ..config()
    };
    let trained = run(&stopping, None, false, None).0.expect("trained");
    assert_eq!((trained.outcome, trained.steps), (Outcome::StoppedEarly, 8));
    let folder = tempfile::tempdir().expect("a folder");
    run(&stopping, Some(folder.path()), false, Some(5)).0.expect("stopped");
    let resumed = run(&stopping, Some(folder.path()), true, None).0.expect("resumed");
    assert_eq!((resumed.outcome, resumed.steps), (Outcome::StoppedEarly, 8));
}
