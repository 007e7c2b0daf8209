//! Exact trainable-parameter counts of the paper's models, from their configs alone.

use l2d_core::config::{Family, LmConfig, RopeScaling};
use l2d_core::diffusion::{RawDiffusionConfig, Variant};
use l2d_testkit::parity_dir;
use serde_json::Value;

/// Sizes from the models' published `config.json` files.
fn config(name: &str) -> LmConfig {
    let (family, vocab, hidden, mlp, layers, heads, kv_heads, tied) = match name {
        "Llama-3.2-1B" => (Family::Llama, 128256, 2048, 8192, 16, 32, 8, true),
        "Llama-3.1-8B" => (Family::Llama, 128256, 4096, 14336, 32, 32, 8, false),
        "Qwen2.5-1.5B" => (Family::Qwen2, 151936, 1536, 8960, 28, 12, 2, true),
        "Qwen2.5-7B" => (Family::Qwen2, 152064, 3584, 18944, 28, 28, 4, false),
        "SmolLM2-135M" => (Family::Llama, 49152, 576, 1536, 30, 9, 3, true),
        other => panic!("no config for {other}"),
    };
    LmConfig {
        family,
        vocab_size: vocab,
        hidden_size: hidden,
        intermediate_size: mlp,
        num_layers: layers,
        num_heads: heads,
        num_kv_heads: kv_heads,
        head_dim: hidden / heads,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 2048,
        tie_word_embeddings: tied,
        qkv_bias: family == Family::Qwen2,
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

#[test]
fn parity_trainable_parameters() {
    let path = parity_dir().join("param_counts.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("json");
    let golden = golden.as_object().expect("an object");
    assert!(golden.len() >= 8);
    for (name, expected) in golden {
        let (model, variant) = name.rsplit_once(' ').expect("model and variant");
        let lora = variant == "LoRA";
        let raw = RawDiffusionConfig {
            variant: if lora { Variant::Lora { rank: 32, alpha: 32.0 } } else { Variant::Full },
            ..Default::default()
        };
        let lm = config(model);
        let counts = raw.check("paper".as_ref()).expect("valid").parameter_counts(&lm);
        let number = |key: &str| expected[key].as_u64().unwrap_or_else(|| panic!("{name}: {key}")) as usize;
        assert_eq!(counts.vocabulary, number("vocabulary map W_v (linear + bias)"), "{name}");
        assert_eq!(counts.timestep, number("time network"), "{name}");
        assert_eq!(counts.translation, number("translation module"), "{name}");
        assert_eq!(counts.attention, number("attention q,o (LoRA or full)"), "{name}");
        assert_eq!(counts.mlp, number("mlp (LoRA or full)"), "{name}");
        assert_eq!(counts.modulation, number("per-block modulation heads"), "{name}");
        assert_eq!(counts.final_weight, number("final weight head w"), "{name}");
        assert_eq!(counts.total(), number("trainable"), "{name}");
    }
}
