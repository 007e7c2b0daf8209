//! Judging completions that were generated earlier: no model needed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};

use crate::asked::Asked;
use crate::error::{Error, Result};
use crate::journal::Record;
use crate::rows::Row;
use crate::runner::{RowCounts, RunResult, RunSettings, Sample, judge};
use crate::task::Task;

/// A journal judged anew.
#[derive(Debug, Clone, PartialEq)]
pub struct Rescoring {
    /// Its runs, settings, seeds and versions apart, in the order they were first used.
    pub runs: Vec<Rescored>,
    /// Its rows; those without a completion are only counted.
    pub rows: RowCounts,
    /// Samples that are judged otherwise than they were, or were not yet, to be appended to the journal.
    pub changed: Vec<Record>,
    /// Answers of other versions of the task to other questions than its rows ask now; they are in no run.
    pub left_out: usize,
}

/// One run of a journal, judged anew.
#[derive(Debug, Clone, PartialEq)]
pub struct Rescored {
    /// The settings of its completions; the batch size is not known and given as 1.
    pub settings: RunSettings,
    /// The version of the task that asked, where it is another than today's.
    pub version: Option<u32>,
    /// Its samples.
    pub result: RunResult,
}

/// Judges all completions of a journal by the task as it is now. Rows are found by number and must ask what the journal says
/// was asked. `asked` says what the runs were to ask, as far as it is known: a run that lacks answers was called off. `path` is the
/// journal's, for errors. Log-likelihoods keep their scores: the journal holds no more than they were judged by.
///
/// # Errors
/// [`Error::JournalMismatch`] where a sample is another task's or another row's; what judging says.
pub fn rescore(
    task: &dyn Task,
    rows: &[Row],
    records: &[Record],
    asked: &[Asked],
    path: &std::path::Path,
) -> Result<Rescoring> {
    // Records of before have no version: where the same sample was asked again, they are an earlier one's.
    let place = |record: &Record| (record.settings.to_string(), record.seed, record.row, record.sample);
    let last: HashMap<_, usize> = records.iter().enumerate().map(|(index, record)| (place(record), index)).collect();
    let judged: Vec<Result<Option<(&Record, Sample)>>> = records
        .par_iter()
        .enumerate()
        .map(|(index, record)| {
            let mismatch = |reason: String| Error::JournalMismatch {
                path: path.to_path_buf(),
                row: record.row,
                sample: record.sample,
                reason,
            };
            if record.task != task.name() {
                return Err(mismatch(format!("it is of task `{}`, not `{}`", record.task, task.name())));
            }
            let earlier = match record.version {
                Some(version) => version != task.version(),
                None => last[&place(record)] != index,
            };
            let row = match rows.get(record.row) {
                Some(row) => row,
                None if earlier => return Ok(None),
                None => return Err(mismatch(format!("the split has only {} rows", rows.len()))),
            };
            let problem = task.problem(row)?;
            let (scores, along) = if record.likelihoods.is_some() {
                (record.scores.clone(), Vec::new())
            } else if problem.question == record.question {
                judge(task, &problem, &record.completion)?
            } else if earlier {
                return Ok(None);
            } else {
                return Err(mismatch(format!("{} asks something else than it answers", row.origin())));
            };
            let completion = record.completion.clone();
            let (row, sample, seconds) = (record.row, record.sample, record.seconds);
            Ok(Some((record, Sample { row, sample, completion, scores, along, seconds, resumed: true })))
        })
        .collect();
    let judge_now = task.judge();
    let mut runs: Vec<Rescored> = Vec::new();
    let mut places: HashMap<(usize, usize, usize), usize> = HashMap::new();
    let mut answered = BTreeSet::new();
    let mut changed = Vec::new();
    let mut left_out = 0;
    for judged in judged {
        let Some((record, sample)) = judged? else {
            left_out += 1;
            continue;
        };
        answered.insert(sample.row);
        if sample.scores != record.scores || judge_now != record.judge {
            changed.push(Record { scores: sample.scores.clone(), judge: judge_now.clone(), ..record.clone() });
        }
        let version = record.version.filter(|version| *version != task.version());
        let same = |run: &Rescored| {
            run.settings.seed == record.seed && run.settings.generation == record.settings && run.version == version
        };
        let number = runs.iter().position(same).unwrap_or_else(|| {
            let settings =
                RunSettings { samples: 1, batch_size: 1, seed: record.seed, generation: record.settings.clone() };
            let result = RunResult { samples: Vec::new(), interrupted: false };
            runs.push(Rescored { settings, version, result });
            runs.len() - 1
        });
        let run = &mut runs[number];
        run.settings.samples = run.settings.samples.max(sample.sample + 1);
        // Of several answers to one sample, by an earlier version of the task, the last counts.
        match places.entry((number, sample.row, sample.sample)) {
            Entry::Occupied(place) => run.result.samples[*place.get()] = sample,
            Entry::Vacant(place) => {
                place.insert(run.result.samples.len());
                run.result.samples.push(sample);
            }
        }
    }
    for (number, run) in runs.iter_mut().enumerate() {
        let version = run.version.unwrap_or(task.version());
        let mut known = asked.iter().filter(|asked| asked.is_of(&run.settings) && asked.version == version).peekable();
        run.result.interrupted = match known.peek() {
            Some(_) => {
                let has = |(row, sample): (usize, usize)| places.contains_key(&(number, row, sample));
                !known.all(|asked| asked.answers().all(has))
            }
            // That some questions have fewer answers than others says so, too.
            None => {
                let questions: BTreeSet<usize> = run.result.samples.iter().map(|sample| sample.row).collect();
                run.result.samples.len() != questions.len() * run.settings.samples
            }
        };
        run.result.samples.sort_by_key(|sample| (sample.row, sample.sample));
    }
    let counts = RowCounts {
        in_split: rows.len(),
        official: task.official_rows(),
        rows: rows.len(),
        questions: answered.len(),
        ..RowCounts::default()
    };
    Ok(Rescoring { runs, rows: counts, changed, left_out })
}
