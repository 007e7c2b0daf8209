//! Checkpoints of the authors' PyTorch code, in and out: the whole model's state dict, in which the diffusion path's
//! parameters lie between the base's, or the trained part of it alone.

mod config;
mod names;

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::backend::Backend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use self::config::{ReferenceConfig, ReferenceOverrides, reference_config};
pub use self::names::reference_name;
use super::{PthSource, SafetensorsSource, TensorSource};
use crate::diffusion::{DiffusionPath, Variant};
use crate::error::{Error, Result};
use crate::lm::{HostTensor, Lm, transposed};
use crate::parameters::{parameters, replace_parameters};

/// A tensor that every checkpoint of the reference has.
const LANDMARK: &str = "model.flow_token_embedder.embedder.layers_module.0.weight";
/// A base whose weights are further off than this (root mean square, relative) is another one: 4-bit blocks are off by
/// less than a tenth.
const ANOTHER_BASE: f64 = 0.3;

/// A path from a checkpoint of the reference.
#[derive(Debug)]
pub struct ImportedPath<B: Backend> {
    /// The path.
    pub path: DiffusionPath<B>,
    /// The base's tensor that differs most from the checkpoint's, and by how much: the root mean square of the difference
    /// over that of the tensor. `None` when the checkpoint holds no base weights.
    pub base_difference: Option<(String, f64)>,
}

/// Opens a safetensors file or a file of `torch.save`, whichever it is, or a folder with `model.safetensors` or
/// `pytorch_model.bin`.
///
/// # Errors
/// Neither, or damaged.
pub fn open_state_dict(path: &Path) -> Result<Box<dyn TensorSource>> {
    let bin = path.join("pytorch_model.bin");
    let file = if bin.exists() { bin.as_path() } else { path };
    let is_folder = std::fs::metadata(file).map_err(|e| Error::io(file, e))?.is_dir();
    if !is_folder && PthSource::is_zip(file)? {
        return Ok(Box::new(PthSource::open(file)?));
    }
    Ok(Box::new(SafetensorsSource::open(file)?))
}

/// Reads the diffusion path of a checkpoint of the reference, to be used beside `lm`.
///
/// # Errors
/// A tensor is missing, unknown or of another shape, a setting is neither known nor given, or the checkpoint's base is
/// another one.
pub fn import_reference<B: Backend>(
    source: &dyn TensorSource,
    lm: &Lm<B>,
    config: Option<&ReferenceConfig>,
    overrides: &ReferenceOverrides,
) -> Result<ImportedPath<B>> {
    let names = source.names();
    let missing = |name: &str| Error::MissingTensor { path: source.path().to_path_buf(), name: name.to_string() };
    // Wrappers (`module.` of DistributedDataParallel) put words of their own in front.
    let no_path = || {
        let reason = format!("it has no tensor `{LANDMARK}`; is this a plain model?");
        Error::format(source.path(), "L2D checkpoint", reason)
    };
    let prefix = names.iter().find_map(|name| name.strip_suffix(LANDMARK)).ok_or_else(no_path)?.to_string();
    let config = config::derive(source, &prefix, config, overrides)?;
    let mut unknown: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut read = |name: &str, expected: &[usize]| -> Result<Vec<f32>> {
        let name = format!("{prefix}{name}");
        unknown.remove(name.as_str());
        match source.shape(&name) {
            None => Err(missing(&name)),
            Some(found) if found == expected => source.read_f32(&name),
            Some(found) => {
                Err(Error::Shape { path: source.path().to_path_buf(), name, expected: expected.to_vec(), found })
            }
        }
    };
    // A few small tensors may stand for a path of any size: no more is made than the file can fill.
    read(reference_name("vocabulary.projection.weight").0.as_str(), &[config.dim, lm.config.hidden_size])?;
    let found: usize = names.iter().filter_map(|name| source.shape(name)).map(|s| s.iter().product::<usize>()).sum();
    let wanted = config.parameter_counts(&lm.config).total();
    if wanted > 2 * found + (1 << 20) {
        let reason = format!("a path of its sizes beside this base has {wanted} parameters, its tensors hold {found}");
        return Err(Error::format(source.path(), "L2D checkpoint", reason));
    }
    let fresh = DiffusionPath::init(lm, &config, &mut ChaCha8Rng::seed_from_u64(0));
    let path = replace_parameters(fresh, &mut |name, shape| match (reference_name(name), shape) {
        ((name, true), &[inputs, outputs]) => Ok(transposed(&read(&name, &[outputs, inputs])?, outputs, inputs)),
        ((name, _), shape) => read(&name, shape),
    })?;
    let mut base_difference: Option<(String, f64)> = None;
    let mut failed = None;
    let mut compare = |tensor: HostTensor| -> Result<()> {
        if let Some(alias) = names::alias(&tensor.name) {
            unknown.remove(format!("{prefix}{alias}").as_str());
        }
        let name = format!("{prefix}{}", tensor.name);
        if !unknown.remove(name.as_str()) {
            return Ok(());
        }
        if source.shape(&name).is_some_and(|shape| shape != tensor.shape) {
            let found = source.shape(&name).unwrap_or_default();
            return Err(Error::Shape { path: source.path().to_path_buf(), name, expected: tensor.shape, found });
        }
        let difference = relative_difference(&source.read_f32(&name)?, &tensor.values);
        if base_difference.as_ref().is_none_or(|(_, largest)| difference > *largest || difference.is_nan()) {
            base_difference = Some((tensor.name, difference));
        }
        Ok(())
    };
    lm.export_each(&mut |tensor| {
        if failed.is_none() {
            failed = compare(tensor).err();
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    // A tied head is the embedding again.
    unknown.remove(format!("{prefix}lm_head.weight").as_str());
    unknown.retain(|name| !name.ends_with("rotary_emb.inv_freq"));
    if let Some(name) = unknown.first() {
        return Err(Error::ExtraTensor {
            path: source.path().to_path_buf(),
            name: name.to_string(),
            count: unknown.len(),
        });
    }
    match &base_difference {
        Some((name, difference)) if difference.is_nan() || *difference > ANOTHER_BASE => Err(Error::AdapterMismatch {
            path: source.path().to_path_buf(),
            reason: format!("its `{name}` differs by {:.0} %", 100.0 * difference),
        }),
        _ => Ok(ImportedPath { path, base_difference }),
    }
}

/// Root mean square of `a - b` over that of `b`.
fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| x as f64 * x as f64;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let size: f64 = b.iter().map(|&b| square(b)).sum();
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}

/// A path's parameters as the reference names and lays them out; with `base`, the state dict of the whole model, doubles of
/// the base's layers included, as the reference loads it strictly.
pub fn export_reference<B: Backend>(path: &DiffusionPath<B>, base: Option<&Lm<B>>) -> Vec<HostTensor> {
    let mut all = Vec::new();
    for HostTensor { name, shape, values } in parameters(path) {
        all.push(match (reference_name(&name), &shape[..]) {
            ((name, true), &[inputs, outputs]) => {
                HostTensor { name, shape: vec![outputs, inputs], values: transposed(&values, inputs, outputs) }
            }
            ((name, _), _) => HostTensor { name, shape, values },
        });
    }
    let Some(lm) = base else { return all };
    let low_rank = matches!(path.config.variant, Variant::Lora { .. });
    lm.export_each(&mut |tensor| {
        let double = names::alias(&tensor.name).filter(|_| low_rank);
        all.extend(double.map(|name| HostTensor { name, ..tensor.clone() }));
        if lm.config.tie_word_embeddings && tensor.name == "model.embed_tokens.weight" {
            all.push(HostTensor { name: "lm_head.weight".into(), ..tensor.clone() });
        }
        all.push(tensor);
    });
    all
}
