//! Saving and loading the trained part, and what a wrong file gets.

use std::collections::BTreeMap;
use std::path::Path;

use l2d_core::Error;
use l2d_core::checkpoint::{
    BaseFingerprint, StoredDtype, inspect_adapter, load_adapter, load_adapter_bytes, save_adapter, weights_digest,
};
use l2d_core::cpu::WeightFormat;
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::lm::Lm;
use l2d_core::parameters::{parameters, replace_parameters};
use l2d_testkit::TestBackend;
use l2d_testkit::models::{golden_lm, golden_lm_within};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

mod largest_allocation;
use largest_allocation::largest_allocation;

type B = TestBackend;

/// More than anything of the golden models, less than anything a forged size stands for.
const MUCH: usize = 64 << 20;

fn path_beside(lm: &Lm<B>, variant: Variant) -> DiffusionPath<B> {
    let raw = RawDiffusionConfig {
        dim: 8,
        conditioning: 10,
        time_features: 6,
        variant,
        classes: vec!["math".into(), "coding".into()],
        ..Default::default()
    };
    DiffusionPath::init(lm, &raw.check(Path::new("test")).expect("valid"), &mut ChaCha8Rng::seed_from_u64(3))
}

fn saved(folder: &Path, variant: Variant, dtype: StoredDtype) -> (Lm<B>, DiffusionPath<B>, std::path::PathBuf) {
    let lm = golden_lm("base_llama", &Default::default());
    let path = path_beside(&lm, variant);
    let file = folder.join("adapter.safetensors");
    let notes = BTreeMap::from([("steps".to_string(), "12".to_string())]);
    save_adapter(&file, &path, &BaseFingerprint::of(&lm), &notes, dtype).expect("saved");
    (lm, path, file)
}

#[test]
fn what_is_saved_is_loaded_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    for variant in [Variant::Lora { rank: 2, alpha: 4.0 }, Variant::Full, Variant::Scratch] {
        let (lm, path, file) = saved(folder.path(), variant, StoredDtype::F32);
        let loaded = load_adapter(&file, &lm).expect("loaded");
        assert_eq!(parameters(&loaded), parameters(&path));
        assert_eq!(loaded.config, path.config);
        let info = inspect_adapter(&file).expect("inspected");
        assert_eq!(info.config, path.config);
        assert_eq!(info.num_parameters(), path.config.parameter_counts(&lm.config).total());
        assert_eq!(info.notes["steps"], "12");
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "no temporary file is left");
    }
}

#[test]
fn half_precision_rounds_and_halves() {
    let folder = tempfile::tempdir().expect("a folder");
    let (lm, path, file) = saved(folder.path(), Variant::Full, StoredDtype::F16);
    let loaded = load_adapter(&file, &lm).expect("loaded");
    for (a, b) in parameters(&loaded).iter().zip(parameters(&path)) {
        for (x, y) in a.values.iter().zip(&b.values) {
            assert!((x - y).abs() <= y.abs() * 1e-3 + 1e-7, "{}: {x} against {y}", a.name);
        }
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (lm, _, file) = saved(folder.path(), Variant::Full, StoredDtype::F32);
    let other = golden_lm("base_qwen2", &Default::default());
    let error = load_adapter::<B>(&file, &other).expect_err("another architecture");
    assert!(matches!(error, Error::AdapterMismatch { .. }), "{error}");
    assert!(error.to_string().contains("qwen2"), "{error}");
    // In the middle of the model, by a finetune of one matrix.
    let mut within = lm.clone();
    let gate = &mut within.blocks[1].mlp.gate;
    gate.weight = burn::module::Param::from_tensor(gate.weight.val() * 1.01);
    let error = load_adapter(&file, &within).expect_err("another matrix");
    assert!(error.to_string().contains("the weights are not"), "{error}");
    // An adapter of before every matrix had a part in the fingerprint fits what it fitted.
    let older = edited(&std::fs::read(&file).expect("read"), |header| {
        let base = &mut header["__metadata__"]["base"];
        let mut said: serde_json::Value = serde_json::from_str(base.as_str().expect("text")).expect("json");
        assert!(said.as_object_mut().expect("an object").remove("matrices").is_some());
        *base = said.to_string().into();
    });
    load_adapter_bytes(&file, &older, &lm).expect("its own base");
    load_adapter_bytes(&file, &older, &within).expect("it cannot tell");
    let mut changed = lm;
    changed.final_norm.weight = burn::module::Param::from_tensor(changed.final_norm.weight.val() * 1.01);
    let error = load_adapter(&file, &changed).expect_err("other weights");
    assert!(error.to_string().contains("the weights are not"), "{error}");
}

/// Whatever tensor of a model another finetune has changed, it is another model; held in parts or packed it is the same.
#[test]
fn every_tensor_has_a_part_in_the_digest() {
    for folder in ["base_llama", "base_qwen2"] {
        let device = Default::default();
        let lm: Lm<B> = golden_lm(folder, &device);
        let digest = weights_digest(&lm);
        assert_eq!(weights_digest(&golden_lm_within::<B>(folder, &device, Some(40_000))), digest, "{folder}");
        assert_eq!(weights_digest(&lm.clone().packed(WeightFormat::F32)), digest, "{folder}");
        // A tied head is the embedding once more.
        let own = |name: &str| !(lm.config.tie_word_embeddings && name.starts_with("head."));
        for tensor in parameters(&lm).into_iter().filter(|tensor| own(&tensor.name)) {
            let changed = replace_parameters(lm.clone(), &mut |name, _| {
                let same = parameters(&lm).into_iter().find(|other| other.name == name).expect("a tensor of the model");
                let scale = if name == tensor.name { 1.5 } else { 1.0 };
                Ok(same.values.iter().map(|value| value * scale + (scale - 1.0)).collect())
            });
            let changed = weights_digest(&changed.expect("the same shapes"));
            assert_ne!(changed, digest, "{folder}: {}", tensor.name);
        }
    }
}

#[test]
fn damaged_files_are_refused_with_their_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (lm, _, file) = saved(folder.path(), Variant::Full, StoredDtype::F32);
    let whole = std::fs::read(&file).expect("read");
    for cut in [0, 7, 20, whole.len() / 2, whole.len() - 1] {
        let error = load_adapter_bytes(&file, &whole[..cut], &lm).expect_err("truncated");
        assert!(error.to_string().contains("adapter.safetensors"), "{error}");
    }
    let error = inspect_adapter(&folder.path().join("absent")).expect_err("missing file");
    assert!(matches!(error, Error::Io { .. }));
    let error = save_adapter(
        &folder.path().join("no/such/folder/a.safetensors"),
        &path_beside(&lm, Variant::Full),
        &BaseFingerprint::of(&lm),
        &BTreeMap::new(),
        StoredDtype::F32,
    );
    assert!(matches!(error.expect_err("unwritable"), Error::Io { .. }));
}

fn edited(bytes: &[u8], edit: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("json");
    edit(&mut header);
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat()
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (lm, _, file) = saved(folder.path(), Variant::Full, StoredDtype::F32);
    let whole = std::fs::read(&file).expect("read");
    let refuse = |edit: &dyn Fn(&mut serde_json::Value)| {
        load_adapter_bytes(&file, &edited(&whole, edit), &lm).expect_err("refused").to_string()
    };
    let rename = |from: &'static str, to: &'static str| {
        move |header: &mut serde_json::Value| {
            let map = header.as_object_mut().expect("object");
            let value = map.remove(from).expect("present");
            map.insert(to.into(), value);
        }
    };
    let missing = refuse(&rename("translation.inner.bias", "translation.inner.surplus"));
    assert!(missing.contains("`translation.inner.bias` is missing"), "{missing}");
    let misshapen = refuse(&|header| {
        let shape = header["vocabulary.projection.weight"]["shape"].as_array_mut().expect("shape");
        shape.swap(0, 1);
    });
    assert!(misshapen.contains("vocabulary.projection.weight") && misshapen.contains("shape"), "{misshapen}");
    let version = refuse(&|header| header["__metadata__"]["version"] = "9".into());
    assert!(version.contains("version"), "{version}");
    let unknown = refuse(&|header| {
        let config = header["__metadata__"]["config"].as_str().expect("config").replacen("{", "{\"colour\":1,", 1);
        header["__metadata__"]["config"] = config.into();
    });
    assert!(unknown.contains("colour"), "{unknown}");
    let model = refuse(&|header| {
        header["__metadata__"].as_object_mut().expect("object").remove("format");
    });
    assert!(model.contains("l2d-adapter"), "{model}");
}

/// A whole safetensors file with one tensor more.
fn with_surplus(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.len() - 8 - u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let mut longer = edited(bytes, |header| {
        header["surplus"] = serde_json::json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]});
    });
    longer.extend(1f32.to_le_bytes());
    longer
}

#[test]
fn a_surplus_tensor_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (lm, _, file) = saved(folder.path(), Variant::Full, StoredDtype::F32);
    let longer = with_surplus(&std::fs::read(&file).expect("read"));
    let error = load_adapter_bytes(&file, &longer, &lm).expect_err("refused");
    assert!(matches!(&error, Error::ExtraTensor { name, .. } if name == "surplus"), "{error}");
}

#[test]
fn a_config_larger_than_the_file_allocates_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (lm, _, file) = saved(folder.path(), Variant::Lora { rank: 2, alpha: 4.0 }, StoredDtype::F32);
    let whole = std::fs::read(&file).expect("read");
    for (key, from) in [("dim", 8), ("conditioning", 10), ("time_features", 6), ("rank", 2)] {
        let grown = edited(&whole, |header| {
            let config = header["__metadata__"]["config"].as_str().expect("config");
            let old = format!("\"{key}\":{from}");
            assert!(config.contains(&old), "{config}");
            header["__metadata__"]["config"] = config.replace(&old, &format!("\"{key}\":65536")).into();
        });
        let error = load_adapter_bytes(&file, &grown, &lm).expect_err("refused").to_string();
        // Where the surplus is small, the first tensor that does not fit is named instead.
        assert!(error.contains("its config stands for") || error.contains("has shape"), "{key}: {error}");
        assert!(largest_allocation() < MUCH, "{key}: {} bytes at once", largest_allocation());
    }
}

#[test]
fn the_fingerprint_of_an_architecture_never_changes() {
    // These hashes are in adapter files out there.
    let of = |folder: &str| BaseFingerprint::of::<B>(&golden_lm(folder, &Default::default())).config;
    if std::env::var_os("L2D_PARITY").is_some() {
        return;
    }
    assert_eq!(of("base_llama"), "6d6eadb064f0c0f38e0d53c8a47baf8a55f815995c9a281977edb2287ada74df");
    assert_eq!(of("base_qwen2"), "e8907a3c9555d7121a7910dfc35bf51b02eaf4f90a2dad2af8d3a1cdcbbefd19");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let lm: Lm<B> = golden_lm("base_llama", &Default::default());
        prop_assert!(load_adapter_bytes::<B>(Path::new("x"), &bytes, &lm).is_err());
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_change_of_a_whole_header_makes_it_panic_or_allocate(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        number in any::<prop::sample::Index>(),
        digits in "[0-9]{1,20}",
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let (lm, _, file) = saved(folder.path(), Variant::Lora { rank: 2, alpha: 4.0 }, StoredDtype::F32);
        let whole = std::fs::read(&file).expect("read");
        let length = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
        // Some bytes of the header become others...
        let mut changed = whole.clone();
        for (place, byte) in &changes {
            changed[8 + place.index(length)] = *byte;
        }
        let _ = load_adapter_bytes(&file, &changed, &lm);
        prop_assert!(largest_allocation() < MUCH, "{} bytes at once", largest_allocation());
        // ... or one of its numbers another, the header staying valid JSON.
        let header = std::str::from_utf8(&whole[8..8 + length]).expect("text");
        let starts: Vec<usize> = (1..length)
            .filter(|&i| header.as_bytes()[i].is_ascii_digit() && !header.as_bytes()[i - 1].is_ascii_digit())
            .collect();
        let start = starts[number.index(starts.len())];
        let end = start + header[start..].bytes().take_while(u8::is_ascii_digit).count();
        let header = format!("{}{digits}{}", &header[..start], &header[end..]).into_bytes();
        let other = [&(header.len() as u64).to_le_bytes()[..], &header, &whole[8 + length..]].concat();
        let _ = load_adapter_bytes(&file, &other, &lm);
        prop_assert!(largest_allocation() < MUCH, "{} bytes at once", largest_allocation());
    }
}
