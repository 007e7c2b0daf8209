//! `l2d eval compare`: two evaluations, or two runs of one, question by question.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use l2d_eval::RunResult;
use l2d_eval::journal::{self, Record};
use l2d_eval::metric::{Judged, PairedDifference};
use l2d_eval::report::describe_difference;
use serde_json::Value;

use super::kept::{Kept, kept_in};
use super::label::{labels, with_version};
use crate::args::CompareArgs;
use crate::error::CliError;
use crate::output::say;

/// Runs the command.
pub(super) fn run(args: &CompareArgs) -> Result<(), CliError> {
    let mut compared = 0;
    for kept in kept_in(&args.first, args.tasks.as_deref())? {
        let name = &kept.name;
        let second = kept.journal_in(&args.second);
        if !second.exists() {
            continue;
        }
        let metric = match &args.metric {
            Some(metric) => metric.clone(),
            None => quoted(&args.first, name)?,
        };
        let (first, second) = (runs(&args.first, &kept)?, runs(&args.second, &kept)?);
        for (place, (a, first)) in first.iter().enumerate() {
            // Of one evaluation each pair once.
            for (b, second) in second.iter().skip(if args.first == args.second { place + 1 } else { 0 }) {
                let of = |records: &[Record]| -> Result<Vec<Judged>, CliError> {
                    let judged = records.iter().map(|record| {
                        let score = record.scores.get(&metric)?;
                        Some(Judged { question: record.row, correct: score.correct })
                    });
                    let all: Option<Vec<Judged>> = judged.collect();
                    all.ok_or_else(|| {
                        CliError::Usage(format!(
                            "{name}: not every sample has a `{metric}`: run `l2d eval rescore` first"
                        ))
                    })
                };
                asked_the_same(name, first, second)?;
                let (first, second) = (of(first)?, of(second)?);
                let questions =
                    |judged: &[Judged]| judged.iter().map(|judged| judged.question).collect::<BTreeSet<_>>().len();
                let (of_first, of_second) = (questions(&first), questions(&second));
                let Some(difference) = PairedDifference::of_common(first, second) else {
                    say!("{name} {metric}: {a} and {b} have no question in common")?;
                    continue;
                };
                let common = match difference.questions == of_first && difference.questions == of_second {
                    true => String::new(),
                    false => format!(" (in common of {of_first} and {of_second})"),
                };
                say!("{name} {metric}: {}{common}", describe_difference(a, b, &difference))?;
                compared += 1;
            }
        }
    }
    if compared == 0 {
        return Err(CliError::Usage(format!(
            "nothing to compare: {} and {} have no task in common, or no question of one",
            args.first.display(),
            args.second.display()
        )));
    }
    Ok(())
}

/// Rows are compared by number: they must be the same rows.
fn asked_the_same(task: &str, first: &[Record], second: &[Record]) -> Result<(), CliError> {
    let questions: BTreeMap<usize, &str> = first.iter().map(|record| (record.row, &*record.question)).collect();
    match second.iter().find(|record| questions.get(&record.row).is_some_and(|asked| *asked != record.question)) {
        None => Ok(()),
        Some(record) => Err(CliError::Usage(format!(
            "{task}: row {} is another question in the one than in the other: they were not asked of the same data",
            record.row
        ))),
    }
}

/// The samples of a task in a folder by the run they belong to, with its name.
fn runs(folder: &Path, kept: &Kept) -> Result<Vec<(String, Vec<Record>)>, CliError> {
    // Of several answers to one sample, by a version of the task that records did not name yet, the last counts.
    let mut records: BTreeMap<(String, u64), BTreeMap<(usize, usize), Record>> = BTreeMap::new();
    for record in journal::read(&kept.journal_in(folder))? {
        let settings = with_version(&record.settings, record.version);
        let run = records.entry((settings.to_string(), record.seed)).or_default();
        run.insert((record.row, record.sample), record);
    }
    let runs: Vec<Vec<Record>> = records.into_values().map(|samples| samples.into_values().collect()).collect();
    let none = RunResult { samples: Vec::new(), interrupted: false };
    let settings: Vec<(Value, &RunResult)> =
        runs.iter().map(|samples| (with_version(&samples[0].settings, samples[0].version), &none)).collect();
    let mut names = Vec::new();
    for (label, samples) in labels(&settings).into_iter().zip(&runs) {
        let guidance = label.guidance.map_or_else(String::new, |strength| format!(", guidance {strength}"));
        let steps = match samples[0].settings["diffusion"]["adaptive"].is_null() {
            true => label.steps.to_string(),
            false => "adaptive".into(),
        };
        names.push(format!("{}/{} at {steps}{guidance}, seed {}", folder.display(), label.series, samples[0].seed));
    }
    let mut named: Vec<_> = names.into_iter().zip(runs).collect();
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(named)
}

/// The metric that a task's report quotes.
fn quoted(folder: &Path, task: &str) -> Result<String, CliError> {
    let path = folder.join(format!("{task}.json"));
    let text = std::fs::read_to_string(&path).map_err(|e| CliError::io(&path, e))?;
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let headline = report["task"]["headline"].as_str().map(str::to_owned);
    headline.ok_or_else(|| CliError::Usage(format!("{} quotes no metric: name one with --metric", path.display())))
}
