//! What a run is called, from the settings its journal holds: the same whether it was just generated or is scored again.

use l2d_eval::RunResult;
use l2d_eval::report::RunLabel;
use serde_json::Value;

/// The label of a run with these settings.
pub(super) fn label(generation: &Value, result: &RunResult) -> RunLabel {
    let diffusion = &generation["diffusion"];
    let mut series = if generation["model"].get("adapter").is_some() { "L2D" } else { "base" }.to_owned();
    if let Some(solver) = diffusion["adaptive"]["solver"].as_str() {
        series.push_str(&format!(", {solver}"));
    }
    if let Some(beams) = generation["beam"]["hypotheses"].as_u64() {
        series.push_str(&format!(", {beams} beams"));
    }
    let steps = match (&diffusion["adaptive"], diffusion["evaluations"].as_u64()) {
        (Value::Null, Some(count)) => count as usize,
        (Value::Null, None) => 1,
        _ => taken(result),
    };
    let guided = steps > 1 && generation.get("class").is_some();
    RunLabel { series, steps, guidance: diffusion["guidance"].as_f64().filter(|_| guided) }
}

/// The evaluations a token that an adaptive solver took on average.
fn taken(result: &RunResult) -> usize {
    let sum = |of: fn(&l2d_eval::Completion) -> usize| -> usize {
        result.samples.iter().map(|sample| of(&sample.completion)).sum()
    };
    let (evaluations, tokens) = (sum(|completion| completion.evaluations), sum(|completion| completion.tokens));
    (evaluations as f64 / tokens.max(1) as f64).round().max(1.0) as usize
}

#[cfg(test)]
mod tests {
    use l2d_infer::decode::{AdaptiveSteps, BeamParams, DiffusionParams};
    use l2d_infer::ode::{AdaptiveParams, AdaptiveSolver};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_is_called_by_what_was_asked_for() {
        let none = RunResult { samples: Vec::new(), interrupted: false };
        let named = |generation: Value| label(&generation, &none);
        let params = DiffusionParams { evaluations: 15, guidance: 2.0, ..DiffusionParams::default() };
        let generation = json!({ "model": {"adapter": "ab"}, "diffusion": params });
        assert_eq!(named(generation.clone()), RunLabel { series: "L2D".into(), steps: 15, guidance: None });
        let mut guided = generation;
        guided["class"] = json!("math");
        guided["beam"] = json!(BeamParams { hypotheses: 4, ..BeamParams::default() });
        assert_eq!(named(guided), RunLabel { series: "L2D, 4 beams".into(), steps: 15, guidance: Some(2.0) });
        let solver = AdaptiveSolver::Dopri5;
        let adaptive = Some(AdaptiveSteps { solver, tolerance: AdaptiveParams::default(), as_reference: None });
        let params = DiffusionParams { adaptive, ..DiffusionParams::default() };
        let adaptive = named(json!({ "model": {"adapter": "ab"}, "diffusion": params }));
        assert_eq!((adaptive.series, adaptive.steps), (format!("L2D, {solver}"), 1));
        assert_eq!(named(json!({ "model": {} })).series, "base");
    }
}
