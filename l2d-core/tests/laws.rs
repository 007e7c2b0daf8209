//! Laws of the joined model that need no golden numbers.

use burn::tensor::Tensor;
use l2d_core::L2d;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant, merge};
use l2d_core::init;
use l2d_core::lm::{Lm, host_values};
use l2d_core::parameters::replace_parameters;
use l2d_testkit::TestBackend;
use l2d_testkit::models::{BASE_FOLDERS, golden_lm};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

type B = TestBackend;

fn fresh_path(lm: &Lm<B>, variant: Variant, classes: &[&str], seed: u64) -> DiffusionPath<B> {
    let config = RawDiffusionConfig {
        dim: 12,
        translation_hidden: Some(20),
        conditioning: 24,
        time_features: 14,
        variant,
        classes: classes.iter().map(|s| s.to_string()).collect(),
        ..Default::default()
    };
    let config = config.check("test".as_ref()).expect("valid");
    DiffusionPath::init(lm, &config, &mut ChaCha8Rng::seed_from_u64(seed))
}

/// Every parameter random, gates and final weight included.
fn random_path(lm: &Lm<B>, variant: Variant, classes: &[&str], seed: u64) -> DiffusionPath<B> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xabcd);
    replace_parameters(fresh_path(lm, variant, classes, seed), &mut |_, shape| {
        Ok((0..shape.iter().product()).map(|_| rng.random_range(-0.3..0.3f32)).collect())
    })
    .expect("infallible")
}

fn tokens(lm: &Lm<B>, rows: usize, length: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..rows).map(|_| (0..length).map(|_| rng.random_range(0..lm.config.vocab_size as u32)).collect()).collect()
}

/// Base logits and joined logits at every position, all at time `t`.
fn both_logits(model: &L2d<B>, tokens: &[Vec<u32>], t: f32, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let (batch, length) = (tokens.len(), tokens[0].len());
    let mut cache = model.lm.new_cache(vec![0; batch], length);
    let hidden = model.lm.forward(tokens, &mut cache);
    let plan = model.lm.plan_at(&cache, &vec![(0..length).collect(); batch]);
    let modulation = model.path.modulation(&vec![t; batch * length], None);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let x = init::normal([batch * length, model.path.config.dim], 64.0, &mut rng, &Default::default());
    let base = host_values(model.lm.logits(hidden.clone()));
    (base, host_values(model.logits(&cache, &plan, &modulation, hidden, x)))
}

const VARIANTS: [Variant; 3] = [Variant::Lora { rank: 3, alpha: 6.0 }, Variant::Full, Variant::Scratch];

#[test]
fn a_fresh_path_leaves_the_logits_bitwise_unchanged() {
    for folder in BASE_FOLDERS {
        for variant in VARIANTS {
            let lm = golden_lm(folder, &Default::default());
            let model = L2d { path: fresh_path(&lm, variant, &["a", "b"], 1), lm };
            for t in [0.0, 0.3, 1.0] {
                let (base, joined) = both_logits(&model, &tokens(&model.lm, 3, 7, 5), t, 9);
                assert_eq!(base, joined, "{folder} {variant:?} t={t}");
            }
        }
    }
}

#[test]
fn at_time_zero_any_path_leaves_the_logits_bitwise_unchanged() {
    for folder in BASE_FOLDERS {
        for variant in VARIANTS {
            let lm = golden_lm(folder, &Default::default());
            let model = L2d { path: random_path(&lm, variant, &["a"], 2), lm };
            let tokens = tokens(&model.lm, 2, 9, 6);
            let (base, joined) = both_logits(&model, &tokens, 0.0, 9);
            assert_eq!(base, joined, "{folder} {variant:?}");
            let (base, joined) = both_logits(&model, &tokens, 0.5, 9);
            assert_ne!(base, joined, "the path does something at t = 0.5");
        }
    }
}

#[test]
fn the_cached_path_equals_the_uncached_one() {
    for folder in BASE_FOLDERS {
        let lm: Lm<B> = golden_lm(folder, &Default::default());
        let model = L2d { path: random_path(&lm, VARIANTS[0], &[], 3), lm };
        let tokens = tokens(&model.lm, 2, 11, 7);
        let (_, whole) = both_logits(&model, &tokens, 0.4, 12);
        let vocab = model.lm.config.vocab_size;

        let mut rng = ChaCha8Rng::seed_from_u64(12);
        let x = init::normal::<B, 2>([22, model.path.config.dim], 64.0, &mut rng, &Default::default());
        let mut cache = model.lm.new_cache(vec![0; 2], 3);
        for position in 0..11 {
            let next: Vec<Vec<u32>> = tokens.iter().map(|row| vec![row[position]]).collect();
            let hidden = model.lm.forward(&next, &mut cache);
            let plan = model.lm.plan_at(&cache, &[vec![position], vec![position]]);
            let x = Tensor::cat(vec![x.clone().narrow(0, position, 1), x.clone().narrow(0, 11 + position, 1)], 0);
            let modulation = model.path.modulation(&[0.4], None);
            let logits = host_values(model.logits(&cache, &plan, &modulation, hidden, x));
            for (row, found) in logits.chunks(vocab).enumerate() {
                let expected = &whole[(row * 11 + position) * vocab..][..vocab];
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() < 5e-5, "{folder} row {row} position {position}: {a} against {b}");
                }
            }
        }
    }
}

#[test]
fn merging_needs_the_path_only_where_its_weight_is_not_zero() {
    let lm: Lm<B> = golden_lm("base_llama", &Default::default());
    let path = random_path(&lm, VARIANTS[0], &["a"], 4);
    let modulation = path.modulation(&[0.0, 0.7], Some(&[0, 1]));
    let weight = host_values(modulation.final_weight.clone());
    let hidden = lm.config.hidden_size;
    assert!(weight[..hidden].iter().all(|&w| w == 0.0) && weight[hidden..].iter().any(|&w| w != 0.0));
    let z = Tensor::<B, 2>::ones([2, hidden], &Default::default());
    let merged = host_values(merge(z.clone() * 3.0, z, &modulation));
    assert!(merged[..hidden].iter().all(|&x| x == 3.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn changing_a_later_token_never_changes_an_earlier_logit(seed in 0u64..1000, change in 1usize..8, folder in 0usize..2) {
        let lm: Lm<B> = golden_lm(BASE_FOLDERS[folder], &Default::default());
        let model = L2d { path: random_path(&lm, VARIANTS[0], &[], seed), lm };
        let before = tokens(&model.lm, 2, 8, seed);
        let mut after = before.clone();
        after[1][change] = (after[1][change] + 1) % model.lm.config.vocab_size as u32;
        let (base_a, joined_a) = both_logits(&model, &before, 0.6, seed);
        let (base_b, joined_b) = both_logits(&model, &after, 0.6, seed);
        let vocab = model.lm.config.vocab_size;
        let unchanged = (8 + change) * vocab;
        prop_assert_eq!(&base_a[..unchanged], &base_b[..unchanged]);
        prop_assert_eq!(&joined_a[..unchanged], &joined_b[..unchanged]);
        prop_assert_ne!(&joined_a[unchanged..unchanged + vocab], &joined_b[unchanged..unchanged + vocab]);
    }

    #[test]
    fn a_sequence_does_not_notice_its_neighbours(seed in 0u64..1000, pad in 1usize..5) {
        let lm: Lm<B> = golden_lm("base_qwen2", &Default::default());
        let row = tokens(&lm, 1, 6, seed).remove(0);
        let other = tokens(&lm, 1, 6 + pad, seed + 1).remove(0);
        let mut alone = lm.new_cache(vec![0], 6);
        let single = host_values(lm.logits(lm.forward(std::slice::from_ref(&row), &mut alone)));
        let padded: Vec<u32> = std::iter::repeat_n(0, pad).chain(row).collect();
        let mut cache = lm.new_cache(vec![pad, 0], 6 + pad);
        let both = host_values(lm.logits(lm.forward(&[padded, other], &mut cache)));
        let vocab = lm.config.vocab_size;
        for (a, b) in single.iter().zip(&both[pad * vocab..(6 + pad) * vocab]) {
            prop_assert!((a - b).abs() < 5e-5, "{} against {}", a, b);
        }
    }
}
