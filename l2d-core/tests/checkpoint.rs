//! Hugging Face folders: what is read, and what broken, incomplete or hostile ones get.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use l2d_core::Error;
use l2d_core::checkpoint::{
    Checkpoint, EmbeddedCheckpoint, SafetensorsSource, StoredDtype, TensorSource, open_weights, write_tensors,
};
use l2d_core::config::{LmConfig, RopeScaling};
use l2d_core::lm::HostTensor;
use l2d_core::text::{BpeVocabulary, Ending, Message, TextTokenizer, TokenKind};
use l2d_testkit::parity_dir;
use proptest::prelude::*;
use serde_json::{Value, json};

mod largest_allocation;
use largest_allocation::largest_allocation;

/// A safetensors file from its header and data.
fn file_bytes(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn tensor(name: &str, values: &[f32]) -> HostTensor {
    HostTensor { name: name.into(), shape: vec![values.len()], values: values.to_vec() }
}

fn write_shard(path: &Path, tensors: &[HostTensor]) {
    write_tensors(path, tensors, &BTreeMap::new(), StoredDtype::F32).unwrap();
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn every_stored_number_format_is_read() {
    let data = [&1.5_f32.to_le_bytes()[..], &[0x00, 0x3E], &[0xC0, 0x3F]].concat();
    let header = json!({
        "__metadata__": { "format": "pt" },
        "a": { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] },
        "b": { "dtype": "F16", "shape": [1, 1], "data_offsets": [4, 6] },
        "c": { "dtype": "BF16", "shape": [], "data_offsets": [6, 8] },
    });
    let source = SafetensorsSource::from_bytes(file_bytes(&header, &data), "x.safetensors").unwrap();
    assert_eq!(source.names(), ["a", "b", "c"]);
    for name in source.names() {
        assert_eq!(source.read_f32(&name).unwrap(), [1.5]);
    }
    assert_eq!((source.shape("b"), source.shape("c")), (Some(vec![1, 1]), Some(vec![])));
    assert_eq!((source.dtype("c").as_deref(), source.shape("d")), (Some("BF16"), None));
    assert_eq!(source.metadata()["format"], "pt");
    let error = source.read_f32("d").unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "d"), "{error}");
}

#[test]
fn another_number_format_is_named() {
    let header = json!({ "w": { "dtype": "I64", "shape": [1], "data_offsets": [0, 8] } });
    let source = SafetensorsSource::from_bytes(file_bytes(&header, &[0; 8]), "x.safetensors").unwrap();
    let error = source.read_f32("w").unwrap_err();
    assert!(matches!(&error, Error::Dtype { found, .. } if found == "I64"), "{error}");
}

#[test]
fn broken_safetensors_headers_are_errors() {
    let entry = |dtype: &str, shape: Value, offsets: Value| {
        file_bytes(&json!({ "w": { "dtype": dtype, "shape": shape, "data_offsets": offsets } }), &[0; 8])
    };
    let cases: [(&str, Vec<u8>); 9] = [
        ("empty", vec![]),
        ("header length beyond the file", [&1_000_u64.to_le_bytes()[..], b"{}"].concat()),
        ("absurd header length", u64::MAX.to_le_bytes().to_vec()),
        ("not json", [&4_u64.to_le_bytes()[..], b"oops"].concat()),
        ("another magic", b"GGUF\x03\0\0\0\0\0\0\0".to_vec()),
        ("offsets outside", entry("F32", json!([4]), json!([0, 16]))),
        ("offsets reversed", entry("F32", json!([2]), json!([8, 0]))),
        ("shape against offsets", entry("F32", json!([3]), json!([0, 8]))),
        ("shape overflow", entry("F32", json!([1_u64 << 40, 1_u64 << 40]), json!([0, 8]))),
    ];
    for (what, bytes) in cases {
        let error = SafetensorsSource::from_bytes(bytes, "bad.safetensors").err().unwrap_or_else(|| panic!("{what}"));
        assert!(
            matches!(&error, Error::Format { path, .. } if path == Path::new("bad.safetensors")),
            "{what}: {error}"
        );
    }
}

#[test]
fn shards_are_one_source() {
    let folder = tempfile::tempdir().unwrap();
    write_shard(&folder.path().join("one.safetensors"), &[tensor("a", &[1.0]), tensor("b", &[2.0, 3.0])]);
    write_shard(&folder.path().join("two.safetensors"), &[tensor("c", &[4.0])]);
    let index = folder.path().join("model.safetensors.index.json");
    let map =
        |c: &str| json!({ "metadata": {}, "weight_map": { "a": "one.safetensors", "b": "one.safetensors", "c": c } });
    write_json(&index, &map("two.safetensors"));
    let source = SafetensorsSource::open(folder.path()).unwrap();
    assert_eq!(source.names(), ["a", "b", "c"]);
    assert_eq!((source.read_f32("b").unwrap(), source.read_f32("c").unwrap()), (vec![2.0, 3.0], vec![4.0]));

    write_json(&index, &map("three.safetensors"));
    let error = SafetensorsSource::open(folder.path()).err().unwrap();
    let named = |error: &Error| matches!(error, Error::Io { path, source } if path.ends_with("three.safetensors") && source.kind() == ErrorKind::NotFound);
    assert!(named(&error), "{error}");

    write_json(&index, &map("one.safetensors"));
    let error = SafetensorsSource::open(folder.path()).err().unwrap();
    assert!(matches!(&error, Error::MissingTensor { name, .. } if name == "c"), "{error}");

    write_shard(&folder.path().join("two.safetensors"), &[tensor("c", &[4.0]), tensor("a", &[0.0])]);
    write_json(&index, &map("two.safetensors"));
    let error = SafetensorsSource::open(folder.path()).err().unwrap();
    assert!(error.to_string().contains("tensor `a` is in two shards"), "{error}");

    for name in ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", "sub\\one.safetensors"] {
        write_json(&index, &map(name));
        let error = SafetensorsSource::open(folder.path()).err().unwrap();
        assert!(error.to_string().contains("not a plain file name"), "{name}: {error}");
    }
    write_json(&index, &json!({ "weight_map": [1] }));
    let error = SafetensorsSource::open(folder.path()).err().unwrap();
    assert!(matches!(error, Error::Format { format: "safetensors index", .. }), "{error}");
}

#[test]
fn the_golden_folders_open_without_a_tokenizer() {
    for (name, qkv_bias) in [("base_llama", false), ("base_qwen2", true)] {
        let folder = parity_dir().join(name);
        let (config, source) = open_weights(&folder).unwrap();
        assert_eq!(config.qkv_bias, qkv_bias);
        let elements = |name: &String| source.shape(name).unwrap().iter().product::<usize>();
        assert_eq!(source.names().iter().map(elements).sum::<usize>(), config.num_parameters());
        let error = Checkpoint::open(&folder).err().unwrap();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("tokenizer.json")), "{error}");
    }
}

#[test]
fn paths_that_hold_no_model_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| open_weights(path).err().unwrap();
    let missing = folder.path().join("nowhere");
    assert!(matches!(open(&missing), Error::Io { path, .. } if path == missing));
    assert!(open(folder.path()).to_string().contains("config.json"));

    let weights = folder.path().join("model.safetensors");
    write_shard(&weights, &[tensor("a", &[1.0])]);
    assert!(open(&weights).to_string().contains("give the folder"));

    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    std::fs::copy(parity_dir().join("base_llama/config.json"), folder.path().join("config.json")).unwrap();
    assert!(matches!(open(folder.path()), Error::Format { path, .. } if path == weights));
    std::fs::remove_file(&weights).unwrap();
    assert!(matches!(open(folder.path()), Error::Io { path, .. } if path == weights));
    std::fs::write(folder.path().join("config.json"), "{ \"model_type\": ").unwrap();
    assert!(matches!(open(folder.path()), Error::Format { format: "config.json", .. }));
}

#[test]
fn a_folder_with_one_gguf_file_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/quants.gguf");
    std::fs::copy(&fixture, folder.path().join("q.GGUF")).unwrap();
    let (config, _) = open_weights(folder.path()).unwrap();
    assert_eq!((config.num_layers, config.vocab_size), (1, 4));
    std::fs::copy(&fixture, folder.path().join("r.gguf")).unwrap();
    let error = open_weights(folder.path()).err().unwrap();
    assert!(error.to_string().contains("2 .gguf files"), "{error}");
}

#[test]
fn both_spellings_of_the_rope_type_are_read() {
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(parity_dir().join("base_llama/config.json")).unwrap()).unwrap();
    let expected = LmConfig::from_json(&config.to_string(), Path::new("x")).unwrap();
    assert_ne!(expected.rope_scaling, RopeScaling::None);
    let mut scaling = config["rope_scaling"].clone();
    scaling["type"] = json!("llama3");
    config["rope_scaling"] = scaling.clone();
    assert_eq!(LmConfig::from_json(&config.to_string(), Path::new("x")).unwrap(), expected);
    scaling.as_object_mut().unwrap().remove("rope_type");
    scaling["rope_theta"] = config["rope_theta"].clone();
    for key in ["rope_scaling", "rope_theta"] {
        config.as_object_mut().unwrap().remove(key);
    }
    config["rope_parameters"] = scaling;
    assert_eq!(LmConfig::from_json(&config.to_string(), Path::new("x")).unwrap(), expected);
}

const TOKENS: [&str; 7] = ["a", "b", "c", "ab", "<|im_start|>", "<|im_end|>", "<|endoftext|>"];

fn tokenizer_json() -> String {
    let tokens = TOKENS.map(String::from);
    let kind = |token: &String| if token.starts_with('<') { TokenKind::Control } else { TokenKind::Normal };
    let vocabulary = BpeVocabulary {
        pre_tokenizer: "qwen2",
        tokens: &tokens,
        kinds: tokens.iter().map(kind).collect(),
        merges: &["a b".to_string()],
        bos_token_id: None,
        add_bos: None,
    };
    TextTokenizer::from_bpe(&vocabulary).unwrap().to_json().unwrap()
}

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";

/// A complete Hugging Face folder around a golden model.
fn whole_folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(parity_dir().join("base_llama").join(file), path.join(file)).unwrap();
    }
    std::fs::write(path.join("tokenizer.json"), tokenizer_json()).unwrap();
    write_json(
        &path.join("tokenizer_config.json"),
        &json!({ "eos_token": { "content": "<|im_end|>", "lstrip": false }, "pad_token": "<|endoftext|>",
            "bos_token": null, "chat_template": TEMPLATE, "model_max_length": 1e30 }),
    );
    write_json(
        &path.join("generation_config.json"),
        &json!({ "eos_token_id": [6, 5], "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8 }),
    );
    (folder, path)
}

#[test]
fn a_whole_folder_opens() {
    let (_guard, path) = whole_folder();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let generation = &checkpoint.generation;
    assert_eq!(generation.eos_token_ids, [6, 5]);
    assert_eq!((generation.do_sample, generation.temperature), (Some(true), Some(0.7)));
    assert_eq!((generation.top_k, generation.top_p, generation.repetition_penalty), (Some(20), Some(0.8), None));
    // No `bos_token`: the id comes from config.json.
    assert_eq!((checkpoint.bos_token_id, checkpoint.pad_token_id), (Some(1), Some(6)));
    let prompt = checkpoint.template.unwrap().render(&[Message::user("abc")], Ending::Closed).unwrap();
    assert_eq!(checkpoint.tokenizer.encode(&prompt, false).unwrap(), [4, 3, 2, 5]);
}

#[test]
fn end_tokens_come_from_wherever_they_are_named() {
    let (_guard, path) = whole_folder();
    std::fs::remove_file(path.join("generation_config.json")).unwrap();
    // config.json says 2, the tokenizer's own end token is 5.
    assert_eq!(Checkpoint::open(&path).unwrap().generation.eos_token_ids, [2, 5]);
    std::fs::remove_file(path.join("tokenizer_config.json")).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.generation.eos_token_ids, [2]);
    assert!(checkpoint.template.is_none());
}

#[test]
fn templates_are_found_in_every_place() {
    let (_guard, path) = whole_folder();
    let named = json!({ "chat_template": [
        { "name": "tool_use", "template": "no" }, { "name": "default", "template": "listed" },
    ] });
    write_json(&path.join("tokenizer_config.json"), &named);
    let source = |path: &Path| Checkpoint::open(path).unwrap().template.unwrap().source().to_string();
    assert_eq!(source(&path), "listed");
    std::fs::write(path.join("chat_template.jinja"), "a file").unwrap();
    assert_eq!(source(&path), "a file");
}

#[test]
fn texts_that_do_not_fit_the_model_are_refused() {
    let open = |edit: &dyn Fn(&Path)| {
        let (_guard, path) = whole_folder();
        edit(&path);
        Checkpoint::open(&path).err().expect("an error")
    };
    let error = open(&|path| std::fs::write(path.join("chat_template.jinja"), "<|eot_id|>{{ x }}<|im_end|>").unwrap());
    assert!(
        matches!(&error, Error::Tokenizer(text) if text.contains("<|eot_id|>") && !text.contains("im_end")),
        "{error}"
    );
    let error = open(&|path| std::fs::write(path.join("chat_template.jinja"), "{% for %}").unwrap());
    assert!(matches!(error, Error::ChatTemplate(_)), "{error}");
    let error = open(&|path| std::fs::write(path.join("tokenizer.json"), "{}").unwrap());
    assert!(matches!(&error, Error::Tokenizer(text) if text.contains("tokenizer.json")), "{error}");
    let error = open(&|path| std::fs::write(path.join("generation_config.json"), "[").unwrap());
    assert!(matches!(&error, Error::Format { path, .. } if path.ends_with("generation_config.json")), "{error}");
    let error = open(&|path| {
        let mut tokenizer: Value = serde_json::from_str(&tokenizer_json()).unwrap();
        tokenizer["model"]["vocab"]["zzz"] = json!(320);
        write_json(&path.join("tokenizer.json"), &tokenizer);
    });
    assert!(error.to_string().contains("321 tokens") && error.to_string().contains("320 rows"), "{error}");
}

#[test]
fn an_embedded_checkpoint_equals_its_folder() {
    let (_guard, path) = whole_folder();
    let leak = |file: &str| -> &'static str { std::fs::read_to_string(path.join(file)).unwrap().leak() };
    let files = EmbeddedCheckpoint {
        name: "tiny",
        config: leak("config.json"),
        weights: std::fs::read(path.join("model.safetensors")).unwrap().leak(),
        tokenizer: leak("tokenizer.json"),
        tokenizer_config: leak("tokenizer_config.json"),
        generation_config: Some(leak("generation_config.json")),
    };
    let (embedded, opened) = (Checkpoint::embedded(&files).unwrap(), Checkpoint::open(&path).unwrap());
    assert_eq!((&embedded.config, &embedded.generation), (&opened.config, &opened.generation));
    assert_eq!(embedded.tensors.names(), opened.tensors.names());
    for name in opened.tensors.names() {
        assert_eq!(embedded.tensors.read_f32(&name).unwrap(), opened.tensors.read_f32(&name).unwrap());
    }
    let broken = EmbeddedCheckpoint { weights: &[1, 2, 3], ..files };
    let error = Checkpoint::embedded(&broken).err().unwrap();
    assert!(matches!(&error, Error::Format { path, .. } if path == Path::new("tiny")), "{error}");
}

/// Whatever the bytes, opening and reading end in a value or an error.
fn survive(bytes: Vec<u8>) {
    if let Ok(source) = SafetensorsSource::from_bytes(bytes, "fuzz.safetensors") {
        for name in source.names() {
            let _ = source.read_f32(&name);
        }
    }
    let largest = largest_allocation();
    assert!(largest < 16 << 20, "{largest} bytes at once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_safetensors_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        survive([&(bytes.len() as u64 / 2).to_le_bytes(), &bytes[..]].concat());
        survive(bytes);
    }

    #[test]
    fn mutated_safetensors_never_panic(edits in proptest::collection::vec((0_usize..150, any::<u8>()), 1..6)) {
        let header = json!({
            "__metadata__": { "k": "v" },
            "a": { "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24] },
            "b": { "dtype": "BF16", "shape": [4], "data_offsets": [24, 32] },
        });
        let mut bytes = file_bytes(&header, &[7; 32]);
        for (at, value) in edits {
            bytes[at] = value;
        }
        survive(bytes);
    }
}
