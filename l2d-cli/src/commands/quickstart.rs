//! pending
use crate::arithmetic::{Split, problems, write_jsonl};
use crate::error::CliError;
pub(crate) fn run<B: burn::tensor::backend::Backend>(args: &crate::args::QuickstartArgs) -> Result<(), CliError> {
    let Some(folder) = &args.export_data else { return Err(CliError::Usage("quickstart is not built yet".into())) };
    export(folder, args.seed)
}
fn export(folder: &std::path::Path, seed: u64) -> Result<(), CliError> {
    std::fs::create_dir_all(folder).map_err(|e| CliError::io(folder, e))?;
    for (name, split, count) in [("train.jsonl", Split::Train, 60_000), ("test.jsonl", Split::Test, 1000)] {
        let rows = problems(split, count, seed);
        l2d_core::checkpoint::write_atomically(&folder.join(name), |out| {
            let mut b = std::io::BufWriter::new(out);
            write_jsonl(&rows, &mut b)?;
            use std::io::Write;
            b.flush()
        })?;
    }
    Ok(())
}
