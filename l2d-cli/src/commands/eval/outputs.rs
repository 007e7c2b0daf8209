//! The files of an evaluation: results as JSON, markdown and CSV, charts as SVG and PNG.

use std::path::Path;

use l2d_core::checkpoint::write_atomically;
use l2d_eval::plot::{AccuracyPlot, CurvePlot, EvaluationsBar, EvaluationsPlot};
use l2d_eval::report::{Published, Report};
use l2d_eval::{RunResult, RunSettings};

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

/// The evaluations a token that adaptive solvers took on each task.
#[derive(Debug, Default)]
pub(super) struct Bars(Vec<(String, EvaluationsBar)>);

impl Bars {
    /// Takes a run in, if its solver is adaptive: of several with one solver on a task the first.
    pub(super) fn extend(&mut self, task: &str, settings: &RunSettings, result: &RunResult) {
        let Some(solver) = settings.generation["diffusion"]["adaptive"]["solver"].as_str() else { return };
        if !self.0.iter().any(|(known, bar)| known == solver && bar.label == task) {
            self.0.extend(EvaluationsBar::of(task, result).map(|bar| (solver.to_owned(), bar)));
        }
    }

    /// Draws them beside the paper's fixed budget; nothing where no solver was adaptive.
    pub(super) fn draw(self, folder: &Path) -> Result<(), CliError> {
        let Some((first, _)) = self.0.first() else { return Ok(()) };
        let one = self.0.iter().all(|(solver, _)| solver == first);
        let who = if one { format!("{first}: ") } else { String::new() };
        let title = format!("{who}evaluations per token, task by task");
        let named = |(solver, bar): (String, EvaluationsBar)| match one {
            true => bar,
            false => EvaluationsBar { label: format!("{}, {solver}", bar.label), ..bar },
        };
        let bars = self.0.into_iter().map(named).collect();
        EvaluationsPlot { title, bars, budget: Some(15.0) }.draw()?.save(&folder.join("evaluations"))?;
        Ok(())
    }
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
