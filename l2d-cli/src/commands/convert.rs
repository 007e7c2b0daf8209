//! `l2d convert`: models and adapters from one format into another.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{
    BaseFingerprint, Checkpoint, ReferenceConfig, ReferenceOverrides, StoredDtype, export_reference, import_reference,
    load_adapter, open_state_dict, reference_config, save_adapter, write_atomically, write_tensors,
};
use l2d_core::lm::Lm;

use crate::args::{ConvertMergeArgs, FromPytorchArgs, ToPytorchArgs};
use crate::error::CliError;
use crate::export::export_model;
use crate::model::load_base;

/// Runs `l2d convert merge`.
pub(crate) fn merge<B: Backend>(args: &ConvertMergeArgs, device: &Device<B>) -> Result<(), CliError> {
    if args.out.join("config.json").exists() {
        return Err(CliError::Usage(format!("--out {}: there is a model already", args.out.display())));
    }
    let (lm, text) = load_base::<B>(&args.model, args.lora.as_deref(), device, false)?;
    export_model(&args.out, &lm, &text, stored(args.f16))?;
    eprintln!("wrote {}", args.out.display());
    Ok(())
}

/// Runs `l2d convert from-pytorch`.
pub(crate) fn from_pytorch<B: Backend>(args: &FromPytorchArgs, device: &Device<B>) -> Result<(), CliError> {
    refuse_existing(&args.out)?;
    let config = args.config.as_deref().map(ReferenceConfig::read).transpose()?;
    let source = open_state_dict(&args.checkpoint)?;
    let lm = load_lm::<B>(&args.model, device)?;
    let overrides = ReferenceOverrides { sigma: args.sigma, alpha: args.alpha, classes: args.classes.clone() };
    let imported = import_reference(source.as_ref(), &lm, config.as_ref(), &overrides)?;
    match &imported.base_difference {
        None => eprintln!("the checkpoint holds the trained part alone: whether --model is its base was not checked"),
        Some((_, 0.0)) => eprintln!("the checkpoint's base is --model, number for number"),
        Some((name, difference)) => eprintln!(
            "the checkpoint's base differs from --model by up to {:.2} % ({name}): rounded otherwise, or finetuned",
            100.0 * difference
        ),
    }
    let notes = BTreeMap::from([("converted_from".to_string(), args.checkpoint.display().to_string())]);
    save_adapter(&args.out, &imported.path, &BaseFingerprint::of(&lm), &notes, StoredDtype::F32)?;
    eprintln!("wrote {}", args.out.display());
    Ok(())
}

/// Runs `l2d convert to-pytorch`.
pub(crate) fn to_pytorch<B: Backend>(args: &ToPytorchArgs, device: &Device<B>) -> Result<(), CliError> {
    let settings = args.out.with_extension("json");
    if settings == args.out {
        let reason = "the settings are written beside it as .json; name it .safetensors";
        return Err(CliError::Usage(format!("--out {}: {reason}", args.out.display())));
    }
    refuse_existing(&args.out)?;
    refuse_existing(&settings)?;
    let lm = load_lm::<B>(&args.model, device)?;
    let path = load_adapter(&args.adapter, &lm)?;
    let tensors = export_reference(&path, args.whole.then_some(&lm));
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    write_tensors(&args.out, &tensors, &metadata, stored(args.f16))?;
    let config = reference_config(&path.config);
    write_atomically(&settings, |out| writeln!(out, "{config:#}"))?;
    eprintln!("wrote {} and {}", args.out.display(), settings.display());
    Ok(())
}

/// A base as its file has it, in f32.
fn load_lm<B: Backend>(model: &Path, device: &Device<B>) -> Result<Lm<B>, CliError> {
    let checkpoint = Checkpoint::open(model)?;
    Ok(Lm::load(&checkpoint.config, checkpoint.tensors.as_ref(), device)?.no_grad())
}

fn refuse_existing(file: &Path) -> Result<(), CliError> {
    if file.exists() {
        return Err(CliError::Usage(format!("--out {}: there is a file already", file.display())));
    }
    Ok(())
}

fn stored(f16: bool) -> StoredDtype {
    if f16 { StoredDtype::F16 } else { StoredDtype::F32 }
}
