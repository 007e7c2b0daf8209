//! The loss curves of runs, drawn from their `metrics.jsonl`.

use std::path::Path;

use l2d_eval::plot::{LossPlot, LossScale, LossSeries};
use serde_json::Value;

use crate::args::{CurveKind, PlotLossesArgs};
use crate::error::CliError;

/// Draws `loss.svg` and `loss.png` into a run's folder: the training loss, the validation loss, and, where there is
/// diffusion, the validation loss at its latest times. A run too short to have a curve gets none.
pub(crate) fn plot(run: &Path) -> Result<(), CliError> {
    let rows = metrics(run)?;
    let series: Vec<LossSeries> = [CurveKind::Training, CurveKind::Validation, CurveKind::Late]
        .into_iter()
        .map(|kind| LossSeries { label: kind.label().into(), points: kind.points(&rows) })
        .filter(|series| series.points.len() > 1)
        .collect();
    if series.is_empty() {
        return Ok(());
    }
    draw("Loss, nats per labelled token", series, &run.join("loss"))
}

/// `l2d plot losses`: the curves of several runs in one figure.
pub(crate) fn overlay(args: &PlotLossesArgs) -> Result<(), CliError> {
    if !args.labels.is_empty() && args.labels.len() != args.runs.len() {
        return Err(CliError::Usage(format!(
            "--labels names {} of {} runs: name each, or none",
            args.labels.len(),
            args.runs.len()
        )));
    }
    let mut series = Vec::new();
    for (index, run) in args.runs.iter().enumerate() {
        let folder = || run.file_name().map_or_else(|| run.display().to_string(), |n| n.to_string_lossy().into_owned());
        let name = args.labels.get(index).cloned().unwrap_or_else(folder);
        let rows = metrics(run)?;
        for kind in &args.curves {
            let points = kind.points(&rows);
            if points.is_empty() {
                return Err(CliError::Usage(format!(
                    "{} holds no {} loss: choose others with --curves",
                    run.join("metrics.jsonl").display(),
                    kind.label()
                )));
            }
            // What all curves have in common need not be said of each.
            let label = if args.curves.len() > 1 { format!("{name}, {}", kind.label()) } else { name.clone() };
            series.push(LossSeries { label, points });
        }
    }
    let stem = match args.out.extension().and_then(|extension| extension.to_str()) {
        Some("svg" | "png") => args.out.with_extension(""),
        _ => args.out.clone(),
    };
    draw(&args.title, series, &stem)
}

fn draw(title: &str, series: Vec<LossSeries>, stem: &Path) -> Result<(), CliError> {
    let positive = series.iter().flat_map(|series| &series.points).all(|&(_, loss)| loss > 0.0);
    let scale = if positive { LossScale::Log } else { LossScale::Linear };
    LossPlot { title: title.into(), series, scale }.draw()?.save(stem)?;
    Ok(())
}

fn metrics(run: &Path) -> Result<Vec<Value>, CliError> {
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| CliError::io(&path, e))?;
    // The last line of a run that is being written, or was killed, may be cut off.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

impl CurveKind {
    fn label(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Validation => "validation",
            Self::Late => "validation at t > 0.9",
        }
    }

    fn points(self, rows: &[Value]) -> Vec<(usize, f64)> {
        let kind = if self == Self::Training { "train" } else { "validation" };
        let read = |row: &Value| match self {
            Self::Training | Self::Validation => row["loss"].as_f64(),
            Self::Late => row["by_timestep"].as_array()?.last()?.as_f64(),
        };
        rows.iter()
            .filter(|row| row["kind"] == kind)
            .filter_map(|row| Some((row["step"].as_u64()? as usize, read(row)?)))
            .collect()
    }
}
