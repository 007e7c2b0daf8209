//! What the tests of the other crates share: backends, golden numbers, comparisons. Panics on anything unexpected, as
//! tests do.

pub mod models;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The CPU backend the tests run on.
pub type TestBackend = Flex;
/// The same with automatic differentiation.
pub type TestAutodiff = Autodiff<Flex>;

/// The folder of golden numbers: the one `L2D_PARITY` names, else the fixtures in the repository.
pub fn parity_dir() -> PathBuf {
    match std::env::var_os("L2D_PARITY") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../l2d-core/tests/fixtures/parity"),
    }
}

/// One golden tensor; integers are kept as f64, exactly.
#[derive(Debug, Clone)]
pub struct GoldenTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f64>,
}

/// A golden file: `NAME.safetensors` and the `NAME.json` beside it.
#[derive(Debug)]
pub struct Golden {
    /// The json: settings and facts.
    pub info: Value,
    name: String,
    tensors: BTreeMap<String, GoldenTensor>,
}

impl Golden {
    /// Reads `NAME.safetensors` and `NAME.json` of the parity folder.
    pub fn load(name: &str) -> Self {
        let base = parity_dir();
        let bytes = read(&base.join(format!("{name}.safetensors")));
        let info = serde_json::from_slice(&read(&base.join(format!("{name}.json")))).expect("valid json");
        let file = SafeTensors::deserialize(&bytes).expect("valid safetensors");
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let data = view.data();
                let values: Vec<f64> = match view.dtype() {
                    Dtype::F32 => numbers(data, |b: [u8; 4]| f32::from_le_bytes(b) as f64),
                    Dtype::F64 => numbers(data, f64::from_le_bytes),
                    Dtype::I64 => numbers(data, |b: [u8; 8]| i64::from_le_bytes(b) as f64),
                    Dtype::I32 => numbers(data, |b: [u8; 4]| i32::from_le_bytes(b) as f64),
                    other => panic!("{name}: unexpected dtype {other:?}"),
                };
                (name, GoldenTensor { shape: view.shape().to_vec(), values })
            })
            .collect();
        Self { info, name: name.to_string(), tensors }
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> &GoldenTensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.name))
    }

    /// Is there a tensor of that name?
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All names that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// A two-dimensional golden tensor as rows of token ids.
    pub fn token_rows(&self, name: &str) -> Vec<Vec<u32>> {
        let golden = self.get(name);
        let width = *golden.shape.last().expect("two axes");
        golden.values.chunks(width).map(|row| row.iter().map(|&x| x as u32).collect()).collect()
    }
}

impl GoldenTensor {
    /// The values as f32.
    pub fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|&x| x as f32).collect()
    }

    /// As a tensor with all but the last axis flattened: `[rows, width]`.
    pub fn rows<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        let width = *self.shape.last().expect("at least one axis");
        Tensor::from_data(TensorData::new(self.f32(), [self.values.len() / width, width]), device)
    }
}

/// Largest absolute difference; panics when lengths differ or a value is not finite.
pub fn max_difference(found: &[f32], expected: &GoldenTensor) -> f64 {
    assert_eq!(found.len(), expected.values.len(), "number of values");
    found
        .iter()
        .zip(&expected.values)
        .map(|(&a, &b)| {
            assert!(a.is_finite(), "a value is not finite");
            (a as f64 - b).abs()
        })
        .fold(0.0, f64::max)
}

/// What tolerances are multiplied with: the number that `L2D_SLACK` holds, else 1. For devices that compute f32 products in
/// fewer bits.
pub fn slack() -> f64 {
    std::env::var("L2D_SLACK").map_or(1.0, |factor| factor.parse().expect("L2D_SLACK is a number"))
}

/// Asserts that every value lies within `tolerance` of the golden one; see [`slack`].
#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &GoldenTensor, tolerance: f64) {
    let (difference, tolerance) = (max_difference(found, expected), tolerance * slack());
    assert!(difference <= tolerance, "{what}: off by {difference:.3e}, tolerance {tolerance:.1e}");
}

fn numbers<const N: usize>(data: &[u8], convert: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.chunks_exact(N).map(|chunk| convert(chunk.try_into().expect("exact chunk"))).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
