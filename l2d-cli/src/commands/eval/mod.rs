//! `l2d eval`: benchmarks at several numbers of diffusion steps, strengths of guidance and seeds.

mod again;
mod compare;
mod generate;
mod identity;
mod kept;
mod label;
mod likelihood;
mod merge;
mod outputs;
mod shared;
pub(crate) mod tools;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::Checkpoint;
use l2d_eval::likelihood::ByLikelihood;
use l2d_eval::report::Published;
use l2d_eval::rows::{Row, SourceFile, check_count, read_split};
use l2d_eval::task::{Profile, Turn};
use l2d_eval::tasks::by_name;
use l2d_eval::{BoxError, Evaluation, Journal, RowLength, Selection, Task, Tools, journal};
use l2d_train::ranks::Ranks;

use self::identity::Identity;
use self::kept::SAMPLES;
use crate::args::{EvalArgs, EvalCommand, EvalSubcommand, ScoringArgs};
use crate::backend::{BackendKind, with_backend};
use crate::error::CliError;
use crate::generator::messages;
use crate::hub;
use crate::model::Text;
use crate::output::say;
use crate::place::Place;
use crate::ranks::{self, Joined};

/// What `--data` says where each task's data set is to come from the hub.
const HUB: &str = "hub";

/// The paper drops rows whose prompt and reference answer are longer together.
pub(crate) const MAX_ROW_TOKENS: usize = 2048;

/// Runs the command.
pub(crate) fn run(command: &EvalCommand, place: &Place) -> Result<(), CliError> {
    let args = match command {
        EvalCommand::Again(EvalSubcommand::Tasks) => return again::list(),
        EvalCommand::Again(EvalSubcommand::Rescore(args)) => return again::rescore_folder(args),
        EvalCommand::Again(EvalSubcommand::Merge(args)) => return merge::run(args),
        EvalCommand::Again(EvalSubcommand::Compare(args)) => return compare::run(args),
        EvalCommand::Run(args) if args.write_out => return write_out(args),
        EvalCommand::Run(args) => args,
    };
    let Joined { ranks, local } = ranks::join(args.ranks)?;
    if ranks.size() == 1 {
        if place.count() > 1 {
            return Err(CliError::Usage(format!(
                "--devices names {}, and this command computes on one; with a launcher (mpirun -np {0}) each rank has one of them",
                place.count()
            )));
        }
        return with_backend!(place, B, devices => answer::<B>(args, place.kind, &devices[0], &*ranks));
    }
    ranks::on_device(&*ranks, place, local, |place, entered| {
        with_backend!(place, B, devices => {
            entered.enter(&*ranks)?;
            shared::run::<B>(args, place.kind, &devices[0], &*ranks)
        })
    })
}

/// Asks this rank's questions. What cannot begin on one of the ranks begins on none.
fn answer<B: Backend>(
    args: &EvalArgs,
    backend: BackendKind,
    device: &Device<B>,
    ranks: &dyn Ranks,
) -> Result<(), CliError> {
    match args.likelihood {
        true => likelihood::run::<B>(args, backend, device, ranks),
        false => generate::run::<B>(args, backend, device, ranks),
    }
}

/// The folder's results must be of the model at hand, and those of the whole of which it is a part.
fn check_owners<'t>(
    args: &EvalArgs,
    identity: &Identity,
    mut names: impl Iterator<Item = &'t str>,
) -> Result<(), CliError> {
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
    names.try_for_each(|name| {
        identity.check_owner(&args.out, name)?;
        args.part_of.as_ref().map_or(Ok(()), |whole| identity.check_owner(whole, name))
    })
}

/// The journal of a task's samples. One rank's also finds what earlier ranks, however many, have put together.
fn journal_of(args: &EvalArgs, task: &str) -> Result<Journal, CliError> {
    let file = format!("{task}{SAMPLES}");
    let mut journal = Journal::open(args.out.join(&file))?;
    if let Some(whole) = args.part_of.as_ref().map(|whole| whole.join(&file)).filter(|whole| whole.exists()) {
        journal.also(journal::read(&whole)?);
    }
    Ok(journal)
}

/// A rank with nothing to ask says why.
fn nothing_to_ask(error: l2d_eval::Error, ranks: &dyn Ranks) -> CliError {
    match error {
        l2d_eval::Error::NoRows { task, .. } if ranks.size() > 1 => CliError::Usage(format!(
            "{task}: rank {} has no row to ask: {} ranks are more than there are rows; start fewer",
            ranks.rank(),
            ranks.size()
        )),
        other => other.into(),
    }
}

/// `--write-out`: what would be asked, without the model's weights.
fn write_out(args: &EvalArgs) -> Result<(), CliError> {
    args.scoring.profile.parse::<Profile>()?;
    args.scoring.sandbox.parse::<l2d_sandbox::Mode>()?;
    let text = Text::of(&Checkpoint::open(&args.model.model)?);
    for name in &args.tasks {
        let mut task = by_name(name, &Tools::default())?;
        if args.likelihood {
            let mut task = ByLikelihood::new(task)?;
            if let Some(shots) = args.shots {
                task.set_shots(shots)?;
            }
            let Rows { rows, shots, .. } = read(args, &task)?;
            for row in args.selection().rows(rows.len())? {
                let question = task.likelihood(&shots, &rows[row])?;
                let question = question.ok_or_else(|| l2d_eval::Error::NoLikelihood { task: name.clone() })?;
                say!("### {} row {row}\n{}", task.name(), question.context)?;
                for (index, option) in question.continuations.iter().enumerate() {
                    say!("{} {option:?}", if index == question.answer { "*" } else { "-" })?;
                }
            }
            continue;
        }
        adjust(task.as_mut(), args)?;
        let Rows { rows, shots, .. } = read(args, task.as_ref())?;
        let evaluation = Evaluation::prepare(task.as_ref(), &rows, &shots, &args.selection(), None)?;
        for (row, turns) in evaluation.prompts() {
            let prompt = text.rendered(&messages(turns))?;
            let tokens = text.tokenizer.encode(&prompt, false)?.len();
            say!("### {} row {row}, {tokens} tokens\n{prompt}", task.name())?;
        }
    }
    Ok(())
}

/// Refuses a list that names something twice.
fn each_once<T: PartialEq + std::fmt::Display>(flag: &str, list: &[T]) -> Result<(), CliError> {
    let twice = list.iter().enumerate().find(|(place, item)| list[..*place].contains(item));
    match twice {
        Some((_, item)) => Err(CliError::Usage(format!("{flag} names {item} twice: once is enough"))),
        None => Ok(()),
    }
}

/// What the flags change of a task.
fn adjust(task: &mut dyn Task, args: &EvalArgs) -> Result<(), CliError> {
    if let Some(tokens) = args.max_tokens {
        task.set_max_new_tokens(tokens);
    }
    if let Some(shots) = args.shots {
        task.set_shots(shots)?;
    }
    Ok(())
}

struct Rows {
    rows: Vec<Row>,
    shots: Vec<Row>,
    /// What they were read from.
    files: Vec<SourceFile>,
}

/// The rows of a task and those its shots come from. Another number of rows than published is refused where all were asked
/// for, and else said.
fn read(args: &EvalArgs, task: &dyn Task) -> Result<Rows, CliError> {
    let data = data_of(&args.data, task)?;
    let (rows, mut files) = read_split(&data, task, task.split())?;
    if let Err(error) = check_count(task, rows.len()) {
        if !args.any_row_count && args.selection() == Selection::default() {
            return Err(error.into());
        }
        tracing::warn!("{error}");
    }
    let mut shots = Vec::new();
    if task.shots() > 0 && task.shot_rows() != Some(0) {
        let (read, from) = read_split(&data, task, task.shot_split())?;
        shots = read;
        files.extend(from);
        files.dedup();
    }
    Ok(Rows { rows, shots, files })
}

/// Where the task's rows lie: the folder that was given, or the hub's copy of the task's data set for the word `hub`.
fn data_of(given: &Path, task: &dyn Task) -> Result<PathBuf, CliError> {
    let mut folder = given.to_path_buf();
    if given == Path::new(HUB)
        && let Some(data_set) = task.data_set()
    {
        folder = PathBuf::from(format!("hf://datasets/{}/{}", data_set.owner, data_set.name));
        hub::fetch(&mut folder)?;
    }
    Ok(folder)
}

/// The numbers to stand beside ours.
fn published(scoring: &ScoringArgs) -> Result<Option<Published>, CliError> {
    Ok(scoring.published.as_deref().map(Published::open).transpose()?)
}

/// Tokens of a prompt and its reference answer.
pub(crate) fn length(text: &Text, turns: &[Turn], solution: &str) -> Result<RowLength, BoxError> {
    Ok(RowLength {
        prompt: text.prompt(&messages(turns))?.len(),
        solution: text.tokenizer.encode(solution, false)?.len(),
    })
}
