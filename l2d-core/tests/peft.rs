//! Low-rank adapters in PEFT's format: out and in again, and what is refused.

use std::path::Path;

use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{merge_peft, read_tensors, save_peft};
use l2d_core::error::Error;
use l2d_core::lm::{Lm, Lora, host_values};
use l2d_testkit::TestBackend;
use l2d_testkit::models::golden_lm;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

type B = TestBackend;

/// The golden LM with corrections of every layer that change what it says.
fn adapted(base: &str, rank: usize) -> Lm<B> {
    let mut lm = golden_lm::<B>(base, &Default::default());
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for block in &mut lm.blocks {
        let mlp = &mut block.mlp;
        let attention = [&mut block.query, &mut block.key, &mut block.value, &mut block.output];
        for linear in attention.into_iter().chain([&mut mlp.gate, &mut mlp.up, &mut mlp.down]) {
            let [inputs, outputs] = linear.shape();
            let device = Default::default();
            let lora = Lora::init(inputs, outputs, rank, 6.0, &mut rng, &device);
            let b: Vec<f32> = (0..rank * outputs).map(|_| 0.1 * (rng.random::<f32>() - 0.5)).collect();
            let b = burn::tensor::Tensor::from_data(burn::tensor::TensorData::new(b, [rank, outputs]), &device);
            linear.lora = Some(Lora::new(lora.a.val(), b, lora.scale));
        }
    }
    lm
}

fn logits<B: Backend>(lm: &Lm<B>) -> Vec<f32> {
    let mut cache = lm.new_cache(vec![0], 5);
    host_values(lm.logits(lm.forward(&[vec![7, 8, 9, 30, 2]], &mut cache)))
}

#[test]
fn an_adapter_written_and_merged_again_says_the_same() {
    for base in ["base_llama", "base_qwen2"] {
        let (folder, lm) = (tempfile::tempdir().expect("a folder"), adapted(base, 3));
        let expected = logits(&lm);
        save_peft(folder.path(), lm, "org/base").expect("written");
        let plain = golden_lm::<B>(base, &Default::default());
        let before = logits(&plain);
        let merged = merge_peft(folder.path(), plain).expect("merged");
        let largest = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(largest(&logits(&merged), &expected) < 5e-5, "{base}");
        assert!(largest(&before, &expected) > 1e-2, "{base}: the corrections change something");
    }
}

#[test]
fn names_shapes_and_settings_are_pefts() {
    let folder = tempfile::tempdir().expect("a folder");
    save_peft(folder.path(), adapted("base_llama", 3), "org/base").expect("written");
    let (tensors, _) = read_tensors(&folder.path().join("adapter_model.safetensors")).expect("read");
    let shape = |name: &str| tensors[&format!("base_model.model.model.layers.2.{name}.weight")].shape.clone();
    assert_eq!(tensors.len(), 3 * 7 * 2);
    assert_eq!((shape("self_attn.q_proj.lora_A"), shape("self_attn.k_proj.lora_B")), (vec![3, 64], vec![32, 3]));
    assert_eq!((shape("mlp.down_proj.lora_A"), shape("mlp.up_proj.lora_B")), (vec![3, 128], vec![128, 3]));
    let config = config(folder.path());
    assert_eq!((&config["r"], &config["lora_alpha"], &config["peft_type"]), (&json!(3), &json!(6.0), &json!("LORA")));
    assert_eq!(config["target_modules"].as_array().expect("names").len(), 7);
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).expect("read")).expect("json")
}

fn with(folder: &Path, key: &str, value: Value) {
    let mut config = config(folder);
    config[key] = value;
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
}

#[test]
fn ranks_and_scales_of_single_modules_are_heeded() {
    let folder = tempfile::tempdir().expect("a folder");
    save_peft(folder.path(), adapted("base_llama", 3), "org/base").expect("written");
    let merge =
        || logits(&merge_peft(folder.path(), golden_lm::<B>("base_llama", &Default::default())).expect("merged"));
    let usual = merge();
    // The same alpha by another way: the default is another, every module's own is the old one.
    with(folder.path(), "lora_alpha", json!(1.0));
    assert_ne!(merge(), usual);
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    with(folder.path(), "alpha_pattern", all.iter().map(|name| (name.to_string(), json!(6.0))).collect::<Value>());
    assert_eq!(merge(), usual);
    with(folder.path(), "use_rslora", json!(true));
    assert_ne!(merge(), usual, "alpha / sqrt(r)");
    // Ranks as well.
    with(folder.path(), "use_rslora", json!(false));
    with(folder.path(), "r", json!(5));
    with(folder.path(), "rank_pattern", all.iter().map(|name| (name.to_string(), json!(3))).collect::<Value>());
    assert_eq!(merge(), usual);
    // Keys are regular expressions, and the first that matches counts.
    with(folder.path(), "rank_pattern", json!({ r".*_proj": 3 }));
    with(folder.path(), "alpha_pattern", json!({ r"layers\.(0|1|2)\.(self_attn|mlp)\.\w+": 6.0, "q_proj": 1.0 }));
    assert_eq!(merge(), usual);
    with(folder.path(), "alpha_pattern", json!({ "q_proj": 1.0, r"layers\.(0|1|2)\.(self_attn|mlp)\.\w+": 6.0 }));
    assert_ne!(merge(), usual);
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let merge =
        |folder: &Path| merge_peft(folder, golden_lm::<B>("base_llama", &Default::default())).expect_err("refused");
    let fresh = || {
        let folder = tempfile::tempdir().expect("a folder");
        save_peft(folder.path(), adapted("base_llama", 3), "org/base").expect("written");
        folder
    };
    for (key, value, said) in [
        ("use_dora", json!(true), "DoRA"),
        ("bias", json!("all"), "biases"),
        ("modules_to_save", json!(["lm_head"]), "merge_and_unload"),
        ("peft_type", json!("IA3"), "IA3"),
        ("fan_in_fan_out", json!(true), "transposed"),
        ("r", json!(0), "rank"),
        ("rank_pattern", json!({ "q_proj": 0 }), "rank_pattern.q_proj"),
        ("alpha_pattern", json!({ "q_(proj": 1 }), "no regular expression"),
    ] {
        let folder = fresh();
        with(folder.path(), key, value);
        let error = merge(folder.path());
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(said), "{error}");
    }
    let folder = fresh();
    with(folder.path(), "r", json!(4));
    assert!(matches!(merge(folder.path()), Error::Shape { .. }));
    let folder = fresh();
    std::fs::remove_file(folder.path().join("adapter_config.json")).expect("removed");
    assert!(merge(folder.path()).to_string().contains("adapter_config.json"));
    let folder = fresh();
    let weights = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).expect("read");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("written");
    assert!(matches!(merge(folder.path()), Error::Format { .. }));
    // An adapter of a deeper model.
    let folder = fresh();
    let mut shallow = golden_lm::<B>("base_llama", &Default::default());
    shallow.blocks.pop();
    assert!(matches!(merge_peft(folder.path(), shallow).expect_err("refused"), Error::ExtraTensor { count: 14, .. }));
    let error = save_peft(folder.path(), golden_lm::<B>("base_llama", &Default::default()), "x").expect_err("nothing");
    assert!(error.to_string().contains("no layer"), "{error}");
}

#[test]
fn adapters_of_peft_itself_give_its_logits() {
    for name in ["plain", "patterns"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name);
        let expected: Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).expect("read")).expect("json");
        assert_eq!(expected["tokens"], json!([[7, 8, 9, 30, 2]]));
        let expected =
            expected["logits"].as_array().expect("rows").iter().flat_map(|row| row.as_array().expect("a row"));
        let expected: Vec<f32> = expected.map(|x| x.as_f64().expect("a number") as f32).collect();
        let bare = logits(&golden_lm::<B>("base_llama", &Default::default()));
        let merged = logits(&merge_peft(&folder, golden_lm::<B>("base_llama", &Default::default())).expect("merged"));
        let largest = |a: &[f32]| a.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert_eq!(merged.len(), expected.len());
        assert!(largest(&merged) < 5e-5, "{name}: off by {}", largest(&merged));
        assert!(largest(&bare) > 1e-2, "{name}: the adapter changes something");
    }
}
