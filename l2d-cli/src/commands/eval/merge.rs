//! `l2d eval merge`: the parts of an evaluation put together, those of the shards of a split or of the ranks of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use l2d_core::checkpoint::write_atomically;
use l2d_eval::Shard;
use l2d_eval::journal::{self, Record};
use l2d_eval::report::Report;
use serde_json::Value;

use super::again::score;
use super::identity::{description_in, same_model, title};
use super::kept::{Earlier, Kept, kept_in};
use super::outputs::Bars;
use crate::args::MergeArgs;
use crate::error::CliError;

/// Whose parts they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// Shards that a person asked for, put together into a new folder.
    Shards,
    /// Those of the ranks of a job, put together into what the folder has from earlier jobs: answers or `likelihood`s.
    Ranks { likelihood: bool },
}

/// Runs the command.
pub(super) fn run(args: &MergeArgs) -> Result<(), CliError> {
    put_together(args, Parts::Shards)
}

/// Puts parts together and scores the whole.
pub(super) fn put_together(args: &MergeArgs, parts: Parts) -> Result<(), CliError> {
    each_once(&args.parts)?;
    let mut all: BTreeSet<Kept> = BTreeSet::new();
    for part in &args.parts {
        all.extend(kept_in(part, args.answers.tasks.as_deref())?);
    }
    if let Parts::Ranks { likelihood } = parts {
        all.retain(|kept| kept.likelihood == likelihood);
    }
    let mut bars = Bars::default();
    for kept in all {
        let out = kept.journal_in(&args.out);
        // What an earlier whole holds, of other settings or another number of ranks, stays.
        let earlier = (parts != Parts::Shards && out.exists()).then_some(&args.out);
        for part in &args.parts {
            let path = kept.journal_in(part);
            if !path.exists() {
                return Err(CliError::Usage(format!(
                    "{} is not there: every part must hold every task, or name tasks with --tasks",
                    path.display()
                )));
            }
        }
        parts_of_one(&args.parts, &kept, args.partial)?;
        let (model, records) = gather(earlier.into_iter().chain(&args.parts), &args.parts[0], &kept)?;
        std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
        if out.exists() && parts == Parts::Shards {
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
        let reports = Earlier::of(&kept, &args.parts);
        score(&args.out, &args.answers, &kept, model, &reports, &mut bars).inspect_err(|_| {
            // The same command, mended, must find the folder as it was.
            if earlier.is_none() {
                let _ = std::fs::remove_file(&out);
            }
        })?;
    }
    bars.draw(&args.out)
}

/// Refuses a folder that is given twice: its rows would count twice.
fn each_once(parts: &[PathBuf]) -> Result<(), CliError> {
    let mut seen: BTreeMap<PathBuf, &Path> = BTreeMap::new();
    for part in parts {
        let real = part.canonicalize().map_err(|e| CliError::io(part, e))?;
        if let Some(first) = seen.insert(real, part) {
            return Err(CliError::Usage(format!(
                "{} and {} are one folder: name every part once",
                first.display(),
                part.display()
            )));
        }
    }
    Ok(())
}

/// Checks what the parts' reports say: the same rows asked in the same way, and every shard there once.
fn parts_of_one(parts: &[PathBuf], kept: &Kept, partial: bool) -> Result<(), CliError> {
    let reports: Vec<(&Path, Report)> =
        parts.iter().filter_map(|part| Some((part.as_path(), kept.report_in(part)?))).collect();
    let Some((first, one)) = reports.first() else { return Ok(()) };
    for (part, other) in &reports[1..] {
        let sums = |report: &Report| -> BTreeSet<String> {
            report.task.files.iter().map(|file| file.sha256.clone()).collect()
        };
        // A part that was scored again has not read its shots.
        let (a, b) = (sums(one), sums(other));
        let differs = match (&one.task, &other.task) {
            _ if !(a.is_subset(&b) || b.is_subset(&a)) => Some("the rows (the files' SHA-256)".to_owned()),
            (one, other) if one.version != other.version => {
                Some(format!("version {} and {}", one.version, other.version))
            }
            (one, other) if one.shots != other.shots => Some(format!("{} shots and {}", one.shots, other.shots)),
            (one, other) if one.max_new_tokens != other.max_new_tokens => {
                Some(format!("--max-tokens {} and {}", one.max_new_tokens, other.max_new_tokens))
            }
            _ => None,
        };
        if let Some(what) = differs {
            return Err(CliError::Usage(format!(
                "{} in {} and {} were not asked alike: {what}; parts must be of one evaluation",
                kept.name,
                first.display(),
                part.display()
            )));
        }
    }
    let mut shards: BTreeMap<usize, &Path> = BTreeMap::new();
    let count = one.task.rows.shard.map(|shard| shard.count);
    for (part, report) in &reports {
        let Some(Shard { index, count: of }) = report.task.rows.shard else { return Ok(()) };
        if Some(of) != count {
            return Err(CliError::Usage(format!(
                "{}: {} is part {index}/{of}, and {} one of {}: parts must be of one evaluation",
                kept.name,
                part.display(),
                first.display(),
                count.unwrap_or_default()
            )));
        }
        if let Some(same) = shards.insert(index, part) {
            return Err(CliError::Usage(format!(
                "{}: both {} and {} are part {index}/{of}: name every part once",
                kept.name,
                same.display(),
                part.display()
            )));
        }
    }
    let count = count.unwrap_or_default();
    let missing: Vec<String> =
        (1..=count).filter(|index| !shards.contains_key(index)).map(|index| format!("{index}/{count}")).collect();
    if !missing.is_empty() && reports.len() == parts.len() {
        let missing = missing.join(", ");
        if !partial {
            return Err(CliError::Usage(format!(
                "{}: --shard {missing} is not among the parts: run it, or give --partial to go on without",
                kept.name
            )));
        }
        tracing::warn!("{}: without --shard {missing}", kept.name);
    }
    Ok(())
}

/// The samples of all folders, each once, and the model they are of. `first` is the part that errors compare with.
fn gather<'a>(
    folders: impl Iterator<Item = &'a PathBuf>,
    first: &Path,
    kept: &Kept,
) -> Result<(Value, Vec<Record>), CliError> {
    let mut model: Option<Value> = None;
    let mut records: Vec<Record> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for part in folders {
        let path = kept.journal_in(part);
        let of = description_in(part, &kept.name)?;
        match (&model, of) {
            (Some(one), Some(of)) if !same_model(one, &of) => {
                return Err(CliError::Usage(format!(
                    "{} holds the results of {}, {} those of {}: parts must be of one model",
                    part.display(),
                    title(&of),
                    first.display(),
                    title(one)
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
    Ok((model.unwrap_or_default(), records))
}
