//! Answers to questions, generated at every point of a grid of steps, strengths of guidance and seeds.

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::cpu::CacheFormat;
use l2d_eval::report::{Published, Report, TaskReport};
use l2d_eval::task::{Profile, Turn};
use l2d_eval::{Evaluation, Journal, LengthLimit, RunResult, RunSettings, Scoring, Task};
use l2d_infer::decode::BeamParams;
use l2d_train::ranks::Ranks;
use serde_json::{Value, json};

use super::identity::Identity;
use super::kept::ASKED;
use super::outputs::{self, Bars};
use super::shared::{asked_alike, digests};
use super::tools::{self, Equipped};
use super::{
    MAX_ROW_TOKENS, Rows, adjust, again, check_owners, each_once, journal_of, length, nothing_to_ask, published, read,
};
use crate::args::{DecodeArgs, EvalArgs};
use crate::backend::BackendKind;
use crate::decoding::Budget;
use crate::error::CliError;
use crate::generator::{Guide, ModelGenerator};
use crate::model::{Model, Text, on_interrupt};
use crate::output::say;
use crate::progress::EvalProgress;
use crate::ranks::settle;

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

/// What stands before the first question is asked.
struct Ready<B: Backend> {
    profile: Profile,
    published: Option<Published>,
    tasks: Vec<Box<dyn Task>>,
    environment: Value,
    asked: Vec<Rows>,
    model: Model<B>,
    text: Text,
    points: Vec<Point>,
    beam: Option<BeamParams>,
    guide: Guide,
    identity: Identity,
}

impl<B: Backend> Ready<B> {
    fn new(args: &EvalArgs, backend: BackendKind, device: &Device<B>) -> Result<Self, CliError> {
        let profile: Profile = args.scoring.profile.parse()?;
        let published = published(&args.scoring)?;
        each_once("--steps", args.steps.as_deref().unwrap_or_default())?;
        each_once("--seeds", args.seeds.as_deref().unwrap_or_default())?;
        each_once("--guidance", &args.decode.guidance)?;
        let Equipped { mut tasks, environment } = tools::with_sandbox(&args.tasks, &args.scoring, !args.predict_only)?;
        for task in &mut tasks {
            adjust(task.as_mut(), args)?;
        }
        let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
        each_once("--tasks", &names)?;
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
        beam.map(|beam| beam.check()).transpose()?;
        let points = grid(args, &budgets);
        // Refuse what cannot be met before hours of what can.
        for point in &points {
            model.check(&point.decode.diffusion(point.budget))?;
        }
        let guide = model.guide(&args.decode)?;
        let identity = Identity::of(&args.model, model.lm(), &text, B::name(device))?;
        check_owners(args, &identity, tasks.iter().map(|task| task.name()))?;
        Ok(Self { profile, published, tasks, environment, asked, model, text, points, beam, guide, identity })
    }

    /// The tasks with their prompts.
    fn evaluations(&self, args: &EvalArgs, ranks: &dyn Ranks) -> Result<Vec<Evaluation<'_>>, CliError> {
        let measure = |turns: &[Turn], solution: &str| length(&self.text, turns, solution);
        let context = self.model.lm().config.max_positions;
        let limit = LengthLimit { measure: &measure, max_tokens: MAX_ROW_TOKENS, context };
        let mut evaluations = Vec::with_capacity(self.tasks.len());
        for (task, Rows { rows, shots, .. }) in self.tasks.iter().zip(&self.asked) {
            let evaluation = Evaluation::prepare(task.as_ref(), rows, shots, &args.selection(), Some(&limit))
                .map_err(|error| nothing_to_ask(error, ranks))?;
            evaluations.push(evaluation.quoting(self.profile));
        }
        Ok(evaluations)
    }

    /// The settings of one point of the grid for a task.
    fn settings(&self, args: &EvalArgs, point: &Point, task: &dyn Task) -> RunSettings {
        RunSettings {
            samples: args.repeats.map_or_else(|| task.repeats(), NonZeroUsize::get),
            batch_size: args.batch_size,
            seed: point.seed,
            generation: generation(args, &self.identity, point, task, self.beam.as_ref(), &self.guide),
        }
    }
}

/// Generates and scores. Finished samples are in a journal, so the same command goes on where it was stopped. A batch is
/// decoded in at most as many threads as the backend decodes with.
pub(super) fn run<B: Backend>(
    args: &EvalArgs,
    backend: BackendKind,
    device: &Device<B>,
    ranks: &dyn Ranks,
) -> Result<(), CliError> {
    let scoring = if args.predict_only { Scoring::Later } else { Scoring::Now };
    let ready = settle(ranks, Ready::<B>::new(args, backend, device))?;
    let evaluations = settle(ranks, ready.evaluations(args, ranks))?;
    let mut asked = Vec::new();
    for (evaluation, Rows { files, .. }) in evaluations.iter().zip(&ready.asked) {
        for point in &ready.points {
            asked.push(
                evaluation.asked(&ready.settings(args, point, evaluation.task()), digests(evaluation.task(), files)),
            );
        }
    }
    asked_alike(ranks, &ready.tasks.iter().map(|task| task.name()).collect::<Vec<_>>(), &asked, ready.profile.name())?;
    let cancel = on_interrupt()?;
    let mut bars = Bars::default();
    for (evaluation, Rows { files, .. }) in evaluations.iter().zip(&ready.asked) {
        let task = evaluation.task();
        let mut journal = journal_of(args, task.name())?;
        let mut runs: Vec<(RunSettings, RunResult)> = Vec::new();
        for point in &ready.points {
            let settings = ready.settings(args, point, task);
            evaluation
                .asked(&settings, digests(task, files))
                .note(&args.out.join(format!("{}{ASKED}", task.name())))?;
            let result = decode(&ready, point, &cancel, backend, evaluation, &settings, scoring, &mut journal)?;
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
            let described = TaskReport::new(task, ready.profile, evaluation.counts(), hash, files);
            // Kept only, and scored in part: no score of all.
            if args.predict_only
                && runs.iter().flat_map(|(_, result)| &result.samples).any(|sample| sample.scores.is_empty())
            {
                for sample in runs.iter_mut().flat_map(|(_, result)| &mut result.samples) {
                    sample.scores.clear();
                }
            }
            let runs = again::reports(task, ready.profile, &runs);
            let report = Report::new(described, ready.identity.description.clone(), runs)
                .in_environment(ready.environment.clone());
            if args.predict_only {
                // What was asked of which model, for whoever scores it.
                outputs::write_json(&args.out, &report)?;
                let journal = journal.path().display();
                if args.part_of.is_none() {
                    say!("{}: {count} answers in {journal}; `l2d eval rescore` scores them", task.name())?;
                }
            } else {
                outputs::write(&args.out, &report, ready.published.as_ref(), args.part_of.is_none())?;
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
    ready: &Ready<B>,
    point: &Point,
    cancel: &AtomicBool,
    backend: BackendKind,
    evaluation: &Evaluation<'_>,
    settings: &RunSettings,
    scoring: Scoring,
    journal: &mut Journal,
) -> Result<RunResult, CliError> {
    let task = evaluation.task();
    let mut generator = ModelGenerator {
        decoder: ready.model.decoder(point.decode.diffusion(point.budget), point.decode.mode())?,
        text: &ready.text,
        guide: ready.guide.clone(),
        sampling: point.decode.sampling_for(task.temperature()),
        beam: ready.beam.map(|beam| beam.check()).transpose()?,
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
