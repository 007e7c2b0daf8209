//! The objectives by hand against those by automatic differentiation, beyond the golden cases: ragged batches, several
//! draws, rounded weights and products.

use burn::module::AutodiffModule;
use burn::tensor::FloatDType;
use l2d_core::cpu::WeightFormat;
use l2d_core::cpu::dense::Products;
use l2d_core::diffusion::{DiffusionConfig, DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::lm::{HostTensor, Lm, host_values};
use l2d_core::parameters::{parameters, replace_parameters, replace_trained_parameters, trainable, trained_parameters};
use l2d_testkit::models::golden_lm;
use l2d_testkit::{TestAutodiff, TestBackend};
use l2d_train::objective::{
    DrawSettings, Draws, DropoutDraws, HostL2d, HostLm, L2dObjective, Labelled, LmObjective, Recompute, StepLoss,
    add_lora,
};
use l2d_train::optimiser::NamedGradients;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

type B = TestBackend;
type AB = TestAutodiff;

/// A path whose every parameter has some value, so that every gradient is there.
fn path(lm: &Lm<B>, variant: Variant, classes: &[&str]) -> DiffusionPath<B> {
    let raw = RawDiffusionConfig {
        dim: 12,
        translation_hidden: Some(20),
        conditioning: 10,
        time_features: 8,
        sigma: 8.0,
        variant,
        classes: classes.iter().map(|name| name.to_string()).collect(),
    };
    let config: DiffusionConfig = raw.check(std::path::Path::new("test")).expect("valid");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let fresh = DiffusionPath::init(lm, &config, &mut rng);
    let values: Vec<HostTensor> = parameters(&fresh);
    replace_parameters(fresh, &mut |name, _| {
        let old = values.iter().find(|tensor| tensor.name == name).expect("its own names");
        Ok(old.values.iter().map(|x| x + 0.1 * (rng.random::<f32>() - 0.5)).collect())
    })
    .expect("the same shapes")
}

struct Batch {
    tokens: Vec<Vec<u32>>,
    labels: Vec<Vec<(usize, u32)>>,
    classes: Vec<usize>,
}

/// Three sequences of different lengths, labelled from different places on, padded on the right.
fn batch() -> Batch {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut token = || rng.random_range(0..320u32);
    let lengths = [(17usize, 9usize), (5, 4), (11, 1)];
    let tokens = lengths.map(|(length, _)| (0..17).map(|i| if i < length { token() } else { 0 }).collect()).to_vec();
    let labels = lengths.map(|(length, first)| (first..length).map(|k| (k, token())).collect()).to_vec();
    Batch { tokens, labels, classes: vec![1, 0, 1] }
}

fn labelled(batch: &Batch, with_classes: bool) -> Labelled<'_> {
    Labelled { tokens: &batch.tokens, labels: &batch.labels, classes: with_classes.then_some(&batch.classes[..]) }
}

fn draws(path: &DiffusionPath<B>, batch: &Labelled<'_>, per_position: usize) -> Draws {
    let mut rngs: Vec<ChaCha8Rng> = (0..batch.tokens.len() as u64).map(ChaCha8Rng::seed_from_u64).collect();
    DrawSettings { per_position, ..DrawSettings::default() }.draw(&path.config, batch, &mut rngs)
}

fn values(gradients: &NamedGradients<B>, name: &str) -> Vec<f32> {
    host_values(gradients.get(name).unwrap_or_else(|| panic!("a gradient of {name}")).clone())
}

fn assert_alike(names: &[HostTensor], a: &(StepLoss, NamedGradients<B>), b: &(StepLoss, NamedGradients<B>), part: f32) {
    assert_eq!(a.0.tokens, b.0.tokens);
    assert!((a.0.sum / b.0.sum - 1.0).abs() < f64::from(part), "{} and {}", a.0.sum, b.0.sum);
    for HostTensor { name, .. } in names {
        let (a, b) = (values(&a.1, name), values(&b.1, name));
        let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error <= part * largest + 1e-6, "{name}: {error} of {largest}");
    }
}

#[test]
fn ragged_batches_and_several_draws_give_the_gradients_of_automatic_differentiation() {
    for base in ["base_llama", "base_qwen2"] {
        let lm = golden_lm::<B>(base, &Default::default());
        for (variant, classes) in [
            (Variant::Lora { rank: 3, alpha: 5.0 }, &["math", "code"][..]),
            (Variant::Scratch, &[]),
            (Variant::Full, &[]),
        ] {
            let path = path(&lm, variant, classes);
            let batch = batch();
            let batch = labelled(&batch, !classes.is_empty());
            let learning = trainable(AutodiffModule::from_inner(path.clone()));
            for per_position in [1, 3] {
                let draws = draws(&path, &batch, per_position);
                let mut objective = L2dObjective::<AB>::new(lm.clone());
                let expected = objective.loss_and_gradients(&learning, &batch, &draws);
                objective.recompute = Recompute::Blocks;
                let by_blocks = objective.loss_and_gradients(&learning, &batch, &draws);
                assert_alike(&parameters(&path), &by_blocks, &expected, 5e-4);
                for recompute in [Recompute::None, Recompute::Blocks] {
                    let mut host = HostL2d::new(lm.clone().packed(WeightFormat::F32), Products::F32);
                    host.recompute = recompute;
                    let found = host.loss_and_gradients(&path, &batch, &draws);
                    assert_alike(&parameters(&path), &found, &expected, 5e-4);
                    let again = host.loss_and_gradients(&path, &batch, &draws);
                    assert_eq!(found.0, again.0, "the same bits every time");
                    for HostTensor { name, .. } in parameters(&path) {
                        assert_eq!(values(&found.1, &name), values(&again.1, &name), "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn dropout_drops_the_same_in_every_way_of_computing() {
    let lm = golden_lm::<B>("base_llama", &Default::default());
    let path = path(&lm, Variant::Lora { rank: 3, alpha: 5.0 }, &[]);
    let batch = batch();
    let batch = labelled(&batch, false);
    let learning = trainable(AutodiffModule::from_inner(path.clone()));
    let settings = DrawSettings { lora_dropout: 0.3, per_position: 2, ..DrawSettings::default() };
    let mut rngs: Vec<ChaCha8Rng> = (0..3).map(ChaCha8Rng::seed_from_u64).collect();
    let draws = settings.draw(&path.config, &batch, &mut rngs);
    let mut objective = L2dObjective::<AB>::new(lm.clone());
    let expected = objective.loss_and_gradients(&learning, &batch, &draws);
    objective.recompute = Recompute::Blocks;
    assert_alike(&parameters(&path), &objective.loss_and_gradients(&learning, &batch, &draws), &expected, 5e-4);
    for recompute in [Recompute::None, Recompute::Blocks] {
        let mut host = HostL2d::new(lm.clone().packed(WeightFormat::F32), Products::F32);
        host.recompute = recompute;
        assert_alike(&parameters(&path), &host.loss_and_gradients(&path, &batch, &draws), &expected, 5e-4);
    }
    let without = Draws { dropout: None, ..draws.clone() };
    let other = objective.loss_and_gradients(&learning, &batch, &without);
    let slope = |gradients: &NamedGradients<B>| values(gradients, "blocks.1.query.a");
    let largest = slope(&other.1).iter().fold(0f32, |m, x| m.max(x.abs()));
    let moved = slope(&other.1).iter().zip(slope(&expected.1)).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(moved > 0.1 * largest, "something is dropped: {moved} of {largest}");
    assert_eq!(objective.loss(&path, &batch, &draws).sum, other.0.sum, "and nothing where the loss is measured");
    // Other draws are what they were without dropout.
    let plain = DrawSettings { lora_dropout: 0.0, ..settings };
    let mut rngs: Vec<ChaCha8Rng> = (0..3).map(ChaCha8Rng::seed_from_u64).collect();
    assert_eq!(plain.draw(&path.config, &batch, &mut rngs).noise, draws.noise);
}

#[test]
fn a_base_kept_in_half_the_bits_is_multiplied_as_rounded() {
    let lm = golden_lm::<B>("base_llama", &Default::default());
    let path = path(&lm, Variant::Lora { rank: 3, alpha: 5.0 }, &[]);
    let batch = batch();
    let batch = labelled(&batch, false);
    let draws = draws(&path, &batch, 1);
    let learning = trainable(AutodiffModule::from_inner(path.clone()));
    for (dtype, format) in [(FloatDType::BF16, WeightFormat::Bf16), (FloatDType::F16, WeightFormat::F16)] {
        // By hand the head is packed in the same format, which it is not on other backends: give both the rounded weights.
        let rounded = lm.clone().kept_as(dtype);
        let bits = rounded.blocks[0].query.weight.val().dtype();
        assert_eq!(bits, burn::tensor::DType::from(dtype));
        let dense = rounded.clone().kept_as(FloatDType::F32);
        for recompute in [Recompute::None, Recompute::Blocks] {
            let gradients = |lm: Lm<B>| {
                let mut objective = L2dObjective::<AB>::new(lm);
                objective.recompute = recompute;
                objective.loss_and_gradients(&learning, &batch, &draws)
            };
            assert_alike(&parameters(&path), &gradients(rounded.clone()), &gradients(dense.clone()), 1e-5);
        }
        let by_hand = HostL2d::new(lm.clone().packed(format), Products::F32).loss_and_gradients(&path, &batch, &draws);
        let whole = HostL2d::new(lm.clone().packed(WeightFormat::F32), Products::F32);
        let whole = whole.loss_and_gradients(&path, &batch, &draws);
        assert!((by_hand.0.sum / whole.0.sum - 1.0).abs() < 1e-2, "rounding is no other model");
    }
}

#[test]
fn weights_kept_in_few_bits_are_the_numbers_they_stand_for() {
    let lm = golden_lm::<B>("base_llama", &Default::default());
    let path = path(&lm, Variant::Lora { rank: 3, alpha: 5.0 }, &[]);
    let batch = batch();
    let batch = labelled(&batch, false);
    let draws = draws(&path, &batch, 1);
    for format in [WeightFormat::F16, WeightFormat::Bf16, WeightFormat::Q8_0] {
        let kept = HostL2d::new(lm.clone().packed(format), Products::F32).loss_and_gradients(&path, &batch, &draws);
        // Unpacked and packed again as f32, the same numbers.
        let exact = {
            let mut lm = lm.clone().packed(format);
            let plain = |linear: &mut l2d_core::lm::Linear<B>| {
                let bias = linear.bias.as_ref().map(|bias| bias.val());
                *linear = l2d_core::lm::Linear::new(linear.dense(), bias).packed(WeightFormat::F32);
            };
            for block in &mut lm.blocks {
                let (mlp, attention) =
                    (&mut block.mlp, [&mut block.query, &mut block.key, &mut block.value, &mut block.output]);
                attention.into_iter().chain([&mut mlp.gate, &mut mlp.up, &mut mlp.down]).for_each(plain);
            }
            lm.head.iter_mut().for_each(plain);
            HostL2d::new(lm, Products::F32).loss_and_gradients(&path, &batch, &draws)
        };
        assert_eq!(kept.0, exact.0, "{format}");
        for HostTensor { name, .. } in parameters(&path) {
            assert_eq!(values(&kept.1, &name), values(&exact.1, &name), "{format} {name}");
        }
    }
}

#[test]
fn rounded_products_stay_near() {
    let lm = golden_lm::<B>("base_llama", &Default::default());
    let path = path(&lm, Variant::Lora { rank: 3, alpha: 5.0 }, &[]);
    let batch = batch();
    let batch = labelled(&batch, false);
    let draws = draws(&path, &batch, 1);
    let of = |products| {
        HostL2d::new(lm.clone().packed(WeightFormat::F32), products).loss_and_gradients(&path, &batch, &draws)
    };
    let (exact, rounded) = (of(Products::F32), of(Products::Bf16));
    assert_ne!(exact.0.sum, rounded.0.sum, "something was rounded");
    assert!((rounded.0.sum / exact.0.sum - 1.0).abs() < 1e-2, "{} and {}", rounded.0.sum, exact.0.sum);
    let (mut along, mut squares) = (0.0, [0.0; 2]);
    for HostTensor { name, .. } in parameters(&path) {
        for (a, b) in values(&exact.1, &name).iter().zip(values(&rounded.1, &name)) {
            along += f64::from(*a) * f64::from(b);
            squares[0] += f64::from(*a) * f64::from(*a);
            squares[1] += f64::from(b) * f64::from(b);
        }
    }
    let cosine = along / (squares[0] * squares[1]).sqrt();
    assert!(cosine > 0.99, "the gradient points the same way: {cosine}");
}

/// The gradients of an LM's trained parameters by hand and by automatic differentiation, with and without the blocks computed
/// again, with and without dropout.
fn compare_lm(by_hand: &Lm<AB>, differentiated: &Lm<AB>) {
    let batch = batch();
    let batch = labelled(&batch, false);
    let names = trained_parameters(differentiated);
    let dropout = DropoutDraws { probability: 0.4, seeds: vec![11, 12, 13] };
    let mut losses = Vec::new();
    for dropout in [None, Some(&dropout)] {
        let mut objective = LmObjective { head_chunk: 7, recompute: Recompute::None };
        let expected = objective.loss_and_gradients(differentiated, &batch, dropout);
        objective.recompute = Recompute::Blocks;
        let by_blocks = objective.loss_and_gradients(differentiated, &batch, dropout);
        assert_alike(&names, &by_blocks, &expected, 5e-4);
        for recompute in [Recompute::None, Recompute::Blocks] {
            let mut host = HostLm::new(by_hand, Products::F32);
            (host.head_chunk, host.recompute) = (7, recompute);
            let found = host.loss_and_gradients(by_hand, &batch, dropout);
            assert_alike(&names, &found, &expected, 5e-4);
            let same = host.loss(by_hand, &batch).sum == found.0.sum;
            let drops = dropout.is_some() && names.iter().any(|tensor| tensor.name.contains("lora"));
            assert_eq!(same, !drops, "the validation loss is the training loss where nothing is dropped");
        }
        losses.push(expected.0.sum);
    }
}

#[test]
fn full_finetuning_by_hand_gives_the_gradients_of_automatic_differentiation() {
    for base in ["base_llama", "base_qwen2"] {
        let lm: Lm<AB> = AutodiffModule::from_inner(golden_lm::<B>(base, &Default::default()));
        let lm = trainable(if lm.config.tie_word_embeddings { Lm { head: None, ..lm } } else { lm });
        compare_lm(&lm, &lm);
    }
}

#[test]
fn corrections_by_hand_have_the_gradients_of_automatic_differentiation() {
    for base in ["base_llama", "base_qwen2"] {
        let lm = golden_lm::<B>(base, &Default::default());
        let with_corrections = |lm: Lm<B>| -> Lm<AB> {
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let lm = add_lora(AutodiffModule::from_inner(lm), 3, 5.0, &mut rng);
            // B begins at zero, and with it half of the gradients.
            replace_trained_parameters(lm, &mut |_, shape| {
                Ok((0..shape.iter().product()).map(|_| 0.3 * (rng.random::<f32>() - 0.5)).collect())
            })
            .expect("the same shapes")
        };
        compare_lm(&with_corrections(lm.clone().packed(WeightFormat::F32)), &with_corrections(lm));
    }
}
