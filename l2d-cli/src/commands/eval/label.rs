//! What runs are called, from the settings their journal holds: the same whether they were just generated or are scored again.

use std::collections::{BTreeMap, BTreeSet};

use l2d_eval::RunResult;
use l2d_eval::report::RunLabel;
use serde_json::Value;

/// One label for each of several runs, from their settings. Where steps and guidance do not tell two apart, the settings that do
/// are added to the series: `L2D, shots 5`. Seeds are no part of a label.
pub(super) fn labels(runs: &[(Value, &RunResult)]) -> Vec<RunLabel> {
    let plain: Vec<RunLabel> = runs.iter().map(|(generation, result)| label(generation, result)).collect();
    let mut labels = plain.clone();
    for first in 0..runs.len() {
        let group: Vec<usize> = (0..runs.len()).filter(|&other| plain[other] == plain[first]).collect();
        if group[0] != first || group.len() == 1 {
            continue;
        }
        let settings: Vec<BTreeMap<String, String>> = group.iter().map(|&run| leaves(&runs[run].0)).collect();
        let keys: BTreeSet<&String> = settings.iter().flat_map(BTreeMap::keys).collect();
        let differs = |key: &&String| settings.iter().any(|other| other.get(*key) != settings[0].get(*key));
        let differing: Vec<&String> = keys.into_iter().filter(differs).collect();
        let mut given: Vec<(&BTreeMap<String, String>, String)> = Vec::new();
        for (&run, settings) in group.iter().zip(&settings) {
            let shown: String = differing.iter().map(|key| shown(key, settings.get(*key))).collect();
            let mut series = format!("{}{shown}", labels[run].series);
            // What was shortened may have become alike.
            let alike = given.iter().filter(|(other, name)| *other != settings && *name == series).count();
            let own = given.iter().find(|(other, _)| *other == settings).map(|(_, name)| name.clone());
            if alike > 0 {
                series.push_str(&format!(" ({})", alike + 1));
            }
            let series = own.unwrap_or(series);
            given.push((settings, series.clone()));
            labels[run].series = series;
        }
    }
    labels
}

/// A setting in a name. Of a hash the beginning.
fn shown(key: &str, value: Option<&String>) -> String {
    const HASH: usize = 12;
    let name = key.rsplit('.').next().unwrap_or(key).replace('_', " ");
    let value = value.map_or("none", String::as_str);
    let hash = value.len() > 2 * HASH && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    format!(", {name} {}", if hash { &value[..HASH] } else { value })
}

/// Settings with the version of the task that asked, where there are several.
pub(super) fn with_version(settings: &Value, version: Option<u32>) -> Value {
    let mut settings = settings.clone();
    if let (Value::Object(parts), Some(version)) = (&mut settings, version) {
        parts.insert("version".to_owned(), version.into());
    }
    settings
}

/// The settings in which two runs differ, in words; empty where they are the same.
pub(super) fn difference(first: &Value, second: &Value) -> String {
    let (first, second) = (leaves(first), leaves(second));
    let keys: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let differs = |key: &&String| first.get(*key) != second.get(*key);
    let written = |key: &String| {
        let there = second.get(key).map_or("none", String::as_str);
        format!("{}, there {there}", shown(key, first.get(key)).trim_start_matches(", "))
    };
    keys.into_iter().filter(differs).map(written).collect::<Vec<_>>().join("; ")
}

/// The values in a document by their paths, `sampling.temperature`.
fn leaves(value: &Value) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
        match value {
            Value::Null => {}
            Value::Object(parts) => {
                for (name, part) in parts {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(&path, part, found);
                }
            }
            Value::String(text) => drop(found.insert(path.to_owned(), text.clone())),
            other => drop(found.insert(path.to_owned(), other.to_string())),
        }
    }
    let mut found = BTreeMap::new();
    walk("", value, &mut found);
    found
}

/// The label of a run with these settings.
fn label(generation: &Value, result: &RunResult) -> RunLabel {
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

    #[test]
    fn settings_that_no_column_shows_are_in_the_name() {
        let none = RunResult { samples: Vec::new(), interrupted: false };
        let asked = |shots: usize, temperature: f64| {
            json!({
                "asked": {"shots": shots}, "model": {"adapter": "ab"}, "diffusion": DiffusionParams::default(),
                "sampling": {"temperature": temperature},
            })
        };
        let named = |settings: &[Value]| -> Vec<String> {
            let runs: Vec<_> = settings.iter().map(|settings| (settings.clone(), &none)).collect();
            labels(&runs).into_iter().map(|label| label.series).collect()
        };
        assert_eq!(named(&[asked(5, 1.0), asked(5, 1.0)]), ["L2D", "L2D"], "their seeds have a column");
        assert_eq!(named(&[asked(5, 1.0), asked(0, 1.0)]), ["L2D, shots 5", "L2D, shots 0"]);
        let (five, none) = ("L2D, shots 5, temperature 1.0", "L2D, shots 0, temperature 0.5");
        assert_eq!(named(&[asked(5, 1.0), asked(0, 0.5), asked(5, 1.0)]), [five, none, five]);
        let hashed = |end: &str| json!({ "model": {"adapter": format!("0123456789abcdef0123456789abcd{end}")} });
        let named = named(&[hashed("ef"), hashed("aa"), hashed("ef")]);
        assert_eq!(named, ["L2D, adapter 0123456789ab", "L2D, adapter 0123456789ab (2)", "L2D, adapter 0123456789ab"]);
        let backend = |name: &str| json!({ "model": {"backend": name} });
        assert_eq!(
            difference(&backend("fusion<cubecl<cuda>>"), &backend("flex")),
            "backend fusion<cubecl<cuda>>, there flex"
        );
    }
}
