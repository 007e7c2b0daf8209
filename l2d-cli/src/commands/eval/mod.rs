//! `l2d eval`: benchmarks at several numbers of diffusion steps, strengths of guidance and seeds.

mod again;
mod compare;
mod identity;
mod kept;
mod label;
mod likelihood;
mod merge;
mod outputs;
mod shared;
pub(crate) mod tools;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::Checkpoint;
use l2d_core::cpu::CacheFormat;
use l2d_eval::likelihood::{ByLikelihood, LikelihoodEvaluation};
use l2d_eval::report::{Published, Report, TaskReport};
use l2d_eval::rows::{Row, SourceFile, check_count, read_split};
use l2d_eval::task::{Profile, Turn};
use l2d_eval::tasks::by_name;
use l2d_eval::{
    BoxError, Evaluation, Journal, LengthLimit, RowLength, RunResult, RunSettings, Scoring, Selection, Task, Tools,
};
use l2d_infer::decode::{Beam, BeamParams, Decoder};
use l2d_infer::sampler::SamplingParams;
use serde_json::{Value, json};

use self::identity::Identity;
use self::kept::SAMPLES;
use self::likelihood::ModelScorer;
use self::outputs::Bars;
use self::tools::Equipped;
use crate::args::{DecodeArgs, EvalArgs, EvalCommand, EvalSubcommand, ScoringArgs};
use crate::backend::{BackendKind, with_backend};
use crate::decoding::Budget;
use crate::error::CliError;
use crate::generator::{Guide, ModelGenerator, messages};
use crate::hub;
use crate::model::{Model, Text, on_interrupt};
use crate::output::say;
use crate::place::Place;
use crate::progress::EvalProgress;
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
        return with_backend!(place, B, devices => answer::<B>(args, place.kind, &devices[0]));
    }
    ranks::on_device(&*ranks, place, local, |place, entered| {
        with_backend!(place, B, devices => {
            entered.set(true);
            shared::run::<B>(args, place.kind, &devices[0], &*ranks)
        })
    })
}

/// Asks the questions, on this rank alone.
fn answer<B: Backend>(args: &EvalArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    match args.likelihood {
        true => score_options::<B>(args, backend, device),
        false => generate::<B>(args, backend, device),
    }
}

/// One point of the grid.
struct Point {
    decode: DecodeArgs,
    budget: Budget,
    seed: u64,
}

/// Every combination of strength, budget and seed. The plain LM is not guided, so it is run once.
fn grid(args: &EvalArgs, budgets: &[Budget]) -> Vec<Point> {
    let seeds = args.seeds.clone().unwrap_or_else(|| vec![args.decode.seed]);
    let strengths: Vec<Vec<f64>> = match &*args.decode.guidance {
        [] => vec![Vec::new()],
        several => several.iter().map(|&strength| vec![strength]).collect(),
    };
    let mut points = Vec::new();
    for &budget in budgets {
        let plain = budget == Budget::Evaluations(1);
        for guidance in &strengths[..if plain { 1 } else { strengths.len() }] {
            for &seed in &seeds {
                let guidance = if plain { Vec::new() } else { guidance.clone() };
                points.push(Point { decode: DecodeArgs { guidance, ..args.decode.clone() }, budget, seed });
            }
        }
    }
    points
}

/// Generates and scores. Finished samples are in a journal, so the same command goes on where it was stopped. A batch is
/// decoded in at most as many threads as the backend decodes with.
fn generate<B: Backend>(args: &EvalArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    let profile: Profile = args.scoring.profile.parse()?;
    let published = published(&args.scoring)?;
    each_once("--tasks", &args.tasks)?;
    each_once("--steps", args.steps.as_deref().unwrap_or_default())?;
    each_once("--seeds", args.seeds.as_deref().unwrap_or_default())?;
    each_once("--guidance", &args.decode.guidance)?;
    let scoring = if args.predict_only { Scoring::Later } else { Scoring::Now };
    let Equipped { mut tasks, environment } = tools::with_sandbox(&args.tasks, &args.scoring, !args.predict_only)?;
    for task in &mut tasks {
        adjust(task.as_mut(), args)?;
    }
    // What is missing is said before a model is loaded.
    let asked = tasks.iter().map(|task| read(args, task.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, device)?;
    let usual = match &args.model.adapter {
        Some(_) => vec![1, model.default_steps()],
        None => vec![1],
    };
    let budgets = args.decode.budgets(args.steps.as_deref(), &usual)?;
    args.decode.refuse_idle_flags(&budgets)?;
    if args.along_t && !budgets.iter().any(|budget| matches!(budget, Budget::Evaluations(2..))) {
        return Err(CliError::Usage(
            "--along-t compares times of a grid: ask for --steps above 1, and for no adaptive solver".into(),
        ));
    }
    let beam = args.search.beam();
    let checked_beam = beam.map(|beam| beam.check()).transpose()?;
    let points = grid(args, &budgets);
    // Refuse what cannot be met before hours of what can.
    for point in &points {
        model.check(&point.decode.diffusion(point.budget))?;
    }
    let guide = model.guide(&args.decode)?;
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
    let identity = Identity::of(&args.model, model.lm(), &text, B::name(device))?;
    for task in &tasks {
        identity.check_owner(&args.out, task.name())?;
        if let Some(whole) = &args.part_of {
            identity.check_owner(whole, task.name())?;
        }
    }
    let cancel = on_interrupt()?;
    let mut bars = Bars::default();
    for (task, Rows { rows, shots, files }) in tasks.iter().zip(asked) {
        let task = task.as_ref();
        let measure = |turns: &[Turn], solution: &str| length(&text, turns, solution);
        let context = model.lm().config.max_positions;
        let limit = LengthLimit { measure: &measure, max_tokens: MAX_ROW_TOKENS, context };
        let evaluation = Evaluation::prepare(task, &rows, &shots, &args.selection(), Some(&limit))?.quoting(profile);
        let mut journal = Journal::open(args.out.join(format!("{}{SAMPLES}", task.name())))?;
        let mut runs: Vec<(RunSettings, RunResult)> = Vec::new();
        for point in &points {
            let settings = RunSettings {
                samples: args.repeats.map_or_else(|| task.repeats(), NonZeroUsize::get),
                batch_size: args.batch_size,
                seed: point.seed,
                generation: generation(args, &identity, point, task, beam.as_ref(), &guide),
            };
            let result = decode(
                &model,
                &text,
                &guide,
                point,
                task,
                checked_beam,
                &cancel,
                backend,
                &evaluation,
                &settings,
                scoring,
                &mut journal,
            )?;
            bars.extend(task.name(), &settings, &result);
            let stopped = result.interrupted;
            runs.push((settings, result));
            if stopped {
                break;
            }
        }
        let interrupted = runs.iter().any(|(_, result)| result.interrupted);
        let count: usize = runs.iter().map(|(_, result)| result.samples.len()).sum();
        // Called off before anything was finished: an older result is not replaced by nothing.
        if count > 0 {
            let hash = Some(evaluation.prompt_hash());
            let described = TaskReport::new(task, profile, evaluation.counts(), hash, &files);
            let runs = again::reports(task, profile, &runs);
            let report = Report::new(described, identity.description.clone(), runs).in_environment(environment.clone());
            if args.predict_only {
                // What was asked of which model, for whoever scores it.
                outputs::write_json(&args.out, &report)?;
                let journal = journal.path().display();
                if args.part_of.is_none() {
                    say!("{}: {count} answers in {journal}; `l2d eval rescore` scores them", task.name())?;
                }
            } else {
                outputs::write(&args.out, &report, published.as_ref(), args.part_of.is_none())?;
            }
        }
        if interrupted {
            return Err(CliError::Interrupted);
        }
    }
    bars.draw(&args.out)
}

/// Runs one point of the grid.
fn decode<B: Backend>(
    model: &Model<B>,
    text: &Text,
    guide: &Guide,
    point: &Point,
    task: &dyn Task,
    beam: Option<Beam>,
    cancel: &AtomicBool,
    backend: BackendKind,
    evaluation: &Evaluation<'_>,
    settings: &RunSettings,
    scoring: Scoring,
    journal: &mut Journal,
) -> Result<RunResult, CliError> {
    let mut generator = ModelGenerator {
        decoder: model.decoder(point.decode.diffusion(point.budget), point.decode.mode())?,
        text,
        guide: guide.clone(),
        sampling: point.decode.sampling_for(task.temperature()),
        beam,
        along: settings.generation.get("along_t").is_some(),
        cancel,
        threads: backend.decode_threads(),
    };
    let strength = point.decode.guidance.first().map_or_else(String::new, |strength| format!(", guidance {strength}"));
    let mut progress = EvalProgress::new(format!("{} at {}{strength}", task.name(), point.budget));
    let result = evaluation.run(settings, scoring, &mut generator, Some(journal), &mut progress, cancel)?;
    progress.finish();
    Ok(result)
}

/// Everything a completion depends on beside prompt, seed and number.
fn generation(
    args: &EvalArgs,
    identity: &Identity,
    point: &Point,
    task: &dyn Task,
    beam: Option<&BeamParams>,
    guide: &Guide,
) -> Value {
    let mut generation = json!({
        "asked": { "shots": task.shots(), "max_new_tokens": task.max_new_tokens() },
        "model": identity.key,
        "diffusion": point.decode.diffusion(point.budget),
        "sampling": point.decode.sampling_for(task.temperature()),
    });
    // Named only where it is not the default: a run without it goes on with the journal it has.
    if args.model.cache_format() != CacheFormat::default() {
        generation["kv_cache"] = json!(args.model.cache_format().name());
    }
    if let Some(class) = &args.decode.class {
        generation["class"] = json!(class);
    } else if guide.by_task() {
        generation["class"] = json!("the task's");
    }
    if args.along_t && point.budget != Budget::Evaluations(1) {
        generation["along_t"] = json!(true);
    }
    if let Some(beam) = beam {
        generation["beam"] = json!(beam);
    }
    generation
}

/// `--likelihood`.
fn score_options<B: Backend>(args: &EvalArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    if args.decode.sampling() != SamplingParams::default() {
        return Err(CliError::Usage("--likelihood draws no tokens: leave out the flags of sampling".into()));
    }
    args.scoring.profile.parse::<Profile>()?;
    each_once("--tasks", &args.tasks)?;
    if args.batch_size == 0 {
        return Err(CliError::Usage("--batch-size must be at least 1".into()));
    }
    let published = published(&args.scoring)?;
    let mut tasks = Vec::new();
    for name in &args.tasks {
        let mut task = ByLikelihood::new(by_name(name, &Tools::default())?)?;
        if let Some(shots) = args.shots {
            task.set_shots(shots)?;
        }
        tasks.push(task);
    }
    let asked = tasks.iter().map(|task| read(args, task)).collect::<Result<Vec<_>, _>>()?;
    let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, device)?;
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
    let identity = Identity::of(&args.model, model.lm(), &text, B::name(device))?;
    for task in &tasks {
        identity.check_owner(&args.out, task.name())?;
        if let Some(whole) = &args.part_of {
            identity.check_owner(whole, task.name())?;
        }
    }
    let cancel = on_interrupt()?;
    let mut scorer = ModelScorer {
        decoder: Decoder::plain(model.lm()),
        text: &text,
        cancel: &cancel,
        threads: backend.decode_threads(),
    };
    for (task, Rows { rows, shots, files }) in tasks.iter().zip(asked) {
        let context = model.lm().config.max_positions;
        let evaluation = LikelihoodEvaluation::prepare(task, &rows, &shots, &args.selection(), context, &mut scorer)?;
        let mut journal = Journal::open(args.out.join(format!("{}{SAMPLES}", task.name())))?;
        let generation = json!({ "asked": { "shots": task.shots() }, "model": identity.key, "likelihood": true });
        let settings = RunSettings { samples: 1, batch_size: args.batch_size, seed: args.decode.seed, generation };
        let mut progress = EvalProgress::new(task.name().to_owned());
        let result = evaluation.run(&settings, &mut scorer, &mut journal, &mut progress, &cancel)?;
        progress.finish();
        let interrupted = result.interrupted;
        if !result.samples.is_empty() {
            let runs = [(settings, result)];
            let hash = Some(evaluation.prompt_hash());
            let described = TaskReport::new(task, Profile::Harness, evaluation.counts(), hash, &files);
            let report =
                Report::new(described, identity.description.clone(), again::reports(task, Profile::Harness, &runs));
            outputs::write(&args.out, &report, published.as_ref(), args.part_of.is_none())?;
        }
        if interrupted {
            return Err(CliError::Interrupted);
        }
    }
    Ok(())
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
