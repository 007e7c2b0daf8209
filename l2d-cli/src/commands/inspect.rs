//! `l2d inspect`: what a file is, from its header and config alone where that suffices.

use std::collections::BTreeMap;
use std::path::Path;

use l2d_core::checkpoint::{AdapterInfo, SafetensorsSource, TensorSource, inspect_adapter, is_adapter, open_weights};
use l2d_core::config::{LmConfig, RopeScaling};
use l2d_core::diffusion::{RawDiffusionConfig, Variant};

use crate::args::InspectArgs;
use crate::error::CliError;
use crate::output::say;

/// Runs the command. Given a model and an adapter, it also says whether the two fit, and fails when they do not.
pub(crate) fn run(args: &InspectArgs) -> Result<(), CliError> {
    let mut models = Vec::new();
    let mut adapters = Vec::new();
    for path in &args.paths {
        if !is_lone_safetensors(path) {
            models.push((path, print_model(path, args.tensors)?));
        } else {
            let source = SafetensorsSource::open(path)?;
            if is_adapter(&source) {
                let info = inspect_adapter(path)?;
                print_adapter(path, &info, args.tensors)?;
                adapters.push((path, info));
            } else {
                print_other(path, &source, args.tensors)?;
            }
        }
        say!("")?;
    }
    for (file, info) in &adapters {
        for (model, config) in &models {
            fit(model, config, file, info)?;
        }
    }
    Ok(())
}

/// A safetensors file by itself: an adapter, or weights whose config is elsewhere.
fn is_lone_safetensors(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "safetensors")
}

fn print_model(path: &Path, tensors: bool) -> Result<LmConfig, CliError> {
    let (config, source) = open_weights(path)?;
    say!("{}", path.display())?;
    row("kind", "base language model")?;
    row("family", config.family.model_type())?;
    row("parameters", grouped(config.num_parameters()))?;
    row("blocks", format!("{} of width {}, MLP {}", config.num_layers, config.hidden_size, config.intermediate_size))?;
    row(
        "attention",
        format!("{} query heads, {} key/value heads of {}", config.num_heads, config.num_kv_heads, config.head_dim),
    )?;
    row("vocabulary", format!("{}{}", config.vocab_size, if config.tie_word_embeddings { ", tied head" } else { "" }))?;
    row("context", format!("{} positions, rope base {}{}", config.max_positions, config.rope_theta, scaling(&config)))?;
    row("tensors", stored(source.as_ref()))?;
    let raw = RawDiffusionConfig::default();
    let counts = raw.check(path)?.parameter_counts(&config);
    row("L2D would train", format!("{} parameters (LoRA rank 32, d = 256)", grouped(counts.total())))?;
    if tensors {
        print_tensors(source.as_ref())?;
    }
    Ok(config)
}

/// Weights without a config: what can be said of them.
fn print_other(path: &Path, source: &SafetensorsSource, tensors: bool) -> Result<(), CliError> {
    say!("{}", path.display())?;
    row("kind", "safetensors weights, no L2D adapter; for a model give the folder that also holds its config.json")?;
    let shapes = source.names().into_iter().filter_map(|name| source.shape(&name));
    row("parameters", grouped(shapes.map(|shape| shape.iter().product::<usize>()).sum()))?;
    row("tensors", stored(source))?;
    let metadata: BTreeMap<_, _> = source.metadata().iter().collect();
    for (key, value) in metadata {
        row(key, value)?;
    }
    if tensors {
        print_tensors(source)?;
    }
    Ok(())
}

/// How many tensors, of which number formats.
fn stored(source: &dyn TensorSource) -> String {
    let names = source.names();
    let mut dtypes = BTreeMap::<String, usize>::new();
    for name in &names {
        *dtypes.entry(source.dtype(name).unwrap_or_else(|| "unknown".into())).or_default() += 1;
    }
    let dtypes: Vec<String> = dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    format!("{} ({})", names.len(), dtypes.join(", "))
}

fn print_tensors(source: &dyn TensorSource) -> Result<(), CliError> {
    for name in source.names() {
        let (shape, dtype) = (source.shape(&name).unwrap_or_default(), source.dtype(&name).unwrap_or_default());
        say!("    {name}  {shape:?}  {dtype}")?;
    }
    Ok(())
}

fn print_adapter(path: &Path, info: &AdapterInfo, tensors: bool) -> Result<(), CliError> {
    say!("{}", path.display())?;
    row("kind", "L2D adapter (diffusion path)")?;
    row("belongs to", &info.base.description)?;
    row("parameters", grouped(info.num_parameters()))?;
    let config = &info.config;
    row("diffusion", format!("d = {}, sigma = {}, conditioning {}", config.dim, config.sigma, config.conditioning))?;
    row(
        "variant",
        match config.variant {
            Variant::Lora { rank, alpha } => format!("LoRA, rank {rank}, alpha {alpha}"),
            Variant::Full => "full copies of the base's layers".into(),
            Variant::Scratch => "layers of its own, from scratch".into(),
        },
    )?;
    row("guidance", if config.classes.is_empty() { "none".into() } else { config.classes.join(", ") })?;
    for (key, value) in &info.notes {
        row(key, value)?;
    }
    if tensors {
        for (name, shape) in &info.tensors {
            say!("    {name}  {shape:?}")?;
        }
    }
    Ok(())
}

/// Compares architecture and weights; for the latter the model must be loaded, on the CPU.
fn fit(model: &Path, config: &LmConfig, file: &Path, info: &AdapterInfo) -> Result<(), CliError> {
    let base = crate::backend::fingerprint(model, config)?;
    match info.mismatch(&base) {
        None => {
            say!("{} fits {}", file.display(), model.display())
        }
        Some(reason) => Err(l2d_core::Error::AdapterMismatch { path: file.to_path_buf(), reason }.into()),
    }
}

fn row(key: &str, value: impl AsRef<str>) -> Result<(), CliError> {
    say!("  {key:<16}{}", value.as_ref())
}

fn scaling(config: &LmConfig) -> String {
    match config.rope_scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Llama3 { factor, .. } => format!(", llama3 scaling by {factor}"),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(73_344_256), "73,344,256");
    }
}
