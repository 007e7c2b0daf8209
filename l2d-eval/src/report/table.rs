//! Tables of a report: markdown that lines up as plain text, and CSV.

use std::fmt::Write;

use super::{Published, Report, RunReport};
use crate::error::{Error, Result};
use crate::metric::{PairedDifference, Proportion};
use crate::runner::RowCounts;

/// A column beside ours.
struct Beside<'a> {
    name: &'a str,
    cells: Vec<Option<f64>>,
}

pub(super) fn markdown(report: &Report, published: Option<&Published>) -> String {
    let task = &report.task;
    let RowCounts { in_split, official, rows, shots, too_long, without_answer, questions, shard } = task.rows;
    let mut text = format!("## {} (version {})\n\n", task.name, task.version);
    let beside: Vec<Beside<'_>> = published
        .into_iter()
        .map(|published| Beside {
            name: &published.name,
            cells: report.runs.iter().map(|run| published.score(&task.name, run.label.steps)).collect(),
        })
        .collect();
    text.push_str(&table(&report.runs, &beside));
    let _ = write!(text, "\n{questions} of {rows} rows asked");
    for (count, why) in
        [(too_long, "too long"), (without_answer, "without an answer"), (shots, "left out as they are shots")]
    {
        if count > 0 {
            let _ = write!(text, ", {count} {why}");
        }
    }
    if let Some(shard) = shard {
        let _ = write!(text, " (part {shard})");
    }
    if in_split > rows {
        let _ = write!(text, " (the split has {in_split})");
    }
    let otherwise = if task.asked_otherwise { " in the first run, the others as their names say" } else { "" };
    let _ = write!(text, "; {} shots, at most {} new tokens{otherwise}", task.shots, task.max_new_tokens);
    if let Some(hash) = &task.prompt_hash {
        let _ = write!(text, "; prompts {hash}");
    }
    text.push('.');
    if let Some(official) = official.filter(|official| *official != in_split) {
        let _ = write!(
            text,
            "\n**The split has {in_split} rows here and {official} as published: these numbers are of another data set.**"
        );
    }
    let _ = write!(text, "\nProfile `{}` quotes {}.", task.profile.name(), task.headline);
    text.push_str(" ± is the standard error, clustered by question.");
    for metric in &task.metrics {
        let _ = write!(text, " {} ({}): {}.", metric.name, metric.profile.name(), metric.description);
    }
    text.push_str(" evaluations/token: the closing one and that of the plain LM at t = 0 included.");
    if report.runs.iter().any(|run| !run.pass_at_k.is_empty()) {
        let _ = write!(text, " pass@k: by {}, unbiased.", task.headline);
    }
    for run in report.runs.iter().filter(|run| run.cut_off_rate > 0.0) {
        let share = 100.0 * run.cut_off_rate;
        let _ = write!(text, "\n{share:.1} % of the answers of {} were cut off at the most tokens.", run.title());
    }
    for run in &report.runs {
        let answered = run.accuracy().map_or(0, |accuracy| accuracy.questions);
        if answered > 0 && answered < questions {
            let _ = write!(text, "\n{} answered {answered} of the {questions} questions.", run.title());
        }
    }
    for comparison in &report.comparisons {
        text.push('\n');
        text.push_str(&describe_difference(&comparison.first, &comparison.second, &comparison.difference));
        text.push('.');
    }
    if let Some(published) = published {
        let _ = write!(text, "\n{}: {}.", published.name, published.source);
    }
    if report.runs.iter().any(|run| run.interrupted) {
        text.push_str(" * called off early.");
    }
    text.push('\n');
    text
}

/// One row a run: steps, every metric with its standard error in percent, pass@k, how many keep the answer's format, speed.
/// Series, guidance and seed have a column only where they differ.
pub fn markdown_table(runs: &[RunReport]) -> String {
    table(runs, &[])
}

fn table(runs: &[RunReport], beside: &[Beside<'_>]) -> String {
    let Some(first) = runs.first() else { return String::new() };
    let several = runs.iter().any(|run| run.label.series != first.label.series);
    let guided = runs.iter().any(|run| run.label.guidance != first.label.guidance);
    let seeds = runs.iter().any(|run| run.settings.seed != first.settings.seed);
    let longest = runs.iter().max_by_key(|run| run.metrics.len()).map(|run| &run.metrics);
    let names: Vec<&str> = longest.into_iter().flatten().map(|metric| metric.name.as_str()).collect();
    let passes: Vec<usize> = [5, 10].into_iter().filter(|k| runs.iter().any(|run| run.pass_at(*k).is_some())).collect();

    let mut header: Vec<String> = Vec::new();
    if several {
        header.push("series".to_owned());
    }
    header.push("steps".to_owned());
    if guided {
        header.push("guidance".to_owned());
    }
    if seeds {
        header.push("seed".to_owned());
    }
    header.extend(names.iter().map(|name| format!("{name} %")));
    header.extend(passes.iter().map(|k| format!("pass@{k} %")));
    header.extend(beside.iter().map(|column| format!("{} %", column.name)));
    header.extend(["format %", "samples", "evaluations/token", "tokens/s"].map(str::to_owned));

    let none = || "–".to_owned();
    let mut rows = vec![header];
    for (index, run) in runs.iter().enumerate() {
        let mut cells = Vec::new();
        if several {
            cells.push(run.label.series.clone());
        }
        cells.push(format!("{}{}", run.label.steps, if run.interrupted { "*" } else { "" }));
        if guided {
            cells.push(run.label.guidance.map_or_else(none, |strength| strength.to_string()));
        }
        if seeds {
            cells.push(run.settings.seed.to_string());
        }
        for name in &names {
            let value = run.metrics.iter().find(|metric| metric.name == *name).map(|metric| metric.value);
            cells.push(value.map_or_else(none, percent));
        }
        for k in &passes {
            cells.push(run.pass_at(*k).map_or_else(none, |pass| with_error(pass.mean, pass.standard_error)));
        }
        for column in beside {
            cells.push(column.cells[index].map_or_else(none, |percent| format!("{percent:.1}")));
        }
        cells.push(format!("{:.1}", 100.0 * run.format_rate));
        cells.push(run.samples.to_string());
        cells.push(run.evaluations_per_token.map_or_else(none, |n| format!("{n:.2}")));
        cells.push(run.tokens_per_second.map_or_else(none, |n| format!("{n:.1}")));
        rows.push(cells);
    }
    align(&rows, usize::from(several))
}

/// One line for each metric of each run, pass@k among them, in [0, 1].
pub(super) fn csv(report: &Report) -> Result<String> {
    let failed = |error: csv::Error| Error::Csv(error.to_string());
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record([
        "task",
        "version",
        "series",
        "steps",
        "guidance",
        "seed",
        "metric",
        "profile",
        "value",
        "standard_error",
        "low_95",
        "high_95",
        "samples",
        "questions",
        "format_rate",
        "evaluations_per_token",
        "tokens_per_second",
    ])
    .map_err(failed)?;
    let number = |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
    let task = &report.task;
    for run in &report.runs {
        let mut write =
            |metric: &str, profile: &str, value: f64, error: Option<f64>, range: Option<[f64; 2]>, n: usize| {
                out.write_record([
                    &task.name,
                    &task.version.to_string(),
                    &run.label.series,
                    &run.label.steps.to_string(),
                    &number(run.label.guidance),
                    &run.settings.seed.to_string(),
                    metric,
                    profile,
                    &value.to_string(),
                    &number(error),
                    &number(range.map(|range| range[0])),
                    &number(range.map(|range| range[1])),
                    &run.samples.to_string(),
                    &n.to_string(),
                    &run.format_rate.to_string(),
                    &number(run.evaluations_per_token),
                    &number(run.tokens_per_second),
                ])
                .map_err(failed)
            };
        let questions = run.metrics.first().map_or(0, |metric| metric.value.questions);
        for metric in &run.metrics {
            let profile = task.metrics.iter().find(|known| known.name == metric.name);
            let profile = profile.map_or("", |metric| metric.profile.name());
            let Proportion { mean, standard_error, wilson_95, questions, .. } = metric.value;
            write(&metric.name, profile, mean, standard_error, Some(wilson_95), questions)?;
        }
        for pass in &run.pass_at_k {
            write(&format!("pass@{}", pass.k), task.profile.name(), pass.mean, pass.standard_error, None, questions)?;
        }
    }
    let bytes = out.into_inner().map_err(|error| Error::Csv(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| Error::Csv(error.to_string()))
}

/// One line on how much better `first` is than `second`.
pub fn describe_difference(first: &str, second: &str, difference: &PairedDifference) -> String {
    let mut text = format!("{first} − {second}: {:+.1} points", 100.0 * difference.difference);
    if let Some(error) = difference.standard_error {
        let _ = write!(text, " ± {:.1}", 100.0 * error);
    }
    if let Some([low, high]) = difference.interval_95 {
        let _ = write!(text, " (95 %: {:+.1} to {:+.1})", 100.0 * low, 100.0 * high);
    }
    let PairedDifference { first_better, second_better, questions, .. } = difference;
    let _ = write!(text, ", better on {first_better} and worse on {second_better} of {questions} questions");
    text
}

fn percent(value: Proportion) -> String {
    with_error(value.mean, value.standard_error)
}

fn with_error(mean: f64, error: Option<f64>) -> String {
    match error {
        Some(error) => format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * error),
        None => format!("{:.1}", 100.0 * mean),
    }
}

/// A markdown table whose columns also line up as plain text; all but the first `left` columns are right-aligned.
fn align(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows[0].len();
    let escape = |cell: &str| cell.replace('|', "\\|").replace('\n', " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    let width: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(width[column] - cell.chars().count());
            let _ = if column < left { write!(text, "| {cell}{pad} ") } else { write!(text, "| {pad}{cell} ") };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in width.iter().enumerate() {
                let _ = if column < left {
                    write!(text, "|:{} ", "-".repeat(*width))
                } else {
                    write!(text, "| {}:", "-".repeat(*width))
                };
            }
            text.push_str("|\n");
        }
    }
    text
}
