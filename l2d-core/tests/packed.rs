//! A packed model computes what the dense one does, and the same bits for a row whatever its company.

use burn::tensor::Tensor;
use l2d_core::L2d;
use l2d_core::checkpoint::BaseFingerprint;
use l2d_core::cpu::{CacheFormat, WeightFormat};
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::lm::{KvCache, Lm, host_values};
use l2d_core::parameters::replace_parameters;
use l2d_testkit::TestBackend;
use l2d_testkit::models::{BASE_FOLDERS, golden_lm};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

type B = TestBackend;

const VARIANTS: [Variant; 2] = [Variant::Lora { rank: 3, alpha: 6.0 }, Variant::Full];

fn model(folder: &str, variant: Variant) -> L2d<B> {
    let lm: Lm<B> = golden_lm(folder, &Default::default());
    let config = RawDiffusionConfig {
        dim: 12,
        translation_hidden: Some(20),
        conditioning: 24,
        time_features: 14,
        variant,
        classes: vec!["a".into()],
        ..Default::default()
    };
    let config = config.check("test".as_ref()).expect("valid");
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let path = DiffusionPath::init(&lm, &config, &mut rng);
    let path = replace_parameters(path, &mut |_, shape| {
        Ok((0..shape.iter().product()).map(|_| rng.random_range(-0.3..0.3f32)).collect())
    });
    L2d { path: path.expect("infallible"), lm }
}

fn tokens(lm: &Lm<B>, length: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..length).map(|_| rng.random_range(0..lm.config.vocab_size as u32)).collect()
}

/// Base and joined logits at the given positions of each sequence of a filled cache, `hidden` being theirs.
fn logits_at(
    model: &L2d<B>,
    cache: &KvCache<B>,
    positions: &[Vec<usize>],
    hidden: Tensor<B, 2>,
    t: f32,
) -> (Vec<f32>, Vec<f32>) {
    let rows: usize = positions.iter().map(Vec::len).sum();
    let plan = model.lm.plan_at(cache, positions);
    let modulation = model.path.modulation(&[t], None);
    // The state of a row follows from its position, so that it is the same in every batch.
    let dim = model.path.config.dim;
    let x: Vec<f32> = positions
        .iter()
        .flatten()
        .flat_map(|&position| {
            let mut rng = ChaCha8Rng::seed_from_u64(position as u64);
            (0..dim).map(|_| rng.random_range(-50.0..50.0)).collect::<Vec<f32>>()
        })
        .collect();
    let x = Tensor::from_data(burn::tensor::TensorData::new(x, [rows, dim]), &Default::default());
    let base = host_values(model.lm.logits(hidden.clone()));
    (base, host_values(model.logits(cache, &plan, &modulation, hidden, x)))
}

#[test]
fn a_packed_model_computes_what_the_dense_one_does() {
    for folder in BASE_FOLDERS {
        for variant in VARIANTS {
            let dense = model(folder, variant);
            let packed = model(folder, variant).packed(WeightFormat::F32);
            assert!(packed.lm.is_packed() && !dense.lm.is_packed());
            let tokens = vec![tokens(&dense.lm, 45, 1), tokens(&dense.lm, 45, 2)];
            let positions = vec![(0..45).collect::<Vec<_>>(); 2];
            let run = |model: &L2d<B>| {
                let mut cache = model.lm.new_cache(vec![0; 2], 45);
                let hidden = model.lm.forward(&tokens, &mut cache);
                logits_at(model, &cache, &positions, hidden, 0.4)
            };
            let ((base, joined), (packed_base, packed_joined)) = (run(&dense), run(&packed));
            let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart(&base, &packed_base) < 2e-5, "{folder} {}", apart(&base, &packed_base));
            assert!(apart(&joined, &packed_joined) < 2e-4, "{folder} {}", apart(&joined, &packed_joined));
            // The dense weights come back out.
            let exported = packed.lm.export();
            assert_eq!(exported, dense.lm.export());
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_batch_any_chunks_and_any_fork() {
    let cases = BASE_FOLDERS.into_iter().flat_map(|folder| [(folder, CacheFormat::F32), (folder, CacheFormat::F16)]);
    for (folder, cache_format) in cases {
        let mut model = model(folder, VARIANTS[0]).packed(WeightFormat::F32);
        model.lm = model.lm.with_cache_format(cache_format);
        let lm = &model.lm;
        let texts = [tokens(lm, 41, 1), tokens(lm, 3, 2), tokens(lm, 70, 3), tokens(lm, 41, 4)];
        let last = |text: &Vec<u32>| vec![text.len() - 1];

        let alone: Vec<(Vec<f32>, Vec<f32>)> = texts
            .iter()
            .map(|text| {
                // Token by token.
                let mut cache = lm.new_cache(vec![0], 1);
                let hidden = text.iter().map(|&token| lm.forward(&[vec![token]], &mut cache)).last().expect("a token");
                logits_at(&model, &cache, &[last(text)], hidden, 0.6)
            })
            .collect();

        // All at once, ragged.
        let mut cache = lm.new_cache(vec![0; 4], 1);
        let hidden = lm.forward(&texts, &mut cache);
        let ends: Vec<i32> = texts
            .iter()
            .scan(0, |end, text| {
                *end += text.len() as i32;
                Some(*end - 1)
            })
            .collect();
        let ends = Tensor::<B, 1, burn::tensor::Int>::from_ints(ends.as_slice(), &Default::default());
        let positions: Vec<Vec<usize>> = texts.iter().map(last).collect();
        let (base, joined) = logits_at(&model, &cache, &positions, hidden.select(0, ends), 0.6);
        let vocabulary = lm.config.vocab_size;
        for (i, (alone_base, alone_joined)) in alone.iter().enumerate() {
            assert_eq!(alone_base, &base[i * vocabulary..(i + 1) * vocabulary], "{folder} {i}");
            assert_eq!(alone_joined, &joined[i * vocabulary..(i + 1) * vocabulary], "{folder} {i}");
        }

        // A fork: the third text's first 33 tokens, then its rest beside another sequence that joined.
        let mut fork = lm.new_cache(vec![0], 1);
        lm.forward(&[texts[2][..60].to_vec()], &mut fork);
        fork.truncate(33);
        let mut joining = lm.new_cache(vec![0], 1);
        lm.forward(&[texts[1][..1].to_vec()], &mut joining);
        fork.join(joining);
        let hidden = lm.forward(&[texts[2][33..].to_vec(), texts[1][1..].to_vec()], &mut fork);
        fork.select(&[1, 0], &Default::default());
        let ends = Tensor::<B, 1, burn::tensor::Int>::from_ints([38, 36], &Default::default());
        let (_, joined) = logits_at(&model, &fork, &[vec![2], vec![69]], hidden.select(0, ends), 0.6);
        assert_eq!(joined[..vocabulary], alone[1].1);
        assert_eq!(joined[vocabulary..], alone[2].1);
    }
}

#[test]
fn sequences_join_a_dense_batch() {
    let model = model(BASE_FOLDERS[0], VARIANTS[0]);
    let lm = &model.lm;
    let (a, b) = (tokens(lm, 5, 1), tokens(lm, 9, 2));
    let filled = |text: &[u32]| {
        let mut cache = lm.new_cache(vec![0], 1);
        lm.forward(&[text.to_vec()], &mut cache);
        cache
    };
    let alone = |text: &[u32]| {
        let mut cache = filled(&text[..text.len() - 1]);
        host_values(lm.logits(lm.forward(&[text[text.len() - 1..].to_vec()], &mut cache)))
    };
    for (first, second) in [(&a, &b), (&b, &a)] {
        let mut cache = filled(&first[..first.len() - 1]);
        cache.join(filled(&second[..second.len() - 1]));
        assert_eq!([cache.len_of(0), cache.len_of(1)], [first.len() - 1, second.len() - 1]);
        let next = [vec![first[first.len() - 1]], vec![second[second.len() - 1]]];
        let together = host_values(lm.logits(lm.forward(&next, &mut cache)));
        let expected = [alone(first), alone(second)].concat();
        assert!(together.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-5));
    }
}

#[test]
fn a_dense_batch_gives_back_the_slots_of_those_who_left() {
    let model = model(BASE_FOLDERS[0], VARIANTS[0]);
    let lm = &model.lm;
    let texts: Vec<Vec<u32>> = (0..30).map(|seed| tokens(lm, 8, seed)).collect();
    let filled = |text: &[u32]| {
        let mut cache = lm.new_cache(vec![0], 1);
        lm.forward(&[text.to_vec()], &mut cache);
        cache
    };
    let last = |text: &[u32]| {
        let mut cache = filled(&text[..7]);
        host_values(lm.logits(lm.forward(&[text[7..].to_vec()], &mut cache)))
    };
    // Two at a time: one is half done when the next joins, and the older one leaves.
    let mut cache = filled(&texts[0][..4]);
    for pair in texts.windows(2) {
        cache.join(filled(&pair[1][..1]));
        for i in 0..3 {
            lm.forward(&[vec![pair[0][4 + i]], vec![pair[1][1 + i]]], &mut cache);
        }
        let logits = lm.logits(lm.forward(&[vec![pair[0][7]], vec![pair[1][4]]], &mut cache));
        let logits = host_values(logits.narrow(0, 0, 1));
        assert!(logits.iter().zip(&last(&pair[0])).all(|(a, b)| (a - b).abs() < 2e-5));
        cache.select(&[1], &Default::default());
        assert_eq!(cache.len_of(0), 5);
        cache.truncate(4);
        assert_eq!(cache.slots(), 4, "no more slots than positions");
    }
}

#[test]
fn coarser_formats_stay_near() {
    let dense = model(BASE_FOLDERS[0], VARIANTS[0]);
    let text = vec![tokens(&dense.lm, 30, 5)];
    let run = |lm: &Lm<B>| {
        let hidden = lm.forward(&text, &mut lm.new_cache(vec![0], 30));
        host_values(lm.logits(hidden))
    };
    let exact = run(&dense.lm);
    let spread = (exact.iter().map(|x| x * x).sum::<f32>() / exact.len() as f32).sqrt();
    for (format, tolerance) in
        [(WeightFormat::F16, 2e-3), (WeightFormat::Bf16, 2e-2), (WeightFormat::Q8_0, 2e-2), (WeightFormat::Q4_1, 0.4)]
    {
        let found = run(&model(BASE_FOLDERS[0], VARIANTS[0]).lm.packed(format));
        let squares: f32 = found.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
        let error = (squares / exact.len() as f32).sqrt() / spread;
        assert!(error > 0.0 && error < tolerance, "{format}: {error}");
    }
    let whole = model(BASE_FOLDERS[0], VARIANTS[0]).lm.packed(WeightFormat::F32);
    let found = run(&whole.with_cache_format(CacheFormat::F16));
    let worst = found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst / spread > 1e-6 && worst / spread < 2e-3, "f16 cache: {}", worst / spread);
}

/// An adapter remembers its base by a hash of weights, and packed zeros have no sign.
#[test]
fn packing_leaves_the_fingerprint_alone() {
    for folder in BASE_FOLDERS {
        let mut lm = model(folder, VARIANTS[0]).lm;
        let [inputs, outputs] = lm.blocks[0].query.shape();
        let mut row = 0;
        let signed = |value: f32| {
            row += 1;
            if row % 3 == 0 { -0.0 } else { value }
        };
        let values: Vec<f32> = host_values(lm.blocks[0].query.dense()).into_iter().map(signed).collect();
        let weight = Tensor::from_data(burn::tensor::TensorData::new(values, [inputs, outputs]), &Default::default());
        lm.blocks[0].query.weight = burn::module::Param::from_tensor(weight);
        let dense = BaseFingerprint::of(&lm);
        assert_eq!(BaseFingerprint::of(&lm.packed(WeightFormat::F32)), dense, "{folder}");
    }
}
