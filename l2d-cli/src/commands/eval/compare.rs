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
    let mut unlike = None;
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
                if let Some(row) = asked_otherwise(first, second) {
                    unlike = Some(format!(
                        "{name}: row {row} of {a} is another question than that of {b}: they were not asked of the same data, or by \
                         the same version of the task"
                    ));
                    continue;
                }
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
    match unlike {
        Some(reason) if compared == 0 => return Err(CliError::Usage(reason)),
        Some(reason) => eprintln!("not compared: {reason}"),
        None => {}
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

/// Rows are compared by number: the first that is not the same question in both.
fn asked_otherwise(first: &[Record], second: &[Record]) -> Option<usize> {
    let questions: BTreeMap<usize, &str> = first.iter().map(|record| (record.row, &*record.question)).collect();
    let other = |record: &&Record| questions.get(&record.row).is_some_and(|asked| *asked != record.question);
    second.iter().find(other).map(|record| record.row)
}

/// The samples of a task in a folder by the run they belong to, with its name.
fn runs(folder: &Path, kept: &Kept) -> Result<Vec<(String, Vec<Record>)>, CliError> {
    // Of several answers to one sample, by a version of the task that records did not name yet, the last counts.
    let mut records: BTreeMap<(String, u64), BTreeMap<(usize, usize), Record>> = BTreeMap::new();
    let all = journal::read(&kept.journal_in(folder))?;
    let newest = all.iter().filter_map(|record| record.version).max();
    let several = all.iter().any(|record| record.version.is_some() && record.version != newest);
    // Records of before they named a version are taken for the newest's.
    let version = |record: &Record| record.version.or(newest).filter(|_| several);
    for record in all {
        let settings = with_version(&record.settings, version(&record));
        let run = records.entry((settings.to_string(), record.seed)).or_default();
        run.insert((record.row, record.sample), record);
    }
    let runs: Vec<Vec<Record>> = records.into_values().map(|samples| samples.into_values().collect()).collect();
    let none = RunResult { samples: Vec::new(), interrupted: false };
    let settings: Vec<(Value, &RunResult)> =
        runs.iter().map(|samples| (with_version(&samples[0].settings, version(&samples[0])), &none)).collect();
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
