//! GGUF files: number formats, names and row order, architecture, and what broken or hostile files get.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anamnesis::GgufMetadataValue as Value;
use anamnesis::{GgufMetadataArray as Array, GgufType, GgufWriteTensor, write_gguf};
use l2d_core::Error;
use l2d_core::checkpoint::{Checkpoint, GgufSource, TensorSource, open_weights};
use l2d_core::config::{Family, LmConfig, RopeScaling};
use l2d_core::cpu::PackedMatrix;
use l2d_testkit::parity_dir;
use proptest::prelude::*;

mod largest_allocation;
use largest_allocation::largest_allocation;

/// Far above what these small models and their tokenizers need, far below what the hostile headers claim.
const HUGE: usize = 16 << 20;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// A model in memory, in the file's terms, to be written with or without damage.
#[derive(Clone)]
struct Model {
    metadata: HashMap<String, Value>,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Model {
    /// A golden base LM as llama.cpp's converter would write it, all f32. The converter's row permutation is
    /// `reshape(heads, 2, head_dim / 2, in).swapaxes(1, 2)`.
    fn golden(folder: &str) -> (Self, LmConfig) {
        let (config, source) = open_weights(&parity_dir().join(folder)).unwrap();
        let architecture = config.family.model_type();
        let int = |n: usize| Value::U32(n.try_into().unwrap());
        let mut metadata = HashMap::from([("general.architecture".to_string(), Value::String(architecture.into()))]);
        for (key, value) in [
            ("block_count", int(config.num_layers)),
            ("context_length", int(config.max_positions)),
            ("embedding_length", int(config.hidden_size)),
            ("feed_forward_length", int(config.intermediate_size)),
            ("attention.head_count", int(config.num_heads)),
            ("attention.head_count_kv", int(config.num_kv_heads)),
            ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32)),
            ("rope.freq_base", Value::F32(config.rope_theta as f32)),
            ("rope.dimension_count", int(config.head_dim)),
        ] {
            metadata.insert(format!("{architecture}.{key}"), value);
        }
        let tensors = source.names().into_iter().map(|name| {
            let mut values = source.read_f32(&name).unwrap();
            let shape = source.shape(&name).unwrap();
            let rotated = name.contains("q_proj") || name.contains("k_proj");
            if rotated && config.family == Family::Llama {
                let (heads, half, width) = (shape[0] / config.head_dim, config.head_dim / 2, shape[1]);
                let original = values.clone();
                for h in 0..heads {
                    for i in 0..half {
                        for s in 0..2 {
                            let to = ((h * half + i) * 2 + s) * width;
                            let from = ((h * 2 + s) * half + i) * width;
                            values[to..to + width].copy_from_slice(&original[from..from + width]);
                        }
                    }
                }
            }
            (gguf_name(&name), shape, values)
        });
        (Self { metadata, tensors: tensors.collect() }, config)
    }

    fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(key.to_string(), value);
    }

    fn write(&self, folder: &Path) -> PathBuf {
        let bytes: Vec<Vec<u8>> =
            self.tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let shapes: Vec<Vec<usize>> =
            self.tensors.iter().map(|(_, shape, _)| shape.iter().rev().copied().collect()).collect();
        let tensors: Vec<GgufWriteTensor<'_>> = self
            .tensors
            .iter()
            .zip(bytes.iter().zip(&shapes))
            .map(|((name, _, _), (data, shape))| GgufWriteTensor { name, shape, dtype: GgufType::F32, data })
            .collect();
        let path = folder.join("model.gguf");
        write_gguf(&path, &tensors, &self.metadata).unwrap();
        path
    }

    fn error(&self) -> Error {
        let folder = tempfile::tempdir().unwrap();
        GgufSource::open(&self.write(folder.path())).err().expect("an error")
    }
}

fn gguf_name(name: &str) -> String {
    name.replace("model.embed_tokens", "token_embd")
        .replace("model.norm", "output_norm")
        .replace("lm_head", "output")
        .replace("model.layers", "blk")
        .replace("self_attn.o_proj", "attn_output")
        .replace("self_attn.", "attn_")
        .replace("post_attention_layernorm", "ffn_norm")
        .replace("input_layernorm", "attn_norm")
        .replace("mlp.", "ffn_")
        .replace("_proj", "")
}

#[test]
fn every_number_format_decodes_to_the_reference_bits() {
    let source = GgufSource::open(&fixture("quants.gguf")).unwrap();
    let text = std::fs::read_to_string(fixture("quants.json")).unwrap();
    let expected: HashMap<String, String> = serde_json::from_str(&text).unwrap();
    assert_eq!(expected.len(), 11);
    for (name, hex) in expected {
        let found: String =
            source.read_f32(&name).unwrap().iter().flat_map(|x| x.to_le_bytes()).map(|b| format!("{b:02x}")).collect();
        assert_eq!(source.shape(&name), Some(vec![2, 256]));
        assert_eq!(source.dtype(&name).as_deref(), Some(name.as_str()));
        assert!(found == hex, "{name} differs from the reference");
    }
}

#[test]
fn blocks_are_packed_to_the_numbers_they_decode_to() {
    let source = GgufSource::open(&fixture("quants.gguf")).unwrap();
    let mut packed = Vec::new();
    for name in source.names() {
        let Some(blocks) = source.read_blocks(&name).unwrap() else { continue };
        let found = PackedMatrix::from_blocks(&blocks, 2, 256).unwrap().dense(); // [256, 2]
        let expected = source.read_f32(&name).unwrap(); // [2, 256]
        // A sum has no negative zero; but for that sign the numbers are the same bits.
        let same = |i: usize| (0..2).all(|row| found[2 * i + row] == expected[256 * row + i]);
        assert!((0..256).all(same), "{name}");
        packed.push(name);
    }
    assert_eq!(packed, ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"]);
}

#[test]
fn the_fixture_is_a_whole_checkpoint() {
    let checkpoint = Checkpoint::open(&fixture("quants.gguf")).unwrap();
    assert_eq!(checkpoint.tokenizer.encode("abb<|im_end|>", true).unwrap(), [2, 1, 3]);
    assert_eq!(checkpoint.generation.eos_token_ids, [3]);
}

#[test]
fn a_number_format_we_do_not_read_is_named() {
    let source = GgufSource::open(&fixture("quants.gguf")).unwrap();
    let error = source.read_f32("Q3_K").unwrap_err();
    assert!(matches!(&error, Error::Dtype { name, found, .. } if name == "Q3_K" && found == "Q3_K"), "{error}");
    assert!(error.to_string().contains("Q4_K"), "the error lists what is read: {error}");
}

#[test]
fn a_gguf_file_is_the_hugging_face_folder_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["base_llama", "base_qwen2"] {
        let (expected_config, expected) = open_weights(&parity_dir().join(name)).unwrap();
        let (model, _) = Model::golden(name);
        let (config, source) = open_weights(&model.write(folder.path())).unwrap();
        let without_texts =
            LmConfig { rope_scaling: RopeScaling::None, bos_token_id: None, eos_token_ids: vec![], ..expected_config };
        assert_eq!(config, without_texts);
        assert_eq!(source.names(), expected.names());
        for tensor in expected.names() {
            assert_eq!(source.shape(&tensor), expected.shape(&tensor), "{tensor}");
            assert_eq!(source.read_f32(&tensor).unwrap(), expected.read_f32(&tensor).unwrap(), "{tensor}");
        }
    }
}

/// The table llama.cpp's converter writes for Llama 3.2: head size 64, base 500000, factor 32.
fn llama_32_table() -> Vec<f32> {
    let base = |i: f64| 500_000_f64.powf(i / 32.0);
    (0..32)
        .map(|i| {
            let wavelength = 2.0 * std::f64::consts::PI * base(f64::from(i));
            let divisor = if wavelength < 2048.0 {
                1.0
            } else if wavelength > 8192.0 {
                32.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / 32.0 + smooth)
            };
            divisor as f32
        })
        .collect()
}

#[test]
fn a_rope_table_becomes_its_scaling_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let (mut model, _) = Model::golden("base_llama");
    model.set("llama.rope.freq_base", Value::F32(500_000.0));
    model.tensors.push(("rope_freqs.weight".into(), vec![32], llama_32_table()));
    let source = GgufSource::open(&model.write(folder.path())).unwrap();
    let expected =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    assert_eq!(source.config().rope_scaling, expected);
    assert!(!source.names().contains(&"rope_freqs.weight".to_string()));

    model.tensors.last_mut().unwrap().2[20] = 3.0;
    let error = model.error();
    assert!(matches!(error, Error::Unsupported { what: "rope_freqs.weight", .. }), "{error}");
}

#[test]
fn what_we_cannot_compute_is_refused_by_name() {
    let (golden, _) = Model::golden("base_llama");
    for (key, value, what) in [
        ("general.architecture", Value::String("gemma".into()), "model_type"),
        ("llama.expert_count", Value::U32(8), "expert_count"),
        ("llama.rope.scaling.type", Value::String("yarn".into()), "rope.scaling.type"),
        ("llama.rope.scaling.factor", Value::F32(4.0), "linear rope scaling"),
        ("llama.rope.scale_linear", Value::F32(0.5), "linear rope scaling"),
        ("llama.rope.dimension_count", Value::U32(8), "rope.dimension_count"),
        ("llama.attention.value_length", Value::U32(8), "attention.value_length"),
        ("llama.attention.sliding_window", Value::U32(512), "attention.sliding_window"),
    ] {
        let mut model = golden.clone();
        model.set(key, value);
        let error = model.error();
        assert!(matches!(&error, Error::Unsupported { what: found, .. } if *found == what), "{key}: {error}");
    }
}

#[test]
fn metadata_of_the_wrong_type_or_range_is_named() {
    let (golden, _) = Model::golden("base_llama");
    for (key, value) in [
        ("llama.block_count", Value::String("three".into())),
        ("llama.embedding_length", Value::I32(-64)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Bool(true)),
        ("llama.attention.head_count_kv", Value::Array(Box::new(Array::U32(vec![2, 2, 4])))),
        ("tokenizer.ggml.eos_token_id", Value::U64(1 << 40)),
    ] {
        let mut model = golden.clone();
        model.set(key, value);
        let error = model.error();
        assert!(matches!(&error, Error::Config { key: found, .. } if found == key), "{key}: {error}");
    }
    let mut model = golden;
    model.metadata.remove("llama.block_count");
    let error = model.error();
    assert!(matches!(&error, Error::Config { key, .. } if key == "num_hidden_layers"), "{error}");
}

#[test]
fn head_counts_per_block_are_read_when_they_agree() {
    let folder = tempfile::tempdir().unwrap();
    let (mut model, expected) = Model::golden("base_llama");
    model.set("llama.attention.head_count_kv", Value::Array(Box::new(Array::I32(vec![2, 2, 2]))));
    let source = GgufSource::open(&model.write(folder.path())).unwrap();
    assert_eq!(source.config().num_kv_heads, expected.num_kv_heads);
}

#[test]
fn the_tokenizer_lists_must_fit() {
    let (golden, _) = Model::golden("base_llama");
    let strings = |list: &[&str]| Value::Array(Box::new(Array::String(list.iter().map(|s| s.to_string()).collect())));
    let mut whole = golden.clone();
    whole.set("tokenizer.ggml.model", Value::String("gpt2".into()));
    whole.set("tokenizer.ggml.pre", Value::String("qwen2".into()));
    whole.set("tokenizer.ggml.tokens", strings(&["a", "b", "ab", "<|im_start|>", "<|im_end|>"]));
    whole.set("tokenizer.ggml.token_type", Value::Array(Box::new(Array::I32(vec![1, 1, 1, 3, 3]))));
    whole.set("tokenizer.ggml.merges", strings(&["a b"]));
    whole.set("tokenizer.ggml.eos_token_id", Value::U32(4));
    whole.set("tokenizer.chat_template", Value::String("<|im_start|>{{ messages[0].content }}<|im_end|>".into()));
    let folder = tempfile::tempdir().unwrap();
    let open = |model: &Model| Checkpoint::open(&model.write(folder.path()));
    let checkpoint = open(&whole).unwrap();
    assert_eq!(checkpoint.tokenizer.encode("ab<|im_end|>ba", true).unwrap(), [2, 4, 1, 0]);
    assert_eq!(checkpoint.generation.eos_token_ids, [4]);
    assert!(checkpoint.template.is_some());
    // An end token that the metadata does not name is known by its spelling.
    let mut nameless = whole.clone();
    nameless.metadata.remove("tokenizer.ggml.eos_token_id");
    assert_eq!(open(&nameless).unwrap().generation.eos_token_ids, [4]);
    nameless.set("tokenizer.ggml.eos_token_id", Value::U32(3));
    assert_eq!(open(&nameless).unwrap().generation.eos_token_ids, [3, 4]);

    let damaged = |key: &str, value: Option<Value>| {
        let mut model = whole.clone();
        match value {
            Some(value) => model.set(key, value),
            None => drop(model.metadata.remove(key)),
        }
        open(&model).err().expect("an error").to_string()
    };
    for (key, value, expected) in [
        ("tokenizer.ggml.model", Some(Value::String("llama".into())), "supported: gpt2"),
        ("tokenizer.ggml.pre", Some(Value::String("viking".into())), "tokenizer.ggml.pre: viking"),
        ("tokenizer.ggml.pre", None, "tokenizer.ggml.pre: none given"),
        ("tokenizer.ggml.tokens", None, "`tokenizer.ggml.tokens`: missing"),
        ("tokenizer.ggml.tokens", Some(Value::U32(1)), "not a list of strings"),
        ("tokenizer.ggml.tokens", Some(strings(&["a", "b", "ab", "ab", "x"])), "repeated"),
        ("tokenizer.ggml.merges", Some(strings(&["a"])), "merge 0"),
        ("tokenizer.ggml.merges", Some(strings(&["a z"])), "z"),
        ("tokenizer.ggml.token_type", Some(Value::Array(Box::new(Array::I32(vec![1])))), "1 types for 5 tokens"),
        ("tokenizer.ggml.add_bos_token", Some(Value::Bool(true)), "beginning-of-sequence"),
        ("tokenizer.chat_template", Some(Value::String("{% if %}".into())), "chat template"),
        ("tokenizer.chat_template", Some(Value::String("<|eot_id|>".into())), "<|eot_id|>"),
    ] {
        let error = damaged(key, value);
        assert!(error.contains(expected), "{key}: {error}");
    }
}

#[test]
fn missing_truncated_and_foreign_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere.gguf");
    assert!(matches!(GgufSource::open(&missing), Err(Error::Io { path, .. }) if path == missing));

    let whole = std::fs::read(fixture("quants.gguf")).unwrap();
    for len in [0, 3, 4, 12, 24, 100, whole.len() / 2, whole.len() - 8] {
        let path = folder.path().join("cut.gguf");
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = GgufSource::open(&path).err().unwrap_or_else(|| panic!("{len} bytes open"));
        assert!(error.to_string().contains("cut.gguf"), "{error}");
    }
    let error = GgufSource::from_bytes(b"GGML\x03\0\0\0".to_vec(), "old.bin").err().unwrap();
    assert!(matches!(error, Error::Format { format: "gguf", .. }), "{error}");
}

/// Header fields: magic, version, tensor count, key-value count.
fn header(tensors: u64, pairs: u64) -> Vec<u8> {
    [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat()
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

#[test]
fn absurd_headers_are_errors_not_allocations() {
    let huge = (1_u64 << 60).to_le_bytes();
    let array = |inner: u32, len: u64| [&9_u32.to_le_bytes()[..], &inner.to_le_bytes(), &len.to_le_bytes()].concat();
    let tensor = |dims: &[u64], dtype: u32, offset: u64| {
        let mut info = [text("t"), (dims.len() as u32).to_le_bytes().to_vec()].concat();
        dims.iter().for_each(|d| info.extend(d.to_le_bytes()));
        [info, dtype.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec(), vec![0; 256]].concat()
    };
    let nested = (0..64)
        .fold(Vec::new(), |bytes, _| [bytes, 9_u32.to_le_bytes().to_vec(), 1_u64.to_le_bytes().to_vec()].concat());
    let cases: [(&str, Vec<u8>); 10] = [
        ("tensor count", header(u64::MAX, 0)),
        ("pair count", header(0, u64::MAX)),
        ("key length", [header(0, 1), huge.to_vec()].concat()),
        ("string length", [header(0, 1), text("k"), 8_u32.to_le_bytes().to_vec(), huge.to_vec()].concat()),
        ("array length", [header(0, 1), text("k"), array(4, 1 << 60)].concat()),
        ("string array length", [header(0, 1), text("k"), array(8, 15_000_000)].concat()),
        ("nesting", [header(0, 1), text("k"), 9_u32.to_le_bytes().to_vec(), nested].concat()),
        ("dimensions overflow", [header(1, 0), tensor(&[1 << 40, 1 << 40], 0, 0)].concat()),
        ("too large for the file", [header(1, 0), tensor(&[1 << 30], 0, 0)].concat()),
        ("offset outside", [header(1, 0), tensor(&[4], 0, 1 << 40)].concat()),
    ];
    for (what, bytes) in cases {
        let started = std::time::Instant::now();
        let error = GgufSource::from_bytes(bytes, "hostile.gguf").err().unwrap_or_else(|| panic!("{what} is accepted"));
        assert!(matches!(error, Error::Format { .. }), "{what}: {error}");
        assert!(started.elapsed().as_secs() < 2, "{what} takes {:?}", started.elapsed());
    }
    assert!(largest_allocation() < HUGE, "{} bytes at once", largest_allocation());
    let misaligned = [header(1, 0), tensor(&[4], 0, 1)].concat();
    assert!(GgufSource::from_bytes(misaligned, "hostile.gguf").err().unwrap().to_string().contains("alignment"));
}

#[test]
fn a_tensor_named_twice_is_refused() {
    let whole = std::fs::read(fixture("quants.gguf")).unwrap();
    // The name `Q4_1` becomes a second `Q4_0`.
    let at = whole.windows(4).position(|window| window == b"Q4_1").unwrap();
    let mut bytes = whole;
    bytes[at + 3] = b'0';
    let error = GgufSource::from_bytes(bytes, "twice.gguf").err().unwrap();
    assert!(error.to_string().contains("`Q4_0` is there twice"), "{error}");
}

/// Whatever the bytes, opening and reading end in a value or an error.
fn survive(bytes: Vec<u8>) {
    if let Ok(source) = GgufSource::from_bytes(bytes, "fuzz.gguf") {
        for name in source.names() {
            let _ = source.read_f32(&name);
            if let (Ok(Some(blocks)), Some(shape)) = (source.read_blocks(&name), source.shape(&name)) {
                PackedMatrix::from_blocks(&blocks, shape[0], shape[1]);
            }
        }
        let _ = Checkpoint::from_gguf(source);
    }
    assert!(largest_allocation() < HUGE, "{} bytes at once", largest_allocation());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
        survive([header(1, 1), tail.clone()].concat());
        survive(tail);
    }

    #[test]
    fn mutated_files_never_panic(
        edits in proptest::collection::vec((0_usize..2000, any::<u8>()), 1..4),
        cut in 0_usize..2,
    ) {
        let mut bytes = std::fs::read(fixture("quants.gguf")).unwrap();
        for &(at, value) in &edits {
            bytes[at] = value;
        }
        if cut == 1 {
            bytes.truncate(edits[0].0);
        }
        survive(bytes);
    }
}
