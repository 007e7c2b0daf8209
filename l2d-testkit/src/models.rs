//! The models that the golden numbers were made with.

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{TensorSource, reference_name};
use l2d_core::config::LmConfig;
use l2d_core::diffusion::{DiffusionConfig, DiffusionPath, RawDiffusionConfig, Variant};
use l2d_core::error::{Error, Result};
use l2d_core::lm::Lm;
use l2d_core::parameters::replace_parameters;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{Golden, parity_dir};

/// The base LMs of the parity set.
pub const BASE_FOLDERS: [&str; 2] = ["base_llama", "base_qwen2"];

/// A tiny base LM in a folder of the parity set, e.g. `base_llama`.
pub fn golden_lm<B: Backend>(folder: &str, device: &B::Device) -> Lm<B> {
    golden_lm_within(folder, device, None)
}

/// The same for a device whose largest tensor has so many bytes.
pub fn golden_lm_within<B: Backend>(folder: &str, device: &B::Device, largest: Option<usize>) -> Lm<B> {
    let path = parity_dir().join(folder).join("config.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let config = LmConfig::from_json(&text, &path).expect("a valid config");
    let source = GoldenSource::open(&parity_dir().join(folder).join("model.safetensors"));
    Lm::load_within(&config, &source, device, largest).expect("the golden base loads")
}

/// The base and the diffusion path of an `l2d_*` file.
pub fn golden_l2d<B: Backend>(golden: &Golden, device: &B::Device) -> (Lm<B>, DiffusionPath<B>) {
    let lm = golden_lm(golden.info["base_model_folder"].as_str().expect("base_model_folder"), device);
    let config = golden_config(golden);
    let path = DiffusionPath::init(&lm, &config, &mut ChaCha8Rng::seed_from_u64(0));
    (
        lm,
        golden_path(path, |name, transposed| {
            let tensor = golden.get(&format!("param/{name}"));
            (tensor.f32(), tensor.shape.clone(), transposed)
        }),
    )
}

/// Fills a path from a lookup by the reference's names. `lookup(name, transposed)` returns values and stored shape.
pub fn golden_path<B: Backend>(
    path: DiffusionPath<B>,
    lookup: impl Fn(&str, bool) -> (Vec<f32>, Vec<usize>, bool),
) -> DiffusionPath<B> {
    replace_parameters(path, &mut |name, shape| {
        let (reference, transpose) = reference_name(name);
        let (values, stored, _) = lookup(&reference, transpose);
        let values = if transpose {
            assert_eq!(stored, [shape[1], shape[0]], "{name}");
            transposed(&values, stored[0], stored[1])
        } else {
            assert_eq!(stored, shape, "{name}");
            values
        };
        Ok(values)
    })
    .expect("the lookup is infallible")
}

/// The hyper-parameters an `l2d_*` file was made with.
pub fn golden_config(golden: &Golden) -> DiffusionConfig {
    let flow = &golden.info["flow_config"];
    let size = |key: &str| flow[key].as_u64().unwrap_or_else(|| panic!("flow_config.{key}")) as usize;
    let number = |key: &str| flow[key].as_f64().unwrap_or_else(|| panic!("flow_config.{key}"));
    let variant = if flow["separate_flow_params_with_lora"].as_bool() == Some(true) {
        Variant::Lora { rank: size("flow_lora_rank"), alpha: number("flow_lora_alpha") }
    } else {
        Variant::Full
    };
    let classes = flow["guidance_modulation_num_classes"].as_u64().unwrap_or(0);
    RawDiffusionConfig {
        dim: size("flow_representation_dim"),
        translation_hidden: Some(size("flow_to_lm_hidden_size")),
        conditioning: size("timestep_modulation_hidden_size"),
        time_features: size("timestep_modulation_freq_embedding_size"),
        sigma: number("noise_rescaling"),
        variant,
        classes: (0..classes).map(|i| format!("class{i}")).collect(),
    }
    .check(Path::new("flow_config"))
    .expect("a valid config")
}

/// The transpose of a row-major matrix.
pub fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| values[(i % rows) * columns + i / rows]).collect()
}

/// A safetensors file of f32 tensors read whole; independent of the readers under test.
struct GoldenSource {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl GoldenSource {
    fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path: path.to_path_buf(), bytes }
    }

    fn file(&self) -> safetensors::SafeTensors<'_> {
        safetensors::SafeTensors::deserialize(&self.bytes).expect("valid safetensors")
    }
}

impl TensorSource for GoldenSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(str::to_string).collect();
        names.sort();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file().tensor(name).ok().map(|view| view.shape().to_vec())
    }

    fn dtype(&self, name: &str) -> Option<String> {
        self.file().tensor(name).ok().map(|view| format!("{:?}", view.dtype()))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let file = self.file();
        let view =
            file.tensor(name).map_err(|_| Error::MissingTensor { path: self.path.clone(), name: name.to_string() })?;
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "golden weights are f32");
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect())
    }
}
