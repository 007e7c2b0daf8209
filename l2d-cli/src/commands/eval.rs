//! pending
pub(crate) fn run<B: burn::tensor::backend::Backend>(
    _args: &crate::args::EvalArgs,
) -> Result<(), crate::error::CliError> {
    Err(crate::error::CliError::Usage("eval is not built yet".into()))
}
