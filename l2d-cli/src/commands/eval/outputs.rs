//! The files of an evaluation: results as JSON, markdown and CSV, charts as SVG and PNG.

use std::path::Path;

use l2d_core::checkpoint::write_atomically;
use l2d_eval::plot::AccuracyPlot;
use l2d_eval::report::{Published, Report};

use crate::error::CliError;
use crate::output::say;

/// Writes a report's files beside its samples and prints its table.
pub(super) fn write(folder: &Path, report: &Report, published: Option<&Published>) -> Result<(), CliError> {
    let name = &report.task.name;
    let save = |extension: &str, text: &str| {
        write_atomically(&folder.join(format!("{name}.{extension}")), |out| out.write_all(text.as_bytes()))
    };
    let markdown = match published {
        Some(published) => report.to_markdown_beside(published),
        None => report.to_markdown(),
    };
    save("json", &report.to_json()?)?;
    save("md", &markdown)?;
    save("csv", &report.to_csv()?)?;
    charts(folder, report)?;
    say!("{markdown}")?;
    Ok(())
}

fn charts(folder: &Path, report: &Report) -> Result<(), CliError> {
    let name = &report.task.name;
    let title = format!("{name}: accuracy against diffusion steps");
    AccuracyPlot::from_runs(title, "accuracy, %", &report.runs).draw()?.save(&folder.join(name))?;
    Ok(())
}
