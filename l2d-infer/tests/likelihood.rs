//! Log-likelihoods of continuations against forward passes without a cache.

use std::sync::atomic::AtomicBool;

use l2d_core::cpu::WeightFormat;
use l2d_core::lm::{Lm, host_values};
use l2d_infer::decode::{Continuations, Likelihood};
use l2d_infer::sampler::{argmax, log_softmax};
use l2d_infer::{Decoder, DiffusionParams, Error};
use l2d_testkit::models::golden_l2d;
use l2d_testkit::{Golden, TestBackend};

type B = TestBackend;

fn questions() -> Vec<Continuations> {
    let tokens = |from: u32, count: u32| (0..count).map(|i| (from + 11 * i) % 40).collect::<Vec<u32>>();
    let question = |from, context, options: &[(u32, u32)]| Continuations {
        context: tokens(from, context),
        options: options.iter().map(|&(from, count)| tokens(from, count)).collect(),
    };
    vec![
        question(3, 7, &[(1, 1), (2, 4), (5, 2), (1, 1)]),
        // The same beginning, longer; and options of one token alone.
        question(3, 9, &[(8, 1), (9, 1)]),
        question(20, 1, &[(4, 6)]),
    ]
}

/// By one uncached pass over context and option.
fn plainly(lm: &Lm<B>, context: &[u32], option: &[u32]) -> Likelihood {
    let whole = [context, option].concat();
    let mut cache = lm.new_cache(vec![0], whole.len());
    let logits = host_values(lm.logits(lm.forward(std::slice::from_ref(&whole), &mut cache)));
    let rows: Vec<&[f32]> = logits.chunks_exact(lm.config.vocab_size).collect();
    let mut found = Likelihood { log_probability: 0.0, tokens: option.len(), greedy: true };
    for (index, &token) in option.iter().enumerate() {
        let row = rows[context.len() + index - 1];
        found.log_probability += log_softmax(row).expect("a distribution")[token as usize];
        found.greedy &= argmax(row).expect("a distribution") == token as usize;
    }
    found
}

#[test]
fn options_are_as_likely_as_in_one_uncached_pass() {
    let (lm, _) = golden_l2d::<B>(&Golden::load("l2d_llama_lora"), &Default::default());
    for lm in [lm.clone(), lm.packed(WeightFormat::F32)] {
        let decoder = Decoder::plain(&lm);
        // Twice: the second time packed contexts are known.
        for _ in 0..2 {
            let found = decoder.likelihoods(&questions(), None).expect("scored").expect("not cancelled");
            for (question, found) in questions().iter().zip(found) {
                assert_eq!(question.options.len(), found.len());
                for (option, found) in question.options.iter().zip(found) {
                    let expected = plainly(&lm, &question.context, option);
                    assert!((found.log_probability - expected.log_probability).abs() < 1e-4, "{found:?} {expected:?}");
                    assert_eq!((found.tokens, found.greedy), (expected.tokens, expected.greedy));
                }
            }
        }
    }
}

#[test]
fn the_greedy_continuation_is_called_greedy() {
    let (lm, _) = golden_l2d::<B>(&Golden::load("l2d_llama_lora"), &Default::default());
    let context = vec![3_u32, 14, 25];
    let mut whole = context.clone();
    for _ in 0..3 {
        let mut cache = lm.new_cache(vec![0], whole.len());
        let logits = host_values(lm.logits(lm.forward(std::slice::from_ref(&whole), &mut cache)));
        whole.push(argmax(&logits[logits.len() - lm.config.vocab_size..]).expect("a distribution") as u32);
    }
    let greedy = whole.split_off(context.len());
    let mut other = greedy.clone();
    other[2] = (other[2] + 1) % 40;
    let question = Continuations { context, options: vec![greedy, other] };
    let found = Decoder::plain(&lm).likelihoods(&[question], None).expect("scored").expect("not cancelled");
    assert!(found[0][0].greedy && !found[0][1].greedy);
    assert!(found[0][0].log_probability > found[0][1].log_probability);
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let (lm, path) = golden_l2d::<B>(&Golden::load("l2d_llama_lora"), &Default::default());
    let decoder = Decoder::plain(&lm);
    let refused = |context: Vec<u32>, option: Vec<u32>| {
        let question = Continuations { context, options: vec![option] };
        decoder.likelihoods(&[questions().remove(0), question], None).expect_err("refused")
    };
    assert!(matches!(refused(vec![], vec![1]), Error::Request { request: 1, .. }));
    assert!(matches!(refused(vec![1], vec![]), Error::Request { request: 1, .. }));
    assert!(refused(vec![1], vec![1_000_000]).to_string().contains("not in the vocabulary"));
    let long = vec![1; lm.config.max_positions];
    assert!(decoder.likelihoods(&[Continuations { context: long.clone(), options: vec![vec![1]] }], None).is_ok());
    assert!(matches!(refused(long, vec![1, 2]), Error::Context { wanted: 2, .. }));
    assert_eq!(decoder.likelihoods(&questions(), Some(&AtomicBool::new(true))).expect("no error"), None);

    let model = l2d_core::L2d { lm: lm.clone(), path };
    let diffusing = Decoder::new(&model, &DiffusionParams::default().check().expect("checked")).expect("a decoder");
    assert!(matches!(diffusing.likelihoods(&questions(), None), Err(Error::NoLikelihood)));
}
