//! `l2d eval merge`: the parts of an evaluation put together, those of the shards of a split or of the ranks of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use l2d_core::checkpoint::write_atomically;
use l2d_eval::journal::{self, Record};
use l2d_eval::{Asked, Shard};
use serde_json::Value;

use super::again::score;
use super::identity::{owner_in, same_model, title};
use super::kept::{ASKED, Kept, kept_in};
use super::label::difference;
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
    // Everything is looked at before anything is written.
    let mut gathered = Vec::new();
    for kept in all {
        for part in &args.parts {
            let path = kept.journal_in(part);
            if !path.exists() {
                return Err(CliError::Usage(format!(
                    "{} is not there: every part must hold every task, or name tasks with --tasks",
                    path.display()
                )));
            }
        }
        let out = kept.journal_in(&args.out);
        if out.exists() && parts == Parts::Shards {
            return Err(CliError::Usage(format!(
                "{} is there already: give an empty folder with --out",
                out.display()
            )));
        }
        if parts == Parts::Shards {
            parts_of_one(&args.parts, &kept, args.partial)?;
        }
        // What an earlier whole holds, of other settings or another number of ranks, stays.
        let earlier = out.exists().then_some(&args.out);
        let whole = gather(earlier.into_iter().chain(&args.parts), &args.parts[0], &kept)?;
        gathered.push((kept, whole));
    }
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
    let before = files_in(&args.out);
    let mut bars = Bars::default();
    for (kept, whole) in &gathered {
        let files = [kept.journal_in(&args.out), args.out.join(format!("{}{ASKED}", kept.name))];
        let earlier: Vec<Option<Vec<u8>>> = files.iter().map(|file| std::fs::read(file).ok()).collect();
        let written = write(&args.out, kept, whole)
            .and_then(|()| score(&args.out, &args.answers, kept, whole.model.clone(), &mut bars));
        if let Err(error) = written {
            // The same command, mended, must find the folder as it was.
            for (file, bytes) in files.iter().zip(&earlier) {
                match bytes {
                    Some(bytes) => write_atomically(file, |out| out.write_all(bytes))?,
                    None => drop(std::fs::remove_file(file)),
                }
            }
            if parts == Parts::Shards {
                let ours = |file: &&PathBuf| {
                    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let of = |(kept, _): &(Kept, Whole)| {
                        name.strip_prefix(&*kept.name).is_some_and(|rest| rest.starts_with(['.', '-']))
                    };
                    gathered.iter().any(of)
                };
                files_in(&args.out).difference(&before).filter(ours).for_each(|file| drop(std::fs::remove_file(file)));
            }
            return Err(error);
        }
    }
    bars.draw(&args.out)
}

fn files_in(folder: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
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

/// Checks what the parts were to ask: the same runs, of the same rows, and of each run every shard once.
fn parts_of_one(parts: &[PathBuf], kept: &Kept, partial: bool) -> Result<(), CliError> {
    let name = &kept.name;
    let mut asked: Vec<(&Path, Vec<Asked>)> = Vec::new();
    for part in parts {
        asked.push((part, latest(kept.asked_in(part)?)));
    }
    let unsaid = asked.iter().find(|(_, asked)| asked.is_empty()).map(|(part, _)| *part);
    asked.retain(|(_, asked)| !asked.is_empty());
    if let Some(part) = unsaid.filter(|_| !partial) {
        return Err(CliError::Usage(format!(
            "{} is not there, so that nobody knows what this part was to ask (--partial goes on)",
            part.join(format!("{name}{ASKED}")).display()
        )));
    }
    let Some(((first, ones), others)) = asked.split_first() else { return Ok(()) };
    for (part, others) in others {
        for (a, b, known, run) in
            ones.iter().map(|run| (first, part, others, run)).chain(others.iter().map(|run| (part, first, ones, run)))
        {
            let same = |other: &&Asked| other.settings == run.settings && other.seed == run.seed;
            let what = match known.iter().rfind(same) {
                None => {
                    let nearest =
                        known.iter().map(|other| difference(&run.settings, &other.settings)).min_by_key(String::len);
                    match nearest.filter(|words| !words.is_empty()) {
                        Some(words) => words,
                        None => format!("seed {}", run.seed),
                    }
                }
                Some(other) if other.version != run.version => {
                    format!("version {}, there {}", run.version, other.version)
                }
                Some(other) if other.files != run.files => "the rows (the files' SHA-256)".to_owned(),
                Some(other) if other.chosen != run.chosen => {
                    format!("{} of the rows, there {}", run.chosen, other.chosen)
                }
                Some(other) if other.samples != run.samples => {
                    format!("--repeats {}, there {}", run.samples, other.samples)
                }
                Some(_) => continue,
            };
            if !partial {
                return Err(CliError::Usage(format!(
                    "{name} in {} was asked otherwise than in {}: {what}; parts must be of one evaluation (--partial goes on)",
                    a.display(),
                    b.display()
                )));
            }
            tracing::warn!("{name}: {} was asked otherwise than {}: {what}", a.display(), b.display());
        }
    }
    for run in ones {
        let same = |other: &&Asked| other.settings == run.settings && other.seed == run.seed;
        let shards: Vec<(&Path, Option<Shard>)> =
            asked.iter().filter_map(|(part, asked)| Some((*part, asked.iter().rfind(same)?.counts.shard))).collect();
        each_shard(name, &shards, partial)?;
    }
    Ok(())
}

/// Of each run what it was asked last.
fn latest(asked: Vec<Asked>) -> Vec<Asked> {
    let mut runs: Vec<Asked> = Vec::new();
    for asked in asked {
        runs.retain(|run| run.settings != asked.settings || run.seed != asked.seed);
        runs.push(asked);
    }
    runs
}

/// Every shard of a run must be there once.
fn each_shard(name: &str, parts: &[(&Path, Option<Shard>)], partial: bool) -> Result<(), CliError> {
    let Some((first, Some(Shard { count, .. }))) = parts.iter().find(|(_, shard)| shard.is_some()) else {
        return Ok(());
    };
    let mut found: BTreeMap<usize, &Path> = BTreeMap::new();
    for (part, shard) in parts {
        let refuse = |what: String| Err(CliError::Usage(format!("{name}: {what}")));
        match shard {
            Some(shard) if shard.count == *count => {
                if let Some(same) = found.insert(shard.index, part) {
                    let (same, part) = (same.display(), part.display());
                    return refuse(format!("both {same} and {part} are part {shard}: name every part once"));
                }
            }
            other => {
                let what = other.map_or_else(|| "no part".to_owned(), |shard| format!("part {shard}"));
                let (part, first) = (part.display(), first.display());
                return refuse(format!(
                    "{part} is {what}, and {first} one of {count}: parts must be of one evaluation"
                ));
            }
        }
    }
    let missing: Vec<String> =
        (1..=*count).filter(|index| !found.contains_key(index)).map(|index| format!("{index}/{count}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    if !partial {
        return Err(CliError::Usage(format!(
            "{name}: --shard {missing} is not among the parts: run it, or give --partial to go on without"
        )));
    }
    tracing::warn!("{name}: without --shard {missing}");
    Ok(())
}

/// All that some folders hold of a task.
struct Whole {
    model: Value,
    records: Vec<Record>,
    asked: Vec<Asked>,
}

/// Writes the samples, and what was asked.
fn write(folder: &Path, kept: &Kept, whole: &Whole) -> Result<(), CliError> {
    let asked = folder.join(format!("{}{ASKED}", kept.name));
    write_atomically(&kept.journal_in(folder), |file| {
        for record in &whole.records {
            serde_json::to_writer(&mut *file, record)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })?;
    Ok(write_atomically(&asked, |file| {
        for asked in &whole.asked {
            serde_json::to_writer(&mut *file, asked)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })?)
}

/// The samples of all folders, each once, and the model they are of. `first` is the part that errors compare with.
fn gather<'a>(folders: impl Iterator<Item = &'a PathBuf>, first: &Path, kept: &Kept) -> Result<Whole, CliError> {
    let mut model: Option<Value> = None;
    let mut records: Vec<Record> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut asked: Vec<Asked> = Vec::new();
    for part in folders {
        let path = kept.journal_in(part);
        let of = owner_in(part, &kept.name)?;
        match &model {
            Some(one) if of.is_object() && !same_model(one, &of) => {
                return Err(CliError::Usage(format!(
                    "{} holds the results of {}, {} those of {}: parts must be of one model",
                    part.display(),
                    title(&of),
                    first.display(),
                    title(one)
                )));
            }
            None if of.is_object() => model = Some(of),
            _ => {}
        }
        for run in kept.asked_in(part)? {
            if !asked.contains(&run) {
                asked.push(run);
            }
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
    Ok(Whole { model: model.unwrap_or_default(), records, asked })
}
