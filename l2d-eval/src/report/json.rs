//! The report as JSON, with the keys by which readers of lm-evaluation-harness's result files find theirs.

use serde_json::{Map, Value, json};

use super::{Report, RunReport, TaskReport};
use crate::error::Result;

/// Our fields, and `results`, `configs`, `versions`, `n-shot`, `n-samples`, `higher_is_better`, `task_hashes`, `model_name`
/// and `total_evaluation_time_seconds` as lm-evaluation-harness writes them. A task that was run with several settings has
/// one entry for each in `results`, under `TASK@SETTING`; the first is there under the task's bare name as well. A metric that
/// lm-evaluation-harness has by another name is there by both.
pub(super) fn document(report: &Report) -> Result<Value> {
    let mut document = serde_json::to_value(report)?;
    let task = &report.task;
    let mut results = Map::new();
    let several = report.runs.iter().any(|run| run.label.series != report.runs[0].label.series);
    for (index, run) in report.runs.iter().enumerate() {
        let entry = metrics(task, run);
        if index == 0 {
            results.insert(task.name.clone(), entry.clone());
        }
        if report.runs.len() > 1 {
            results.insert(format!("{}@{}", task.name, setting(run, several)), entry);
        }
    }
    let higher: Map<String, Value> = task.metrics.iter().map(|metric| (metric.name.clone(), json!(true))).collect();
    let name = &task.name;
    let first = report.runs.first();
    let ours = [
        ("results", Value::Object(results)),
        (
            "configs",
            json!({ name: {
                "task": name,
                "dataset_path": task.data_set,
                "test_split": task.split,
                "fewshot_split": task.shot_split,
                "num_fewshot": task.shots,
                "output_type": first.map_or("generate_until", |run| output_type(run)),
                "repeats": first.map(|run| run.settings.samples),
                "generation_kwargs": { "until": task.stop_strings, "max_gen_toks": task.max_new_tokens },
                "metadata": { "version": task.version },
            }}),
        ),
        ("versions", json!({ name: task.version })),
        ("n-shot", json!({ name: task.shots })),
        ("n-samples", json!({ name: { "original": task.rows.in_split, "effective": task.rows.questions } })),
        ("higher_is_better", json!({ name: higher })),
        ("task_hashes", json!({ name: task.prompt_hash })),
        ("model_name", report.model.get("name").cloned().unwrap_or_default()),
        ("total_evaluation_time_seconds", json!(report.runs.iter().map(|run| run.seconds).sum::<f64>())),
    ];
    if let Value::Object(document) = &mut document {
        document.extend(ours.into_iter().map(|(key, value)| (key.to_owned(), value)));
    }
    Ok(document)
}

fn output_type(run: &RunReport) -> &'static str {
    if run.settings.generation.get("likelihood").is_some() { "multiple_choice" } else { "generate_until" }
}

fn setting(run: &RunReport, several: bool) -> String {
    let series = if several { format!("{},", run.label.series) } else { String::new() };
    let guidance = run.label.guidance.map_or_else(String::new, |strength| format!(",guidance={strength}"));
    format!("{series}steps={}{guidance},seed={}", run.label.steps, run.settings.seed)
}

/// `NAME,none` (and lm-evaluation-harness's own key) and `NAME_stderr,none` for each metric, `pass@k` by the metric to quote.
fn metrics(task: &TaskReport, run: &RunReport) -> Value {
    let mut entry = Map::new();
    entry.insert("alias".to_owned(), task.name.clone().into());
    let error = |error: Option<f64>| error.map_or_else(|| "N/A".into(), Value::from);
    for metric in &run.metrics {
        let ours = format!("{},none", metric.name);
        let known = task.metrics.iter().find(|known| known.name == metric.name);
        for key in known.and_then(|known| known.harness_key.clone()).into_iter().chain([ours]) {
            // `exact_match,strict-match` has its error as `exact_match_stderr,strict-match`.
            let (name, filter) = key.split_once(',').unwrap_or((&key, "none"));
            entry.insert(format!("{name}_stderr,{filter}"), error(metric.value.standard_error));
            entry.insert(key, metric.value.mean.into());
        }
    }
    for pass in &run.pass_at_k {
        entry.insert(format!("pass@{},none", pass.k), pass.mean.into());
        entry.insert(format!("pass@{}_stderr,none", pass.k), error(pass.standard_error));
    }
    Value::Object(entry)
}
