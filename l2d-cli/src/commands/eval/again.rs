//! Answers that were generated earlier are scored again, and the list of tasks.

use std::path::Path;

use l2d_eval::report::{Report, RunReport, TaskReport};
use l2d_eval::rows::{check_count, read_split};
use l2d_eval::task::Profile;
use l2d_eval::tasks::{NAMES, by_name};
use l2d_eval::{Journal, Rescoring, RunResult, RunSettings, Task, Tools, rescore};
use serde_json::Value;

use super::identity::description_in;
use super::kept::{Earlier, Kept, kept_in};
use super::label::labels;
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
        let model = description_in(&args.folder, &kept.name)?.unwrap_or_default();
        let earlier = Earlier::of(&kept, std::slice::from_ref(&args.folder));
        score(&args.folder, &args.answers, &kept, model, &earlier, &mut bars)?;
    }
    bars.draw(&args.folder)
}

/// Judges the samples of one task in a folder, keeps what is new of that in the journal and writes the report. `earlier` is what
/// was reported of the same samples.
pub(super) fn score(
    folder: &Path,
    answers: &AnswersArgs,
    kept: &Kept,
    model: Value,
    earlier: &Earlier,
    bars: &mut Bars,
) -> Result<(), CliError> {
    let scoring = &answers.scoring;
    let profile: Profile = scoring.profile.parse()?;
    let published = super::published(scoring)?;
    let path = kept.journal_in(folder);
    let mut journal = Journal::open(&path)?;
    let (mut task, environment) = kept.equipped(scoring)?;
    let asked = |settings: &Value| -> [Option<u64>; 2] {
        ["shots", "max_new_tokens"].map(|what| settings["asked"][what].as_u64())
    };
    let first = journal.records().first().map(|record| asked(&record.settings));
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
    let Rescoring { runs, rows: counted, changed } = rescore(task.as_ref(), &rows, journal.records(), &path)?;
    journal.append(&changed)?;
    let mut runs: Vec<(RunSettings, RunResult)> = runs.into_iter().map(|run| (run.settings, run.result)).collect();
    for (settings, result) in &mut runs {
        result.interrupted |= earlier.stopped(settings, result.samples.len());
        bars.extend(task.name(), settings, result);
    }
    let asked_otherwise = runs.iter().any(|(settings, _)| Some(asked(&settings.generation)) != first);
    let hash = earlier.prompt_hash(task.as_ref(), &counted).filter(|_| !asked_otherwise);
    let described = TaskReport {
        asked_otherwise,
        ..TaskReport::new(task.as_ref(), profile, earlier.rows(counted), hash.as_deref(), &files)
    };
    let report = Report::new(described, model, reports(task.as_ref(), profile, &runs)).in_environment(environment);
    outputs::write(folder, &report, published.as_ref(), true)
}

/// A report of each run, by names that tell them apart.
pub(super) fn reports<'a>(
    task: &dyn Task,
    profile: Profile,
    runs: &'a [(RunSettings, RunResult)],
) -> Vec<(RunReport, &'a RunResult)> {
    let settings: Vec<(&Value, &RunResult)> =
        runs.iter().map(|(settings, result)| (&settings.generation, result)).collect();
    let labelled = labels(&settings).into_iter().zip(runs);
    labelled
        .map(|(label, (settings, result))| (RunReport::new(task, profile, label, settings, result), result))
        .collect()
}
