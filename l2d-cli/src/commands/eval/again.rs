//! What is done with evaluations that were run: scoring again, putting parts together, comparing, and the list of tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use l2d_core::checkpoint::write_atomically;
use l2d_eval::journal::{self, Record};
use l2d_eval::likelihood::ByLikelihood;
use l2d_eval::metric::{Judged, PairedDifference};
use l2d_eval::report::{Report, RunReport, TaskReport, describe_difference};
use l2d_eval::rows::{check_count, read_split};
use l2d_eval::runner::RowCounts;
use l2d_eval::task::Profile;
use l2d_eval::tasks::{NAMES, by_name};
use l2d_eval::{Journal, Rescoring, RunResult, Task, Tools, rescore};
use serde_json::Value;

use super::identity::{description_in, same_model, title};
use super::label::label;
use super::{outputs, tools};
use crate::args::{AnswersArgs, CompareArgs, MergeArgs, RescoreArgs, ScoringArgs};
use crate::error::CliError;
use crate::output::say;

/// What journals end in.
pub(super) const SAMPLES: &str = ".samples.jsonl";

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
    for name in names(&args.folder, args.answers.tasks.as_deref())? {
        let model = description_in(&args.folder, file_name(&name))?.unwrap_or_default();
        let earlier = rows_in(std::slice::from_ref(&args.folder), file_name(&name));
        score(&args.folder, &args.answers, &name, model, earlier)?;
    }
    Ok(())
}

/// `l2d eval merge`.
pub(super) fn merge(args: &MergeArgs) -> Result<(), CliError> {
    put_together(args, false)
}

/// The same; `again` where an earlier whole is replaced, of which the parts have become more.
pub(super) fn put_together(args: &MergeArgs, again: bool) -> Result<(), CliError> {
    let mut all = Vec::new();
    for part in &args.parts {
        all.extend(names(part, args.answers.tasks.as_deref())?);
    }
    all.sort_unstable();
    all.dedup();
    for name in all {
        let mut model: Option<Value> = None;
        let mut records: Vec<Record> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let out = journal_in(&args.out, &name);
        // What an earlier whole holds, of other settings or another number of ranks, stays.
        let earlier = (again && out.exists()).then_some(&args.out);
        for part in earlier.into_iter().chain(&args.parts) {
            let path = journal_in(part, &name);
            if !path.exists() {
                return Err(CliError::Usage(format!(
                    "{} is not there: every part must hold every task, or name tasks with --tasks",
                    path.display()
                )));
            }
            let of = description_in(part, file_name(&name))?;
            match (&model, of) {
                (Some(first), Some(of)) if !same_model(first, &of) => {
                    return Err(CliError::Usage(format!(
                        "{} holds the results of {}, {} those of {}: parts must be of one model",
                        part.display(),
                        title(&of),
                        args.parts[0].display(),
                        title(first)
                    )));
                }
                (None, Some(of)) => model = Some(of),
                _ => {}
            }
            for record in journal::read(&path)? {
                match places.get(&record.key) {
                    Some(&place) if records[place].completion.text != record.completion.text => {
                        return Err(CliError::Usage(format!(
                            "{}: sample {} of row {} differs from the same sample of another part",
                            path.display(),
                            record.sample,
                            record.row
                        )));
                    }
                    Some(_) => {}
                    None => {
                        places.insert(record.key.clone(), records.len());
                        records.push(record);
                    }
                }
            }
        }
        std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
        if out.exists() && !again {
            return Err(CliError::Usage(format!(
                "{} is there already: give an empty folder with --out",
                out.display()
            )));
        }
        write_atomically(&out, |file| {
            for record in &records {
                serde_json::to_writer(&mut *file, record)?;
                file.write_all(b"\n")?;
            }
            Ok(())
        })?;
        let rows = rows_in(&args.parts, file_name(&name));
        score(&args.out, &args.answers, &name, model.unwrap_or_default(), rows).inspect_err(|_| {
            // The same command, mended, must find the folder as it was.
            if earlier.is_none() {
                let _ = std::fs::remove_file(&out);
            }
        })?;
    }
    Ok(())
}

/// What earlier reports say became of the rows, all parts together; `None` where one has none.
fn rows_in(folders: &[PathBuf], task: &str) -> Option<RowCounts> {
    let mut all = RowCounts::default();
    for folder in folders {
        let text = std::fs::read_to_string(folder.join(format!("{task}.json"))).ok()?;
        let report: Value = serde_json::from_str(&text).ok()?;
        let RowCounts { rows, shots, too_long, without_answer, .. } =
            serde_json::from_value(report["task"]["rows"].clone()).ok()?;
        all.rows += rows;
        all.shots += shots;
        all.too_long += too_long;
        all.without_answer += without_answer;
    }
    Some(all)
}

/// The task that samples are of; log-likelihoods are a task of their own.
fn task_of(name: &str, scoring: &ScoringArgs) -> Result<(Box<dyn Task>, Value), CliError> {
    if let Some(plain) = name.strip_suffix("_likelihood") {
        return Ok((Box::new(ByLikelihood::new(by_name(plain, &Tools::default())?)?), Value::Null));
    }
    let mut equipped = tools::with_sandbox(&[name.to_owned()], scoring, true)?;
    Ok((equipped.tasks.remove(0), equipped.environment))
}

/// Judges the samples of one task in a folder, keeps what is new of that in the journal and writes the report. `earlier` is
/// what became of the rows when they were asked.
fn score(
    folder: &Path,
    answers: &AnswersArgs,
    name: &str,
    model: Value,
    earlier: Option<RowCounts>,
) -> Result<(), CliError> {
    let scoring = &answers.scoring;
    let profile: Profile = scoring.profile.parse()?;
    let published = super::published(scoring)?;
    let path = journal_in(folder, name);
    if !path.is_file() {
        return Err(CliError::Usage(format!("{} is not there: nothing was generated for {name}", path.display())));
    }
    let mut journal = Journal::open(&path)?;
    let (mut task, environment) = task_of(name, scoring)?;
    if let Some(asked) = journal.records().first().map(|record| &record.settings["asked"]) {
        if let Some(shots) = asked["shots"].as_u64() {
            task.set_shots(shots as usize)?;
        }
        if let Some(tokens) = asked["max_new_tokens"].as_u64() {
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
    let counts = match earlier {
        Some(RowCounts { rows, shots, too_long, without_answer, .. }) => {
            RowCounts { rows, shots, too_long, without_answer, ..counted }
        }
        None => counted,
    };
    let hash = earlier_hash(folder, file_name(name));
    let described = TaskReport::new(task.as_ref(), profile, counts, hash.as_deref(), &files);
    let runs: Vec<(RunReport, &RunResult)> = runs
        .iter()
        .map(|run| {
            let label = label(&run.settings.generation, &run.result);
            (RunReport::new(task.as_ref(), profile, label, &run.settings, &run.result), &run.result)
        })
        .collect();
    let report = Report::new(described, model, runs).in_environment(environment);
    outputs::write(folder, &report, published.as_ref(), true)
}

/// The hash of the prompts in an earlier report: scoring again does not ask again.
fn earlier_hash(folder: &Path, task: &str) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(format!("{task}.json"))).ok()?;
    let report: Value = serde_json::from_str(&text).ok()?;
    Some(report["task"]["prompt_hash"].as_str()?.to_owned())
}

/// `l2d eval compare`.
pub(super) fn compare(args: &CompareArgs) -> Result<(), CliError> {
    let mut compared = 0;
    for name in names(&args.first, args.tasks.as_deref())? {
        let second = journal_in(&args.second, &name);
        if !second.exists() {
            continue;
        }
        let metric = match &args.metric {
            Some(metric) => metric.clone(),
            None => quoted(&args.first, file_name(&name))?,
        };
        let (first, second) = (runs(&journal_in(&args.first, &name))?, runs(&second)?);
        for (a, first) in &first {
            for (b, second) in &second {
                if args.first == args.second && a >= b {
                    continue;
                }
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
                asked_the_same(&name, first, second)?;
                let difference = PairedDifference::of(of(first)?, of(second)?)?;
                say!("{name} {metric}: {}", describe_difference(a, b, &difference))?;
                compared += 1;
            }
        }
    }
    if compared == 0 {
        return Err(CliError::Usage(format!(
            "nothing to compare: {} and {} have no task in common",
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

/// The samples of a journal by the run they belong to.
fn runs(path: &Path) -> Result<BTreeMap<String, Vec<Record>>, CliError> {
    // Of several answers to one sample, by an earlier version of the task, the last counts.
    let mut records: BTreeMap<(String, u64, usize, usize), Record> = BTreeMap::new();
    for record in journal::read(path)? {
        records.insert((record.settings.to_string(), record.seed, record.row, record.sample), record);
    }
    let settings: BTreeSet<&String> = records.keys().map(|(settings, ..)| settings).collect();
    let numbers: BTreeMap<String, usize> =
        settings.into_iter().enumerate().map(|(number, settings)| (settings.clone(), number + 1)).collect();
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let mut runs: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for ((settings, ..), record) in records {
        let none = RunResult { samples: Vec::new(), interrupted: false };
        let label = label(&record.settings, &none);
        let guidance = label.guidance.map_or_else(String::new, |strength| format!(", guidance {strength}"));
        let steps = if record.settings["diffusion"]["adaptive"].is_null() {
            label.steps.to_string()
        } else {
            "adaptive".into()
        };
        // Settings that no label shows (temperature, solver, shots) keep runs apart all the same.
        let which = if numbers.len() > 1 { format!(", settings {}", numbers[&settings]) } else { String::new() };
        let name = format!("{folder}/{} at {steps}{guidance}, seed {}{which}", label.series, record.seed);
        runs.entry(name).or_default().push(record);
    }
    Ok(runs)
}

/// The metric that a task's report quotes.
fn quoted(folder: &Path, task: &str) -> Result<String, CliError> {
    let path = folder.join(format!("{task}.json"));
    let text = std::fs::read_to_string(&path).map_err(|e| CliError::io(&path, e))?;
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let headline = report["task"]["headline"].as_str().map(str::to_owned);
    headline.ok_or_else(|| CliError::Usage(format!("{} quotes no metric: name one with --metric", path.display())))
}

/// The tasks named, else those with samples in a folder.
fn names(folder: &Path, asked: Option<&[String]>) -> Result<Vec<String>, CliError> {
    if let Some(asked) = asked {
        return Ok(asked.to_vec());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| CliError::io(folder, e))? {
        let file = entry.map_err(|e| CliError::io(folder, e))?.file_name();
        names.extend(file.to_str().and_then(|file| file.strip_suffix(SAMPLES)).map(str::to_owned));
    }
    names.sort_unstable();
    if names.is_empty() {
        return Err(CliError::Usage(format!("{} holds no samples (TASK{SAMPLES})", folder.display())));
    }
    Ok(names)
}

/// A task's samples in a folder. A task of a file is named by its path, its samples by its name.
fn journal_in(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{}{SAMPLES}", file_name(name)))
}

fn file_name(name: &str) -> &str {
    match name.strip_suffix(".toml") {
        Some(path) => path.rsplit(['/', '\\']).next().unwrap_or(path),
        None => name,
    }
}
