//! The loss curve of a run, drawn from its `metrics.jsonl`.

use std::path::Path;

use l2d_eval::plot::{LossPlot, LossScale, LossSeries};
use serde_json::Value;

use crate::error::CliError;

/// Draws `loss.svg` and `loss.png` into a run's folder: the training loss, the validation loss, and, where there is
/// diffusion, the validation loss at its latest times. A run too short to have a curve gets none.
pub(crate) fn plot(run: &Path) -> Result<(), CliError> {
    let path = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| CliError::io(&path, e))?;
    let rows: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |kind: &str, read: &dyn Fn(&Value) -> Option<f64>| -> Vec<(usize, f64)> {
        rows.iter()
            .filter(|row| row["kind"] == kind)
            .filter_map(|row| Some((row["step"].as_u64()? as usize, read(row)?)))
            .collect()
    };
    let loss = |row: &Value| row["loss"].as_f64();
    let late = |row: &Value| row["by_timestep"].as_array()?.last()?.as_f64();
    let series: Vec<LossSeries> = [
        ("training", of("train", &loss)),
        ("validation", of("validation", &loss)),
        ("validation at t > 0.9", of("validation", &late)),
    ]
    .into_iter()
    .filter(|(_, points)| points.len() > 1)
    .map(|(label, points)| LossSeries { label: label.into(), points })
    .collect();
    if series.is_empty() {
        return Ok(());
    }
    let title = "Loss, nats per labelled token".to_string();
    let positive = series.iter().flat_map(|series| &series.points).all(|&(_, loss)| loss > 0.0);
    let scale = if positive { LossScale::Log } else { LossScale::Linear };
    LossPlot { title, series, scale }.draw()?.save(&run.join("loss"))?;
    Ok(())
}
