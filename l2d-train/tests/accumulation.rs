//! However a batch is cut into micro-batches, the loss and the gradients of a step are the same: sums over all labelled
//! positions, divided once by their number.

use burn::module::AutodiffModule;
use l2d_core::cpu::WeightFormat;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::lm::{Lm, host_values};
use l2d_core::parameters::{parameters, replace_trained_parameters, trainable};
use l2d_testkit::models::golden_lm;
use l2d_testkit::{TestAutodiff as AB, TestBackend as B};
use l2d_train::data::{Batch, Example};
use l2d_train::objective::{DrawSettings, StepLoss, add_lora};
use l2d_train::optimiser::{NamedGradients, trainable_sizes};
use l2d_train::{EngineSettings, L2dEngine, L2dTask, LmEngine, LmTask, Task};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Moves every trained parameter a little, so that none has a gradient of exactly zero.
fn shaken<M: burn::module::Module<AB>>(model: M, by: f32) -> M {
    let values = parameters::<AB, M>(&model);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    replace_trained_parameters(model, &mut |name, _| {
        let old = &values.iter().find(|tensor| tensor.name == name).expect("its own names").values;
        Ok(old.iter().map(|x| x + by * (rng.random::<f32>() - 0.5)).collect())
    })
    .expect("the same shapes")
}

fn examples(lengths: &[(usize, usize)], seed: u64) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let example = |(conversation, &(prompt, reply)): (usize, &(usize, usize))| Example {
        tokens: (0..prompt + reply).map(|_| rng.random_range(0..300)).collect(),
        prompt,
        class: None,
        conversation,
    };
    lengths.iter().enumerate().map(example).collect()
}

/// The loss and gradients of a step whose batch is cut into parts of the given sizes.
fn step<T: Task<AB>>(
    task: &T,
    model: &T::Model,
    examples: &[Example],
    sizes: &[usize],
) -> (StepLoss, NamedGradients<B>) {
    let (mut loss, mut gradients, mut begin) = (StepLoss::default(), NamedGradients::default(), 0);
    for &size in sizes {
        let part: Vec<&Example> = examples[begin..begin + size].iter().collect();
        let mut rngs: Vec<ChaCha8Rng> = (begin..begin + size).map(|i| ChaCha8Rng::seed_from_u64(i as u64)).collect();
        let (found, sums) = task.gradients(model, &Batch::new(&part, task.no_class(model)), &mut rngs);
        loss.merge(&found);
        gradients.add(sums);
        begin += size;
    }
    assert_eq!(begin, examples.len());
    gradients.scale(1.0 / loss.tokens as f64);
    (loss, gradients)
}

fn assert_independent_of_cuts<T: Task<AB>>(task: &T, model: &T::Model, lengths: &[(usize, usize)], sizes: &[usize]) {
    let examples = examples(lengths, 3);
    let (whole_loss, whole) = step(task, model, &examples, &[examples.len()]);
    let (loss, found) = step(task, model, &examples, sizes);
    // Several draws of a position count each.
    assert_eq!(loss.tokens % lengths.iter().map(|(_, reply)| reply).sum::<usize>(), 0);
    assert_eq!(loss.tokens, whole_loss.tokens);
    assert!((loss.mean() / whole_loss.mean() - 1.0).abs() < 1e-5, "{} and {}", loss.mean(), whole_loss.mean());
    let (mut difference, mut size) = (0f64, 0f64);
    for name in trainable_sizes::<AB, _>(model).keys() {
        let Some(expected) = whole.get(name) else {
            assert!(found.get(name).is_none(), "{name}");
            continue;
        };
        let expected = host_values(expected.clone());
        let found = host_values(found.get(name).expect("the same gradients").clone());
        for (a, b) in found.iter().zip(&expected) {
            difference += f64::from(a - b).powi(2);
            size += f64::from(*b).powi(2);
        }
    }
    assert!(size > 0.0);
    let relative = (difference / size).sqrt();
    assert!(relative < 1e-5, "gradients differ by {relative} of their norm, cut into {sizes:?}");
}

/// Lengths of prompts and replies, and one way to cut them into runs.
fn batches() -> impl Strategy<Value = (Vec<(usize, usize)>, Vec<usize>)> {
    prop::collection::vec((1usize..9, 1usize..8), 2..7).prop_flat_map(|lengths| {
        let cuts = prop::collection::vec(any::<bool>(), lengths.len() - 1);
        (Just(lengths), cuts).prop_map(|(lengths, cuts)| {
            let mut sizes = vec![1];
            for cut in cuts {
                match sizes.last_mut() {
                    Some(last) if !cut => *last += 1,
                    _ => sizes.push(1),
                }
            }
            (lengths, sizes)
        })
    })
}

fn base() -> Lm<B> {
    golden_lm::<B>("base_llama", &Default::default())
}

fn l2d(packed: bool) -> (L2dTask<AB>, DiffusionPath<AB>) {
    let raw = RawDiffusionConfig {
        dim: 8,
        conditioning: 8,
        time_features: 8,
        variant: Variant::Lora { rank: 2, alpha: 2.0 },
        ..Default::default()
    };
    let config = raw.check(std::path::Path::new("test")).expect("valid");
    let path: DiffusionPath<B> = DiffusionPath::init(&base(), &config, &mut ChaCha8Rng::seed_from_u64(0));
    let lm = if packed { base().packed(WeightFormat::F32) } else { base() };
    let draws = DrawSettings { per_position: 2, ..DrawSettings::default() };
    let task = L2dTask::new(L2dEngine::new(lm, EngineSettings { head_chunk: 5, ..EngineSettings::default() }), draws);
    // So much that w(t) - w(0) is no small difference of large numbers, whose rounding would be larger than what is tested.
    (task, shaken(trainable(AutodiffModule::from_inner(path)), 1.0))
}

fn weights(low_rank: bool, by_hand: bool) -> (LmTask, Lm<AB>) {
    let lm = if low_rank && by_hand { base().packed(WeightFormat::F32) } else { base() };
    let lm: Lm<AB> = AutodiffModule::from_inner(lm);
    let lm = match low_rank {
        true => add_lora(lm, 2, 4.0, &mut ChaCha8Rng::seed_from_u64(0)),
        false if lm.config.tie_word_embeddings => trainable(Lm { head: None, ..lm }),
        false => trainable(lm),
    };
    let lm = shaken(lm, 0.1);
    let engine = LmEngine::new(&lm, by_hand, EngineSettings { head_chunk: 5, ..EngineSettings::default() });
    (LmTask::new(engine, 0.0), lm)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn of_the_diffusion_path((lengths, sizes) in batches(), by_hand in any::<bool>()) {
        let (task, path) = l2d(by_hand);
        assert_independent_of_cuts(&task, &path, &lengths, &sizes);
    }

    #[test]
    fn of_low_rank_corrections((lengths, sizes) in batches(), by_hand in any::<bool>()) {
        let (task, lm) = weights(true, by_hand);
        assert_independent_of_cuts(&task, &lm, &lengths, &sizes);
    }

    #[test]
    fn of_all_weights((lengths, sizes) in batches(), by_hand in any::<bool>()) {
        let (task, lm) = weights(false, by_hand);
        assert_independent_of_cuts(&task, &lm, &lengths, &sizes);
    }
}
