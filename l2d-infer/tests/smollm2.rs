//! A real model, where there is one: `L2D_SMOLLM2=FILE.gguf cargo test --release -p l2d-infer`. Without it these tests pass
//! without having looked, as their output says.

use l2d_core::L2d;
use l2d_core::checkpoint::Checkpoint;
use l2d_core::cpu::WeightFormat;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig};
use l2d_core::lm::Lm;
use l2d_core::parameters::replace_parameters;
use l2d_infer::decode::{Completion, DecodeMode, Hooks};
use l2d_infer::velocity::Estimate;
use l2d_infer::{Decoder, DiffusionParams, GenerationParams, Request};
use l2d_testkit::TestBackend;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// SmolLM2 with a path of random weights, so small that the base still speaks.
fn model() -> Option<L2d<TestBackend>> {
    let Some(path) = std::env::var_os("L2D_SMOLLM2") else {
        eprintln!("L2D_SMOLLM2 is not set: nothing was tested");
        return None;
    };
    let checkpoint = Checkpoint::open(path.as_ref()).unwrap();
    let lm = Lm::load_packed(&checkpoint.config, &*checkpoint.tensors, &Default::default()).unwrap();
    let config = RawDiffusionConfig::default().check("test".as_ref()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let path = DiffusionPath::init(&lm, &config, &mut rng);
    let path = replace_parameters(path, &mut |_, shape| {
        Ok((0..shape.iter().product()).map(|_| rng.random_range(-0.03..0.03f32)).collect())
    });
    Some(L2d { path: path.unwrap(), lm }.packed(WeightFormat::F32))
}

fn decode(
    model: &L2d<TestBackend>,
    mode: DecodeMode,
    estimate: Estimate,
    requests: &[Request],
    count: usize,
) -> Vec<Completion> {
    let params = DiffusionParams { estimate, ..Default::default() };
    let decoder = Decoder::new(model, &params.check().unwrap()).unwrap().with_mode(mode);
    let generation = GenerationParams { max_tokens: count, seed: 3, ..Default::default() };
    decoder.generate(requests, &generation.check().unwrap(), Hooks::default()).unwrap()
}

#[test]
fn two_hundred_tokens_are_the_same_in_both_modes_and_in_any_batch() {
    let Some(model) = model() else { return };
    let requests: Vec<Request> = (0..8u64)
        .map(|sequence| {
            let tokens = (0..20 + 9 * sequence as u32).map(|i| 1000 + (i * 7919) % 20_000).collect();
            Request { tokens, class: None, sequence }
        })
        .collect();
    for estimate in [Estimate::default(), Estimate::Argmax] {
        let sequential = decode(&model, DecodeMode::Sequential, estimate, &requests[..1], 200);
        let parallel = decode(&model, DecodeMode::Parallel, estimate, &requests[..1], 200);
        assert_eq!(sequential[0].tokens.len(), 200);
        assert_eq!(sequential[0].tokens, parallel[0].tokens);
        assert!(parallel[0].rounds < sequential[0].rounds, "{} rounds", parallel[0].rounds);
        println!("{estimate:?}: {} rounds for {} evaluations", parallel[0].rounds, sequential[0].rounds);
        let batch = decode(&model, DecodeMode::Parallel, estimate, &requests, 200);
        assert_eq!(batch[0].tokens, sequential[0].tokens);
        let last = decode(&model, DecodeMode::Parallel, estimate, &requests[7..], 30);
        assert_eq!(batch[7].tokens[..30], last[0].tokens);
    }
}
