//! Answers that were generated earlier are scored again, and the list of tasks.

use std::collections::BTreeSet;
use std::path::Path;

use l2d_eval::report::{Report, RunReport, TaskReport};
use l2d_eval::rows::{check_count, read_split};
use l2d_eval::task::Profile;
use l2d_eval::tasks::{NAMES, by_name};
use l2d_eval::{Asked, Journal, Rescored, RunResult, RunSettings, Task, Tools, asked, rescore};
use serde_json::Value;

use super::identity::owner_in;
use super::kept::{Kept, kept_in};
use super::label::{labels, with_version};
use super::outputs::{self, Bars};
use crate::args::{AnswersArgs, RescoreArgs};
use crate::error::CliError;
use crate::output::say;

/// `l2d eval tasks`.
pub(super) fn list() -> Result<(), CliError> {
    for name in NAMES {
        let task = by_name(name, &Tools::default())?;
        let data = task.data_set().map_or_else(|| "a file of yours".to_owned(), |data_set| data_set.to_string());
        let rows = task.official_rows().map_or_else(String::new, |rows| format!(", {rows} rows"));
        let metrics: Vec<&str> = task.metrics().iter().map(|metric| &*metric.name).collect();
        let (shots, metrics) = (task.shots(), metrics.join(", "));
        say!("{name:<20} {data}, {}{rows}; {shots} shots; {metrics}", task.split())?;
    }
    say!("\nA task of your own is a .toml file (docs/evaluation.md); --likelihood scores the multiple-choice tasks.")
}

/// `l2d eval rescore`.
pub(super) fn rescore_folder(args: &RescoreArgs) -> Result<(), CliError> {
    let mut bars = Bars::default();
    for kept in kept_in(&args.folder, args.answers.tasks.as_deref())? {
        let model = owner_in(&args.folder, &kept.name)?;
        score(&args.folder, &args.answers, &kept, model, &mut bars)?;
    }
    bars.draw(&args.folder)
}

/// Judges the samples of one task in a folder, keeps what is new of that in the journal and writes the report.
pub(super) fn score(
    folder: &Path,
    answers: &AnswersArgs,
    kept: &Kept,
    model: Value,
    bars: &mut Bars,
) -> Result<(), CliError> {
    let scoring = &answers.scoring;
    let profile: Profile = scoring.profile.parse()?;
    let published = super::published(scoring)?;
    let path = kept.journal_in(folder);
    let mut journal = Journal::open(&path)?;
    let asked = kept.asked_in(folder)?;
    let (mut task, environment) = kept.equipped(scoring)?;
    let how = |settings: &Value| -> [Option<u64>; 2] {
        ["shots", "max_new_tokens"].map(|what| settings["asked"][what].as_u64())
    };
    let first = journal.records().first().map(|record| how(&record.settings));
    if let Some([shots, tokens]) = first {
        if let Some(shots) = shots {
            task.set_shots(shots as usize)?;
        }
        if let Some(tokens) = tokens {
            task.set_max_new_tokens(tokens as usize);
        }
    }
    let data = super::data_of(&answers.data, task.as_ref())?;
    let (rows, files) = read_split(&data, task.as_ref(), task.split())?;
    if let Err(error) = check_count(task.as_ref(), rows.len()) {
        tracing::warn!("{error}");
    }
    let scored = rescore(task.as_ref(), &rows, journal.records(), &asked, &path)?;
    journal.append(&scored.changed)?;
    if scored.left_out > 0 {
        eprintln!(
            "{}: {} answers are to other questions than version {} of the task asks, and left out",
            kept.name,
            scored.left_out,
            task.version()
        );
    }
    for run in &scored.runs {
        bars.extend(task.name(), &run.settings, &run.result);
    }
    // The counts are those of the largest run; the hash stands where it is that of all.
    let of_runs: Vec<_> = scored
        .runs
        .iter()
        .filter_map(|run| {
            let version = run.version.unwrap_or(task.version());
            let own: Vec<&Asked> =
                asked.iter().filter(|asked| asked.is_of(&run.settings) && asked.version == version).collect();
            asked::counts(&own)
        })
        .collect();
    let largest = of_runs.iter().max_by_key(|(counts, _)| counts.questions);
    let whole = largest.filter(|(counts, _)| counts.questions >= scored.rows.questions);
    let counts = whole.map_or(scored.rows, |(counts, _)| *counts);
    let hashes: BTreeSet<&Option<String>> = of_runs.iter().map(|(_, hash)| hash).collect();
    let of_all = whole.is_some() && hashes.len() == 1 && of_runs.len() == scored.runs.len();
    let hash = hashes.first().copied().filter(|_| of_all).cloned().flatten();
    let asked_otherwise = scored.runs.iter().any(|run| Some(how(&run.settings.generation)) != first);
    let described =
        TaskReport { asked_otherwise, ..TaskReport::new(task.as_ref(), profile, counts, hash.as_deref(), &files) };
    let several = scored.runs.iter().any(|run| run.version.is_some());
    let version = |run: &Rescored| several.then(|| run.version.unwrap_or(task.version()));
    let versions: Vec<Option<u32>> = scored.runs.iter().map(version).collect();
    let runs: Vec<(RunSettings, RunResult)> = scored.runs.into_iter().map(|run| (run.settings, run.result)).collect();
    let reports = reports_of(task.as_ref(), profile, &runs, &versions);
    let report = Report::new(described, model, reports).in_environment(environment);
    outputs::write(folder, &report, published.as_ref(), true)
}

/// A report of each run, by names that tell them apart.
pub(super) fn reports<'a>(
    task: &dyn Task,
    profile: Profile,
    runs: &'a [(RunSettings, RunResult)],
) -> Vec<(RunReport, &'a RunResult)> {
    reports_of(task, profile, runs, &vec![None; runs.len()])
}

/// The same, of runs of several versions of the task, where there are several.
fn reports_of<'a>(
    task: &dyn Task,
    profile: Profile,
    runs: &'a [(RunSettings, RunResult)],
    versions: &[Option<u32>],
) -> Vec<(RunReport, &'a RunResult)> {
    let named = |((settings, result), version): (&'a (RunSettings, RunResult), &Option<u32>)| {
        (with_version(&settings.generation, *version), result)
    };
    let settings: Vec<(Value, &RunResult)> = runs.iter().zip(versions).map(named).collect();
    let labelled = labels(&settings).into_iter().zip(runs);
    labelled
        .map(|(label, (settings, result))| (RunReport::new(task, profile, label, settings, result), result))
        .collect()
}
