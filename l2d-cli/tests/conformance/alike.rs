//! What has no golden number: the same on this backend as on flex.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{FloatDType, Int, Tensor};
use l2d_core::L2d;
use l2d_core::checkpoint::Checkpoint;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::lm::{Lm, host_values};
use l2d_core::parameters::trainable;
use l2d_infer::decode::{Completion, DecodeMode, Hooks, Lane, Noise, Place, SeededNoise};
use l2d_infer::sampler::{History, Sampler};
use l2d_infer::{Decoder, DiffusionParams, GenerationParams, Request};
use l2d_testkit::models::{BASE_FOLDERS, golden_l2d, golden_lm, golden_lm_within};
use l2d_testkit::{Golden, TestAutodiff, TestBackend, slack};
use l2d_train::data::Example;
use l2d_train::objective::DrawSettings;
use l2d_train::ranks::{Alone, Ranks, Threads};
use l2d_train::{
    EngineSettings, L2dEngine, L2dTask, NoEvaluator, Observer, RunDir, StepReport, Storage, TrainConfig, train_together,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{AB, B};

/// Of logits that were computed in f32 in another order.
const ROUNDING: f32 = 3e-4;

fn near(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let tolerance = tolerance * slack() as f32;
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}: value {i} is {a}, {b} on flex (tolerance {tolerance})");
    }
}

/// Draws as usual, and keeps the logits that each token was drawn from.
struct Listening {
    inner: SeededNoise,
    seen: BTreeMap<(u64, u32), Vec<f32>>,
}

impl Noise for Listening {
    fn initial(&mut self, at: Place, count: usize) -> Vec<f64> {
        self.inner.initial(at, count)
    }

    fn velocity_token(&mut self, at: Place, call: usize, lane: Lane, logits: &[f32], temperature: f64) -> l2d_infer::Result<usize> {
        self.inner.velocity_token(at, call, lane, logits, temperature)
    }

    fn emitted_token(
        &mut self,
        at: Place,
        sampler: &Sampler,
        logits: &[f32],
        history: History<'_>,
    ) -> l2d_infer::Result<usize> {
        self.seen.insert((at.sequence, at.token), logits.to_vec());
        self.inner.emitted_token(at, sampler, logits, history)
    }
}

/// A device that holds a third of the golden vocabulary in one piece.
const SMALL: usize = 40_000;

/// Completions of ragged prompts, and the logits behind each token.
fn decoded<T: Backend>(
    file: &str,
    mode: DecodeMode,
    largest: Option<usize>,
) -> (Vec<Completion>, BTreeMap<(u64, u32), Vec<f32>>) {
    let golden = Golden::load(file);
    let (_, path) = golden_l2d::<T>(&golden, &Default::default());
    let folder = golden.info["base_model_folder"].as_str().expect("a folder");
    let lm = golden_lm_within(folder, &Default::default(), largest);
    assert_eq!(lm.shards.as_ref().map(|shards| shards.head.len()), largest.map(|_| 3));
    let model = L2d { lm, path };
    let requests: Vec<Request> = [5, 1, 11]
        .into_iter()
        .enumerate()
        .map(|(row, length)| {
            let tokens = (0..length).map(|i| 3 + (7 * i + row as u32) % 40).collect();
            Request { tokens, class: None, sequence: row as u64 }
        })
        .collect();
    let params = DiffusionParams { evaluations: 7, ..Default::default() };
    let generation = GenerationParams { max_tokens: 10, seed: 5, ..Default::default() }.check().expect("in range");
    let decoder = Decoder::new(&model, &params.check().expect("in range")).expect("a decoder").with_mode(mode);
    let mut noise = Listening { inner: SeededNoise { seed: 5 }, seen: BTreeMap::new() };
    let hooks = Hooks { noise: Some(&mut noise), ..Hooks::default() };
    let completions = decoder.generate(&requests, &generation, hooks).expect("decoded");
    (completions, noise.seen)
}

#[test]
fn a_seed_gives_the_tokens_that_it_gives_on_flex() {
    for file in ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full"] {
        for (mode, largest) in
            [(DecodeMode::Sequential, None), (DecodeMode::Parallel, None), (DecodeMode::Parallel, Some(SMALL))]
        {
            let (found, here) = decoded::<B>(file, mode, largest);
            let (expected, flex) = decoded::<TestBackend>(file, mode, None);
            for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let same = found.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
                // Up to the first token that differs, and with it: that one must lie within rounding.
                for token in 0..(same + 1).min(expected.tokens.len()) {
                    let at = (row as u64, token as u32);
                    near(&format!("{file} {mode:?} row {row} token {token}"), &here[&at], &flex[&at], ROUNDING);
                }
                if same < expected.tokens.len() {
                    eprintln!("{file} {mode:?}: row {row} parts from flex at token {same}, by rounding alone");
                }
            }
        }
    }
}

/// Logits of the last position of each prompt, all in one left-padded batch.
fn last_logits<T: Backend>(lm: &Lm<T>, prompts: &[Vec<u32>]) -> Vec<f32> {
    let longest = prompts.iter().map(Vec::len).max().expect("prompts");
    let padding: Vec<usize> = prompts.iter().map(|prompt| longest - prompt.len()).collect();
    let padded: Vec<Vec<u32>> =
        prompts.iter().zip(&padding).map(|(prompt, &pad)| [vec![0; pad], prompt.clone()].concat()).collect();
    let mut cache = lm.new_cache(padding, longest);
    let hidden = lm.forward(&padded, &mut cache);
    let last: Vec<i32> = (1..=prompts.len()).map(|row| (row * longest - 1) as i32).collect();
    let last = Tensor::<T, 1, Int>::from_data(last.as_slice(), &lm.device());
    host_values(lm.logits(hidden.select(0, last)))
}

#[test]
fn long_prompts_and_ragged_rows_are_read_alike() {
    for folder in BASE_FOLDERS {
        let (here, flex) = (golden_lm::<B>(folder, &Default::default()), golden_lm(folder, &Default::default()));
        let long = here.config.max_positions.min(700);
        for lengths in [vec![long], vec![1, 17, 200.min(long), 3], vec![2; 9]] {
            let prompts: Vec<Vec<u32>> =
                lengths.iter().map(|&length| (0..length as u32).map(|i| 3 + i * 31 % 300).collect()).collect();
            let what = format!("{folder} {lengths:?}");
            near(&what, &last_logits(&here, &prompts), &last_logits::<TestBackend>(&flex, &prompts), ROUNDING);
        }
    }
}

#[test]
fn weights_of_sixteen_bits_give_much_the_same_logits() {
    let prompts = [(0..12).map(|i| 3 + i * 31 % 300).collect::<Vec<u32>>(), vec![5, 9]];
    for folder in BASE_FOLDERS {
        let exact = last_logits::<TestBackend>(&golden_lm(folder, &Default::default()), &prompts);
        let largest = exact.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (dtype, tolerance) in [(FloatDType::F16, 0.01), (FloatDType::BF16, 0.05)] {
            if !B::supports_dtype(&Default::default(), dtype.into()) {
                eprintln!("skipped: this device does not compute with {dtype:?}");
                continue;
            }
            for largest_tensor in [None, Some(SMALL)] {
                let lm: Lm<B> = golden_lm_within(folder, &Default::default(), largest_tensor).computed_in(dtype);
                let found = last_logits(&lm, &prompts);
                near(&format!("{folder} {dtype:?}"), &found, &exact, tolerance * largest);
                assert!(found != exact, "{folder} {dtype:?}: nothing was rounded");
            }
        }
    }
}

/// The real model, where `L2D_SMOLLM2` names its GGUF file.
#[test]
fn quantised_weights_are_read_alike() {
    let Some(file) = std::env::var_os("L2D_SMOLLM2") else {
        eprintln!("skipped: L2D_SMOLLM2 names no quantised model");
        return;
    };
    fn logits<T: Backend>(file: &Path) -> Vec<f32> {
        let checkpoint = Checkpoint::open(file).expect("a model");
        let lm = Lm::<T>::load(&checkpoint.config, checkpoint.tensors.as_ref(), &Default::default()).expect("read");
        last_logits(&lm, &[(0..20).map(|i| 100 + 37 * i).collect()])
    }
    let file = Path::new(&file);
    near("SmolLM2", &logits::<B>(file), &logits::<TestBackend>(file), 1e-2);
}

fn examples() -> Vec<Example> {
    let example = |conversation: usize| {
        let length = 4 + 3 * conversation as u32 % 10;
        let tokens = (0..length).map(|i| (conversation as u32 * 17 + i * 29) % 300).collect();
        Example { tokens, prompt: 1 + conversation % 3, class: None, conversation }
    };
    (0..20).map(example).collect()
}

fn config() -> TrainConfig {
    TrainConfig {
        steps: Some(6),
        batch_size: 4,
        learning_rate: 3e-3,
        warmup_steps: 2,
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

/// Remembers losses, and asks for the end after an update.
struct Seen<'a> {
    losses: Vec<f32>,
    stop: Option<(u64, &'a AtomicBool)>,
}

impl Observer for Seen<'_> {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss.mean() as f32);
        if let Some((after, flag)) = self.stop {
            flag.store(report.step == after, Ordering::Relaxed);
        }
    }
}

/// The losses of some updates; in `folder`, where there is one, up to update `stop`.
fn losses<T: AutodiffBackend>(folder: Option<(&Path, bool)>, stop: Option<u64>, kept: Option<FloatDType>) -> Vec<f32> {
    losses_beside::<T>(golden_lm("base_llama", &Default::default()), folder, stop, kept)
}

fn losses_beside<T: AutodiffBackend>(
    lm: Lm<T::InnerBackend>,
    folder: Option<(&Path, bool)>,
    stop: Option<u64>,
    kept: Option<FloatDType>,
) -> Vec<f32> {
    losses_of_rank::<T>(lm, folder, stop, kept, &config(), &Alone)
}

/// The losses of one rank of several.
fn losses_of_rank<T: AutodiffBackend>(
    lm: Lm<T::InnerBackend>,
    folder: Option<(&Path, bool)>,
    stop: Option<u64>,
    kept: Option<FloatDType>,
    config: &TrainConfig,
    ranks: &dyn Ranks,
) -> Vec<f32> {
    let checked = config.diffusion.clone().check(Path::new("test")).expect("valid");
    let path = DiffusionPath::init(&lm, &checked, &mut ChaCha8Rng::seed_from_u64(config.seed));
    let lm = kept.map_or_else(|| lm.clone(), |dtype| lm.clone().kept_as(dtype));
    let path: DiffusionPath<T> = trainable(AutodiffModule::from_inner(path));
    let task = L2dTask::<T>::new(L2dEngine::new(lm, EngineSettings::default()), DrawSettings::default());
    let own = folder.filter(|_| ranks.is_first()).map(|(folder, _)| RunDir::create(folder).expect("a folder"));
    ranks.wait().expect("together");
    let storage = folder.map(|(folder, resume)| Storage {
        dir: own.unwrap_or_else(|| RunDir::shared(folder).expect("the same folder")),
        resume,
        notes: BTreeMap::new(),
    });
    let cancel = AtomicBool::new(false);
    let mut seen = Seen { losses: Vec::new(), stop: stop.map(|step| (step, &cancel)) };
    let device = Default::default();
    train_together::<T, _>(
        &task,
        path,
        &examples(),
        &[],
        config,
        storage.as_ref(),
        &device,
        &cancel,
        &mut seen,
        &mut NoEvaluator,
        ranks,
    )
    .expect("trained");
    seen.losses
}

#[test]
fn training_goes_the_same_way_and_goes_on_where_it_stopped() {
    let whole = losses::<AB>(None, None, None);
    near("losses", &whole, &losses::<TestAutodiff>(None, None, None), 1e-4);
    let parts = golden_lm_within("base_llama", &Default::default(), Some(SMALL));
    near("with the vocabulary in parts", &losses_beside::<AB>(parts, None, None, None), &whole, 1e-5);
    let folder = tempfile::tempdir().expect("a folder");
    let begun = losses::<AB>(Some((folder.path(), false)), Some(3), None);
    let rest = losses::<AB>(Some((folder.path(), true)), None, None);
    near("resumed", &[begun, rest].concat(), &whole, 1e-5);
}

/// Two replicas on this device, with gradients that are clipped: a save compares their weights to the last bit.
#[test]
fn replicas_stay_one_model_and_train_as_one_does() {
    let config = TrainConfig { clip_norm: 0.01, ..config() };
    let lm = || golden_lm("base_llama", &Default::default());
    let one = losses_of_rank::<AB>(lm(), None, None, None, &config, &Alone);
    let folder = tempfile::tempdir().expect("a folder");
    let (config, folder) = (&config, folder.path());
    let replicas: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let start = |ranks: Threads| {
            scope.spawn(move || losses_of_rank::<AB>(lm(), Some((folder, false)), None, None, config, &ranks))
        };
        let threads: Vec<_> = Threads::new(2).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("trained")).collect()
    });
    assert_eq!(replicas[0], replicas[1]);
    near("as one", &replicas[0], &one, 1e-4);
    assert!(folder.join("checkpoints/step-00000006").exists());
}

#[test]
fn a_frozen_base_of_sixteen_bits_trains_much_alike() {
    let exact = losses::<TestAutodiff>(None, None, None);
    let device = Default::default();
    let formats = [(FloatDType::F16, 0.01), (FloatDType::BF16, 0.05)];
    for (dtype, tolerance) in formats {
        if !B::supports_dtype(&device, dtype.into()) {
            eprintln!("skipped: this device does not compute with {dtype:?}");
            continue;
        }
        near(&format!("{dtype:?}"), &losses::<AB>(None, None, Some(dtype)), &exact, tolerance);
    }
}
