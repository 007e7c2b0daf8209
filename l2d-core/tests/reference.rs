//! The authors' checkpoints: in, out, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use l2d_core::checkpoint::{
    PthSource, ReferenceConfig, ReferenceOverrides, StoredDtype, export_reference, import_reference, open_state_dict,
    reference_config, write_tensors,
};
use l2d_core::error::Error;
use l2d_core::parameters::parameters;
use l2d_testkit::models::{golden_l2d, golden_lm};
use l2d_testkit::{Golden, TestBackend};
use serde_json::Value;

type B = TestBackend;

const CASES: [&str; 4] = ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full", "l2d_llama_guidance"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pytorch").join(name)
}

fn overrides(sigma: f64, alpha: Option<f64>) -> ReferenceOverrides {
    ReferenceOverrides { sigma: Some(sigma), alpha, classes: Vec::new() }
}

/// The settings of a golden file as the file a user would have.
fn settings(golden: &Golden, folder: &Path) -> PathBuf {
    let file = folder.join("flow.json");
    std::fs::write(&file, golden.info["flow_config"].to_string()).expect("written");
    file
}

#[test]
fn every_variant_goes_out_and_comes_in_again() {
    for case in CASES {
        let (golden, folder) = (Golden::load(case), tempfile::tempdir().expect("a folder"));
        let (lm, path) = golden_l2d::<B>(&golden, &Default::default());
        let config = ReferenceConfig::read(&settings(&golden, folder.path())).expect("settings");
        for whole in [false, true] {
            let tensors = export_reference(&path, whole.then_some(&lm));
            // The names and values are the golden ones.
            for tensor in tensors.iter().filter(|tensor| golden.has(&format!("param/{}", tensor.name))) {
                let expected = golden.get(&format!("param/{}", tensor.name));
                assert_eq!((&tensor.shape, &tensor.values), (&expected.shape, &expected.f32()), "{}", tensor.name);
            }
            for name in golden.names("param/") {
                let written = tensors.iter().any(|tensor| format!("param/{}", tensor.name) == name);
                let trained = golden.info["trainable_parameters"]
                    .as_array()
                    .expect("names")
                    .iter()
                    .any(|trained| format!("param/{}", trained.as_str().expect("a name")) == name);
                assert!(written || !(trained || whole), "{case}: {name} is not written");
            }
            let file = folder.path().join(format!("{whole}.safetensors"));
            write_tensors(&file, &tensors, &BTreeMap::new(), StoredDtype::F32).expect("written");
            let source = open_state_dict(&file).expect("opened");
            let imported =
                import_reference(source.as_ref(), &lm, Some(&config), &ReferenceOverrides::default()).expect("in");
            assert_eq!(parameters(&imported.path), parameters(&path), "{case}");
            assert_eq!(imported.path.config, path.config, "{case}");
            assert_eq!(imported.base_difference.map(|(_, difference)| difference), whole.then_some(0.0));
        }
        // The settings written beside it say the same.
        let file = folder.path().join("ours.json");
        std::fs::write(&file, reference_config(&path.config).to_string()).expect("written");
        ReferenceConfig::read(&file).expect("our own settings are read");
    }
}

#[test]
fn a_file_of_torch_save_is_read() {
    let golden = Golden::load("l2d_llama_lora");
    let (lm, path) = golden_l2d::<B>(&golden, &Default::default());
    let source = open_state_dict(&fixture("l2d_llama_lora.bin")).expect("opened");
    let imported = import_reference(source.as_ref(), &lm, None, &overrides(64.0, Some(4.0))).expect("imported");
    assert_eq!(parameters(&imported.path), parameters(&path));
    assert_eq!(imported.base_difference.expect("the base is there").1, 0.0);

    let source = open_state_dict(&fixture("trained_part.pt")).expect("opened");
    let imported = import_reference(source.as_ref(), &lm, None, &overrides(64.0, Some(4.0))).expect("imported");
    assert!(imported.base_difference.is_none());
    for (found, expected) in parameters(&imported.path).iter().zip(parameters(&path)) {
        let rounding = if found.name.ends_with(".a") { 1.0 / 256.0 } else { 0.0 };
        for (a, b) in found.values.iter().zip(&expected.values) {
            assert!((a - b).abs() <= rounding * b.abs(), "{}: {a} {b}", found.name);
        }
    }
}

#[test]
fn what_the_tensors_do_not_say_must_be_given() {
    let golden = Golden::load("l2d_llama_lora");
    let (lm, _) = golden_l2d::<B>(&golden, &Default::default());
    let source = PthSource::open(&fixture("l2d_llama_lora.bin")).expect("opened");
    let import = |overrides: &ReferenceOverrides| import_reference(&source, &lm, None, overrides).map(|_| ());
    let key = |result: Result<(), Error>| match result {
        Err(Error::Config { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key(import(&ReferenceOverrides { alpha: Some(4.0), ..Default::default() })), "noise_rescaling");
    assert_eq!(key(import(&ReferenceOverrides { sigma: Some(4.0), ..Default::default() })), "flow_lora_alpha");
    let classes = ReferenceOverrides { classes: vec!["a".into()], ..overrides(64.0, Some(4.0)) };
    assert_eq!(key(import(&classes)), "classes");
}

#[test]
fn settings_of_another_model_are_refused() {
    let (golden, folder) = (Golden::load("l2d_llama_lora"), tempfile::tempdir().expect("a folder"));
    let (lm, _) = golden_l2d::<B>(&golden, &Default::default());
    let source = PthSource::open(&fixture("l2d_llama_lora.bin")).expect("opened");
    let file = settings(&golden, folder.path());
    let good: Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("json");
    let refused = |key: &str, value: Value| {
        let mut bad = good.clone();
        bad[key] = value;
        std::fs::write(&file, bad.to_string()).expect("written");
        let result = ReferenceConfig::read(&file)
            .and_then(|config| import_reference(&source, &lm, Some(&config), &ReferenceOverrides::default()));
        match result.map(|_| ()) {
            Err(Error::Config { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{key}: {other:?}"),
        }
    };
    refused("modulate_hidden_states", true.into());
    refused("flow_representation_rescaling", "div".into());
    refused("flow_to_lm_translation_depth", 3.into());
    refused("flow_representation_dim", 17.into());
    refused("flow_lora_rank", 8.into());
    refused("noise_rescaling", "64".into());
    std::fs::write(&file, "[]").expect("written");
    assert!(matches!(ReferenceConfig::read(&file), Err(Error::Format { .. })));
}

#[test]
fn another_base_is_refused() {
    let golden = Golden::load("l2d_llama_lora");
    let (mut lm, _) = golden_l2d::<B>(&golden, &Default::default());
    let source = PthSource::open(&fixture("l2d_llama_lora.bin")).expect("opened");
    let import = |lm: &_| import_reference(&source, lm, None, &overrides(64.0, Some(4.0))).map(|i| i.base_difference);
    let off = |lm: &l2d_core::lm::Lm<B>, by: f32| {
        let mut lm = lm.clone();
        lm.embedding = burn::module::Param::from_tensor(lm.embedding.val() * (1.0 + by));
        lm
    };
    let (name, difference) = import(&off(&lm, 0.01)).expect("rounding is no other base").expect("compared");
    assert_eq!(name, "model.embed_tokens.weight");
    assert!((difference - 0.01 / 1.01).abs() < 1e-4, "{difference}");
    assert!(matches!(import(&off(&lm, -0.5)), Err(Error::AdapterMismatch { .. })));
    assert!(matches!(import(&off(&lm, f32::NAN)), Err(Error::AdapterMismatch { .. })));
    // One with fewer blocks has no place for the rest.
    lm.blocks.pop();
    assert!(matches!(import(&lm), Err(Error::ExtraTensor { .. })));
    // One of another family: it wants biases the checkpoint does not have, or other shapes.
    let other = golden_lm::<B>("base_qwen2", &Default::default());
    assert!(import(&other).is_err());
}

#[test]
fn hostile_and_broken_files_are_refused() {
    let error = |path: &Path| match PthSource::open(path) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{}: accepted", path.display()),
    };
    assert!(error(&fixture("calls.bin")).contains("getcwd"), "{}", error(&fixture("calls.bin")));
    assert!(error(&fixture("nested.bin")).contains("state dict"), "{}", error(&fixture("nested.bin")));
    let folder = tempfile::tempdir().expect("a folder");
    let whole = std::fs::read(fixture("l2d_llama_lora.bin")).expect("read");
    let broken = folder.path().join("broken.bin");
    for length in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&broken, &whole[..length]).expect("written");
        assert!(matches!(PthSource::open(&broken), Err(Error::Format { .. } | Error::Io { .. })), "{length}");
        assert!(open_state_dict(&broken).is_err(), "{length}");
    }
    assert!(open_state_dict(&folder.path().join("missing")).is_err());
    // A tensor less, one too many, one of another shape.
    let golden = Golden::load("l2d_llama_lora");
    let (lm, path) = golden_l2d::<B>(&golden, &Default::default());
    let good = export_reference(&path, Some(&lm));
    let file = folder.path().join("changed.safetensors");
    let import = |tensors: &[_]| {
        write_tensors(&file, tensors, &BTreeMap::new(), StoredDtype::F32).expect("written");
        let source = open_state_dict(&file).expect("opened");
        import_reference(source.as_ref(), &lm, None, &overrides(64.0, Some(4.0))).map(|_| ())
    };
    import(&good).expect("unchanged");
    assert!(matches!(import(&good[1..]), Err(Error::Format { .. })), "the tensor all checkpoints have");
    assert!(matches!(import(&[&good[..1], &good[2..]].concat()), Err(Error::MissingTensor { .. })));
    let mut more = good.clone();
    more.push(l2d_core::lm::HostTensor { name: "model.new.weight".into(), shape: vec![1], values: vec![1.0] });
    assert!(matches!(import(&more), Err(Error::ExtraTensor { .. })));
    let mut other = good.clone();
    let last = other.iter_mut().find(|t| t.name.ends_with("2.self_attn.flow_o_proj.B")).expect("there");
    last.shape.reverse();
    assert!(matches!(import(&other), Err(Error::Shape { .. })));
}
