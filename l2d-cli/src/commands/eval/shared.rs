//! An evaluation on several ranks: each answers its part of the rows, the first puts the parts together.

use std::path::PathBuf;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_eval::rows::SourceFile;
use l2d_eval::runner::RowCounts;
use l2d_eval::{Asked, Shard, Task};
use l2d_train::ranks::{Ranks, agree};

use super::answer;
use super::merge::{self, Parts};
use crate::args::{AnswersArgs, EvalArgs, MergeArgs};
use crate::backend::BackendKind;
use crate::error::CliError;
use crate::ranks::{alone_failed, settle, together_failed};

/// The folder in that of the evaluation in which the ranks keep their journals.
const PARTS: &str = "ranks";

/// Hashes of what a task's questions depend on: the files it reads, and its own.
pub(super) fn digests(task: &dyn Task, files: &[SourceFile]) -> Vec<String> {
    let own = task.file_digest().map(str::to_owned);
    files.iter().map(|file| file.sha256.clone()).chain(own).collect()
}

/// Makes sure that all ranks have been asked for the same: of the same tasks, settings, files and choice of rows.
pub(super) fn asked_alike(ranks: &dyn Ranks, tasks: &[&str], asked: &[Asked], profile: &str) -> Result<(), CliError> {
    // What is each rank's own share.
    let alike = |asked: &Asked| Asked {
        rows: String::new(),
        prompt_hash: String::new(),
        counts: RowCounts { in_split: asked.counts.in_split, ..RowCounts::default() },
        ..asked.clone()
    };
    let alike: Vec<Asked> = asked.iter().map(alike).collect();
    let written = serde_json::to_string(&alike).map_err(l2d_eval::Error::from)?;
    agree(ranks, &[("tasks", tasks.join(" ")), ("profile", profile.to_owned()), ("evaluation", written)])
        .map_err(|error| together_failed(ranks, error.into()))
}

/// Runs one rank's part.
pub(super) fn run<B: Backend>(
    args: &EvalArgs,
    backend: BackendKind,
    device: &Device<B>,
    ranks: &dyn Ranks,
) -> Result<(), CliError> {
    let count = ranks.size();
    let part = |rank: usize| args.out.join(PARTS).join(format!("{}-of-{count}", rank + 1));
    let own = if args.shard.is_some() {
        settle(ranks, Err(CliError::Usage("--shard: the ranks share the rows among themselves; leave it out".into())))
    } else {
        let own = EvalArgs {
            shard: Some(Shard { index: ranks.rank() + 1, count }),
            out: part(ranks.rank()),
            // Scored by the first rank, from all answers together. A log-likelihood is its own score.
            predict_only: !args.likelihood,
            part_of: Some(args.out.clone()),
            ..args.clone()
        };
        answer::<B>(&own, backend, device, ranks)
    };
    match own {
        // Whoever is called off has its answers kept; the others go on with theirs, or are called off, too.
        Ok(()) | Err(CliError::Interrupted) => settle(ranks, own)?,
        // Hours may pass before the others would hear of it.
        Err(error) => return Err(alone_failed(ranks, error)),
    }
    let merged = match ranks.is_first() {
        true if args.predict_only => {
            eprintln!("the answers are in {}; `l2d eval merge` scores them", args.out.join(PARTS).display());
            Ok(())
        }
        true => {
            let parts = (0..count).map(part).collect();
            merge::put_together(&whole(parts, args), Parts::Ranks { likelihood: args.likelihood })
        }
        false => Ok(()),
    };
    settle(ranks, merged)
}

fn whole(parts: Vec<PathBuf>, args: &EvalArgs) -> MergeArgs {
    let answers =
        AnswersArgs { data: args.data.clone(), tasks: Some(args.tasks.clone()), scoring: args.scoring.clone() };
    MergeArgs { parts, out: args.out.clone(), partial: false, answers }
}
