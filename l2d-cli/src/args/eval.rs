//! `l2d eval`.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use l2d_eval::{Selection, Shard, parse_rows};

use super::decode::{DecodeArgs, SearchArgs};
use super::model::ModelArgs;

/// An evaluation, or what is done with those there are. Put together by hand: clap's derive has no "arguments or else a
/// subcommand" that keeps what is required of the arguments.
#[derive(Debug)]
pub(crate) enum EvalCommand {
    Run(Box<EvalArgs>),
    Again(EvalSubcommand),
}

impl Args for EvalCommand {
    fn augment_args(command: clap::Command) -> clap::Command {
        let command = EvalSubcommand::augment_subcommands(EvalArgs::augment_args(command));
        command.subcommand_required(false).args_conflicts_with_subcommands(true).subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for EvalCommand {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_name() {
            Some(_) => EvalSubcommand::from_arg_matches(matches).map(Self::Again),
            None => EvalArgs::from_arg_matches(matches).map(|args| Self::Run(Box::new(args))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalSubcommand {
    /// Name the tasks: rows, shots, metrics.
    Tasks,
    /// Score what was generated earlier again, without a model.
    Rescore(RescoreArgs),
    /// Put the parts of an evaluation that was run with --shard together.
    Merge(MergeArgs),
    /// Compare two evaluations question by question.
    Compare(CompareArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Benchmarks, comma-separated: names (`l2d eval tasks`), or .toml files of your own.
    #[arg(long, value_delimiter = ',', required = true, value_name = "TASKS")]
    pub(crate) tasks: Vec<String>,

    /// Folder of data sets in the Hugging Face layout, or the word hub: each task's own from there.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,

    /// Only the first N rows.
    #[arg(long, value_name = "N", help_heading = "Rows")]
    pub(crate) limit: Option<usize>,

    /// Only these rows, from 0: 0,5,10-20.
    #[arg(long, value_name = "ROWS", value_parser = rows, help_heading = "Rows")]
    pub(crate) samples: Option<Rows>,

    /// Only part I of N of the rows; `l2d eval merge` puts the parts together.
    #[arg(long, value_name = "I/N", help_heading = "Rows")]
    pub(crate) shard: Option<Shard>,

    /// Go on where a split has not as many rows as the published one; the report says so.
    #[arg(long, help_heading = "Rows")]
    pub(crate) any_row_count: bool,

    /// Evaluations per token to compare, comma-separated [default: 1,15 with an adapter, else 1].
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub(crate) steps: Option<Vec<usize>>,

    /// Seeds to compare, comma-separated; in the place of --seed.
    #[arg(long, value_delimiter = ',', value_name = "S,S", conflicts_with = "seed")]
    pub(crate) seeds: Option<Vec<u64>>,

    /// Folder for samples, results and plots. The same command goes on where it was stopped.
    #[arg(long, value_name = "DIR", default_value = "eval-results")]
    pub(crate) out: PathBuf,

    /// Sequences decoded together.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) batch_size: usize,

    /// The most tokens of one answer [default: the task's own].
    #[arg(long, value_name = "M", help_heading = "Questions")]
    pub(crate) max_tokens: Option<usize>,

    /// Solved problems before each question [default: the task's own; 0 with --likelihood].
    #[arg(long, value_name = "N", help_heading = "Questions")]
    pub(crate) shots: Option<usize>,

    /// Answers to each question; above 1 pass@k is reported [default: the task's own, 10 for programs and 1 else].
    #[arg(long, value_name = "N", help_heading = "Questions")]
    pub(crate) repeats: Option<NonZeroUsize>,

    /// Score multiple choice by the log-likelihood of each option, as lm-evaluation-harness does, with the plain LM.
    #[arg(
        long,
        conflicts_with_all = [
            "steps", "seed", "seeds", "repeats", "max_tokens", "predict_only", "along_t", "adapter", "beams", "sandbox", "python",
        ],
        help_heading = "Questions"
    )]
    pub(crate) likelihood: bool,

    /// Also score what the answers were along the diffusion's time: each token as it was guessed at t, after the tokens that
    /// were emitted.
    #[arg(long, requires = "adapter", conflicts_with = "beams", help_heading = "Scores")]
    pub(crate) along_t: bool,

    /// Print what the same command would ask without this, and stop.
    #[arg(long, help_heading = "Questions")]
    pub(crate) write_out: bool,

    /// Generate and keep the answers without scoring them; `l2d eval rescore` does that later.
    #[arg(long, help_heading = "Scores")]
    pub(crate) predict_only: bool,

    #[command(flatten)]
    pub(crate) scoring: ScoringArgs,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,

    #[command(flatten)]
    pub(crate) search: SearchArgs,

    /// How many ranks a launcher (mpirun, srun) must have started; they share the rows.
    #[arg(long, value_name = "N", help_heading = "Rows")]
    pub(crate) ranks: Option<usize>,

    /// The folder of the evaluation that this is one rank's part of; a part's results are nobody's to read.
    #[arg(skip)]
    pub(crate) part_of: Option<PathBuf>,
}

/// How answers are judged and shown.
#[derive(Debug, Clone, Args)]
pub(crate) struct ScoringArgs {
    /// Whose score is quoted first: exact, paper (the L2D reference) or harness (lm-evaluation-harness, bigcode). All are
    /// reported from the same answers.
    #[arg(long, value_name = "NAME", default_value = "exact", help_heading = "Scores")]
    pub(crate) profile: String,

    /// Where programs that a model wrote run: required (no sandbox, no run), best-effort (with what this system has of it)
    /// or off (on this machine, as you: only for programs you would start by hand).
    #[arg(long, value_name = "MODE", default_value = "required", help_heading = "Scores")]
    pub(crate) sandbox: String,

    /// The python3 that runs them [default: the first in PATH, else the system's, that the sandbox can use].
    #[arg(long, value_name = "FILE", help_heading = "Scores")]
    pub(crate) python: Option<PathBuf>,

    /// TOML file of published numbers to stand in a column beside these.
    #[arg(long, value_name = "FILE", help_heading = "Scores")]
    pub(crate) published: Option<PathBuf>,
}

/// Which answers are judged, and how.
#[derive(Debug, Args)]
pub(crate) struct AnswersArgs {
    /// Folder of data sets in the Hugging Face layout, or the word hub: each task's own from there.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,

    /// Only these tasks [default: all that have samples; tasks of .toml files must be named].
    #[arg(long, value_delimiter = ',', value_name = "TASKS")]
    pub(crate) tasks: Option<Vec<String>>,

    #[command(flatten)]
    pub(crate) scoring: ScoringArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RescoreArgs {
    /// Folder of an evaluation, with its TASK.samples.jsonl.
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,

    #[command(flatten)]
    pub(crate) answers: AnswersArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// Folders of the parts.
    #[arg(value_name = "DIR", required = true, num_args = 1..)]
    pub(crate) parts: Vec<PathBuf>,

    /// Folder for the whole.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Go on where a part of --shard is missing; the report says how many rows of the split there are.
    #[arg(long)]
    pub(crate) partial: bool,

    #[command(flatten)]
    pub(crate) answers: AnswersArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Folder of the evaluation that may be better.
    #[arg(value_name = "DIR")]
    pub(crate) first: PathBuf,

    /// Folder of the one it is compared with; the same for runs of one evaluation.
    #[arg(value_name = "DIR")]
    pub(crate) second: PathBuf,

    /// Only these tasks [default: all that both have].
    #[arg(long, value_delimiter = ',', value_name = "TASKS")]
    pub(crate) tasks: Option<Vec<String>>,

    /// The metric [default: the one each task's report quotes].
    #[arg(long, value_name = "NAME")]
    pub(crate) metric: Option<String>,
}

/// Row numbers. A type of its own, for clap takes a set for many values.
#[derive(Debug, Clone)]
pub(crate) struct Rows(BTreeSet<usize>);

fn rows(text: &str) -> Result<Rows, String> {
    parse_rows(text).map(Rows).map_err(|error| error.to_string())
}

impl EvalArgs {
    /// The rows that were asked for.
    pub(crate) fn selection(&self) -> Selection {
        Selection { limit: self.limit, rows: self.samples.clone().map(|rows| rows.0), shard: self.shard }
    }
}
