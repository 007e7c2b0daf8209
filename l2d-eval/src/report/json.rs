//! The report as JSON, with the keys by which readers of lm-evaluation-harness's result files find theirs.

use serde_json::{Map, Value, json};

use super::{Report, RunReport};
use crate::error::Result;

/// Our fields, and `results`, `configs`, `versions`, `n-shot`, `n-samples`, `higher_is_better`, `task_hashes`, `model_name`
/// and `total_evaluation_time_seconds` as lm-evaluation-harness writes them. A task that was run with several settings has
/// one entry for each in `results`, under `TASK@SETTING`; the first is there under the task's bare name as well.
pub(super) fn document(report: &Report) -> Result<Value> {
    let mut document = serde_json::to_value(report)?;
    let task = &report.task;
    let mut results = Map::new();
    for (index, run) in report.runs.iter().enumerate() {
        let entry = metrics(&task.name, run);
        if index == 0 {
            results.insert(task.name.clone(), entry.clone());
        }
        if report.runs.len() > 1 {
            results.insert(format!("{}@{}", task.name, setting(run)), entry);
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

fn setting(run: &RunReport) -> String {
    let guidance = run.label.guidance.map_or_else(String::new, |strength| format!(",guidance={strength}"));
    format!("steps={}{guidance},seed={}", run.label.steps, run.settings.seed)
}

/// `NAME,none` and `NAME_stderr,none` for each metric, `pass@k` by the metric to quote.
fn metrics(task: &str, run: &RunReport) -> Value {
    let mut entry = Map::new();
    entry.insert("alias".to_owned(), task.into());
    let error = |error: Option<f64>| error.map_or_else(|| "N/A".into(), Value::from);
    for metric in &run.metrics {
        entry.insert(format!("{},none", metric.name), metric.value.mean.into());
        entry.insert(format!("{}_stderr,none", metric.name), error(metric.value.standard_error));
    }
    for pass in &run.pass_at_k {
        entry.insert(format!("pass@{},none", pass.k), pass.mean.into());
        entry.insert(format!("pass@{}_stderr,none", pass.k), error(pass.standard_error));
    }
    Value::Object(entry)
}
