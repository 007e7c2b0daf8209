//! The files of an evaluation: results as JSON, markdown and CSV, charts as SVG and PNG.

use std::path::Path;

use l2d_core::checkpoint::write_atomically;
use l2d_eval::plot::{AccuracyPlot, CurvePlot, EvaluationsBar, EvaluationsPlot};
use l2d_eval::report::{Published, Report};

use crate::error::CliError;
use crate::output::say;

/// Writes a report's files beside its samples and, if `aloud`, prints its table.
pub(super) fn write(
    folder: &Path,
    report: &Report,
    published: Option<&Published>,
    aloud: bool,
) -> Result<(), CliError> {
    let name = &report.task.name;
    let save = |extension: &str, text: &str| {
        write_atomically(&folder.join(format!("{name}.{extension}")), |out| out.write_all(text.as_bytes()))
    };
    let markdown = match published {
        Some(published) => report.to_markdown_beside(published),
        None => report.to_markdown(),
    };
    write_json(folder, report)?;
    save("md", &markdown)?;
    save("csv", &report.to_csv()?)?;
    charts(folder, report)?;
    if aloud {
        say!("{markdown}")?;
    }
    Ok(())
}

/// Writes a report as JSON alone: it has no scores yet.
pub(super) fn write_json(folder: &Path, report: &Report) -> Result<(), CliError> {
    let (path, text) = (folder.join(format!("{}.json", report.task.name)), report.to_json()?);
    Ok(write_atomically(&path, |out| out.write_all(text.as_bytes()))?)
}

/// Draws the evaluations a token that an adaptive solver took on each task, beside the paper's fixed budget.
pub(super) fn evaluations(folder: &Path, solver: &str, bars: Vec<EvaluationsBar>) -> Result<(), CliError> {
    if bars.is_empty() {
        return Ok(());
    }
    let title = format!("{solver}: evaluations per token, task by task");
    EvaluationsPlot { title, bars, budget: Some(15.0) }.draw()?.save(&folder.join("evaluations"))?;
    Ok(())
}

fn charts(folder: &Path, report: &Report) -> Result<(), CliError> {
    let name = &report.task.name;
    let runs = &report.runs;
    let title = format!("{name}: {} against diffusion steps", report.task.headline);
    AccuracyPlot::from_runs(title, format!("{}, %", report.task.headline), runs).draw()?.save(&folder.join(name))?;
    let others = [
        ("guidance", CurvePlot::guidance(format!("{name}: guidance"), runs)),
        ("along-t", CurvePlot::along_time(format!("{name}: along the diffusion of each token"), runs)),
        ("best-of", CurvePlot::best_of(format!("{name}: best of N"), runs)),
    ];
    for (ending, plot) in others {
        let path = folder.join(format!("{name}-{ending}"));
        match plot {
            Some(plot) => drop(plot.draw()?.save(&path)?),
            // One of an earlier report would pass for this one's.
            None => ["svg", "png"].iter().for_each(|format| drop(std::fs::remove_file(path.with_extension(format)))),
        }
    }
    Ok(())
}
