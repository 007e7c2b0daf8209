//! What the folder of an evaluation holds: samples by task, and what was asked.

use std::path::{Path, PathBuf};

use l2d_eval::likelihood::ByLikelihood;
use l2d_eval::tasks::{NAMES, by_name};
use l2d_eval::{Asked, Task, Tools, asked};
use serde_json::Value;

use super::tools;
use crate::args::ScoringArgs;
use crate::error::CliError;

/// What journals end in.
pub(super) const SAMPLES: &str = ".samples.jsonl";

/// What the files end in that say what runs were to ask.
pub(super) const ASKED: &str = ".asked.jsonl";

/// What the tasks of log-likelihoods end in.
const LIKELIHOOD: &str = "_likelihood";

/// A task whose samples are kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kept {
    /// The task's name in files and reports.
    pub(super) name: String,
    /// What it is found by: a name, or the path of a task's file.
    task: String,
    /// Whether the samples are log-likelihoods of options.
    pub(super) likelihood: bool,
}

impl Kept {
    fn named(name: String) -> Self {
        // A task of one's own may be called anything; it is found by its file, below.
        match name.strip_suffix(LIKELIHOOD) {
            Some(plain) => Self { task: plain.to_owned(), likelihood: true, name },
            None => Self { task: name.clone(), likelihood: false, name },
        }
    }

    /// What `asked` may mean: a task's answers and its log-likelihoods.
    fn meant(asked: &str) -> Result<Vec<Self>, CliError> {
        let name = match asked.ends_with(".toml") {
            true => by_name(asked, &Tools::default())?.name().to_owned(),
            false => match asked.strip_suffix(LIKELIHOOD) {
                Some(_) => return Ok(vec![Self::named(asked.to_owned())]),
                None => asked.to_owned(),
            },
        };
        let likelihoods = Self { name: format!("{name}{LIKELIHOOD}"), task: asked.to_owned(), likelihood: true };
        Ok(vec![Self { name, task: asked.to_owned(), likelihood: false }, likelihoods])
    }

    /// Its samples in a folder.
    pub(super) fn journal_in(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}{SAMPLES}", self.name))
    }

    /// What its runs in a folder were to ask; nothing where the folder is of before that was kept.
    pub(super) fn asked_in(&self, folder: &Path) -> Result<Vec<Asked>, CliError> {
        Ok(asked::read(&folder.join(format!("{}{ASKED}", self.name)))?)
    }

    /// The task, ready to score, and where its programs run.
    pub(super) fn equipped(&self, scoring: &ScoringArgs) -> Result<(Box<dyn Task>, Value), CliError> {
        if !self.task.ends_with(".toml") && !NAMES.contains(&&*self.task) {
            return Err(CliError::Usage(format!(
                "{} is no task of this program; where it is one of yours, name its file: --tasks FILE.toml",
                self.task
            )));
        }
        if self.likelihood {
            return Ok((Box::new(ByLikelihood::new(by_name(&self.task, &Tools::default())?)?), Value::Null));
        }
        let mut equipped = tools::with_sandbox(std::slice::from_ref(&self.task), scoring, true)?;
        Ok((equipped.tasks.remove(0), equipped.environment))
    }
}

/// The tasks named that a folder has samples of, else all that it has samples of.
pub(super) fn kept_in(folder: &Path, asked: Option<&[String]>) -> Result<Vec<Kept>, CliError> {
    let mut all = Vec::new();
    match asked {
        Some(asked) => {
            for asked in asked {
                let meant = Kept::meant(asked)?;
                let missing = meant[0].journal_in(folder);
                let there: Vec<Kept> = meant.into_iter().filter(|kept| kept.journal_in(folder).is_file()).collect();
                if there.is_empty() {
                    return Err(CliError::Usage(format!(
                        "{} is not there: the folder has no answers of {asked}",
                        missing.display()
                    )));
                }
                all.extend(there);
            }
        }
        None => {
            for entry in std::fs::read_dir(folder).map_err(|e| CliError::io(folder, e))? {
                let file = entry.map_err(|e| CliError::io(folder, e))?.file_name();
                let name = file.to_str().and_then(|file| file.strip_suffix(SAMPLES));
                all.extend(name.map(|name| Kept::named(name.to_owned())));
            }
            if all.is_empty() {
                return Err(CliError::Usage(format!("{} holds no samples (TASK{SAMPLES})", folder.display())));
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}
