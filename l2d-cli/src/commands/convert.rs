//! `l2d convert`: models from one format into another.

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::StoredDtype;

use crate::args::ConvertMergeArgs;
use crate::error::CliError;
use crate::export::export_model;
use crate::model::load_base;

/// Runs `l2d convert merge`.
pub(crate) fn merge<B: Backend>(args: &ConvertMergeArgs) -> Result<(), CliError> {
    if args.out.join("config.json").exists() {
        return Err(CliError::Usage(format!("--out {}: there is a model already", args.out.display())));
    }
    let (lm, text) = load_base::<B>(&args.model, args.lora.as_deref(), &Device::<B>::default(), false)?;
    export_model(&args.out, &lm, &text, if args.f16 { StoredDtype::F16 } else { StoredDtype::F32 })?;
    eprintln!("wrote {}", args.out.display());
    Ok(())
}
