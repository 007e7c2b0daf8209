//! `l2d eval`: a benchmark at several numbers of diffusion steps.

use std::path::Path;

use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{BaseFingerprint, inspect_adapter, write_atomically};
use l2d_core::cpu::CacheFormat;
use l2d_eval::plot::AccuracyPlot;
use l2d_eval::report::{Report, RunReport, TaskReport};
use l2d_eval::rows::{read_file, read_split};
use l2d_eval::task::Turn;
use l2d_eval::tasks::by_name;
use l2d_eval::{BoxError, Evaluation, Journal, LengthLimit, RowLength, RunResult, RunSettings};
use serde_json::{Value, json};

use crate::args::{EvalArgs, SolverKind};
use crate::backend::BackendKind;
use crate::decoding::Budget;
use crate::error::CliError;
use crate::generator::{ModelGenerator, messages};
use crate::hub::name_of;
use crate::model::{Model, Text, on_interrupt};
use crate::output::say;
use crate::progress::EvalProgress;

/// The paper drops rows whose prompt and reference answer are longer together.
pub(crate) const MAX_ROW_TOKENS: usize = 2048;

/// Runs the command. Finished samples are in a journal, so the same command goes on where it was stopped. A batch is decoded
/// in at most as many threads as the backend decodes with.
pub(crate) fn run<B: Backend>(args: &EvalArgs, backend: BackendKind) -> Result<(), CliError> {
    let mut tasks = args.tasks.iter().map(|name| by_name(name)).collect::<Result<Vec<_>, _>>()?;
    if let Some(tokens) = args.max_tokens {
        tasks.iter_mut().for_each(|task| task.set_max_new_tokens(tokens));
    }
    let device = B::Device::default();
    let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, &device)?;
    let class = model.class(args.decode.class.as_deref())?;
    let usual = match &args.model.adapter {
        Some(_) => vec![1, model.default_steps()],
        None => vec![1],
    };
    let budgets = args.decode.budgets(args.steps.as_deref(), &usual)?;
    args.decode.refuse_idle_flags(&budgets)?;
    let beam = args.search.beam();
    let checked_beam = beam.map(|beam| beam.check()).transpose()?;
    // Refuse a number of steps that cannot be met before hours of those that can.
    for &budget in &budgets {
        model.check(&args.decode.diffusion(budget))?;
    }
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
    let identity = Identity::of(args, &BaseFingerprint::of(model.lm()), &text, B::name(&device))?;
    for task in &tasks {
        identity.check_owner(&args.out, task.name())?;
    }
    let cancel = on_interrupt()?;
    for task in &tasks {
        let (rows, shot_rows, provenance) = match task.data_set() {
            Some(data_set) => {
                let (rows, provenance) = read_split(&args.data, &data_set, task.split(), args.limit)?;
                let (shots, _) = read_split(&args.data, &data_set, task.shot_split(), task.shot_rows())?;
                (rows, shots, Some(provenance))
            }
            // A task of ours, without a published data set or shots: its rows are a file that the quick start writes.
            None => (read_file(&args.data.join(format!("{}.jsonl", task.split())))?, Vec::new(), None),
        };
        let measure = |turns: &[Turn], solution: &str| length(&text, turns, solution);
        let context = model.lm().config.max_positions;
        let limit = LengthLimit { measure: &measure, max_tokens: MAX_ROW_TOKENS, context };
        let evaluation = Evaluation::prepare(task.as_ref(), &rows, &shot_rows, args.limit, Some(&limit))?;
        let mut journal = Journal::open(args.out.join(format!("{}.samples.jsonl", task.name())))?;
        let mut runs = Vec::new();
        let mut interrupted = false;
        for &budget in &budgets {
            let params = args.decode.diffusion(budget);
            let mut generation = json!({
                "model": identity.key,
                "diffusion": params,
                "sampling": args.decode.sampling(),
            });
            // Named only where it is not the default: a run without it goes on with the journal it has.
            if args.model.cache_format() != CacheFormat::default() {
                generation["kv_cache"] = json!(args.model.cache_format().name());
            }
            if let Some(class) = &args.decode.class {
                generation["class"] = json!(class);
            }
            if let Some(beam) = &beam {
                generation["beam"] = json!(beam);
            }
            let settings = RunSettings { samples: 1, batch_size: args.batch_size, seed: args.decode.seed, generation };
            let mut generator = ModelGenerator {
                decoder: model.decoder(params, args.decode.mode())?,
                text: &text,
                class,
                sampling: args.decode.sampling(),
                beam: checked_beam,
                cancel: &cancel,
                threads: backend.decode_threads(),
            };
            let mut progress = EvalProgress::new(format!("{} at {budget}", task.name()));
            let result = evaluation.run(&settings, &mut generator, Some(&mut journal), &mut progress, &cancel)?;
            progress.finish();
            interrupted |= result.interrupted;
            runs.push(RunReport::new(&evaluation, series(args), steps(budget, &result), &settings, &result));
            if interrupted {
                break;
            }
        }
        // Called off before anything was finished: an older result is not replaced by nothing.
        if runs.iter().any(|run| run.samples > 0) {
            let report =
                Report::new(TaskReport::new(&evaluation, provenance.as_ref()), identity.description.clone(), runs);
            write(&args.out, task.name(), &report)?;
            say!("{}", report.to_markdown())?;
        }
        if interrupted {
            return Err(CliError::Interrupted);
        }
    }
    Ok(())
}

/// Tokens of a prompt and its reference answer.
pub(crate) fn length(text: &Text, turns: &[Turn], solution: &str) -> Result<RowLength, BoxError> {
    Ok(RowLength {
        prompt: text.prompt(&messages(turns))?.len(),
        solution: text.tokenizer.encode(solution, false)?.len(),
    })
}

/// What the results are results of.
struct Identity {
    /// Everything a completion depends on beside the settings and the prompt's text, by content and not by name.
    key: Value,
    /// The same with names for people.
    description: Value,
}

impl Identity {
    fn of(args: &EvalArgs, base: &BaseFingerprint, text: &Text, backend: String) -> Result<Self, CliError> {
        let template = text.template.as_ref().map(|template| template.source());
        let text = json!([text.tokenizer.to_json()?, template, text.stop_tokens]);
        let mut key = json!({ "base": base, "text": sha256(text.to_string().as_bytes()), "backend": backend });
        let mut description = key.clone();
        description["name"] = name_of(&args.model.model).into();
        if let Some(file) = &args.model.adapter {
            let bytes = std::fs::read(file).map_err(|e| CliError::io(file, e))?;
            key["adapter"] = sha256(&bytes).into();
            let notes = inspect_adapter(file)?.notes;
            description["adapter"] = json!({ "name": name_of(file), "sha256": key["adapter"], "notes": notes });
        }
        Ok(Self { key, description })
    }

    /// Refuses to write over the results of another model or adapter.
    fn check_owner(&self, folder: &Path, task: &str) -> Result<(), CliError> {
        let path = folder.join(format!("{task}.json"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(CliError::io(&path, error)),
        };
        let owner = serde_json::from_str::<Value>(&text).unwrap_or_default();
        let same = ["base", "adapter"].iter().all(|part| {
            let content = |value: &Value| value.get("sha256").unwrap_or(value).clone();
            content(&owner["model"][*part]) == content(&self.description[*part])
        });
        if same {
            return Ok(());
        }
        let named = |value: &Value| value.as_str().unwrap_or("another model").to_owned();
        let adapter = owner["model"]["adapter"]["name"].as_str().map(|name| format!(" with {name}"));
        Err(CliError::Usage(format!(
            "{} holds the results of {}{}: give another folder with --out",
            path.display(),
            named(&owner["model"]["name"]),
            adapter.unwrap_or_default(),
        )))
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn series(args: &EvalArgs) -> String {
    let name = if args.model.adapter.is_some() { "L2D" } else { "base" };
    let solver = args.decode.solver.and_then(SolverKind::adaptive).map(|solver| format!(", {solver}"));
    let beams = args.search.beams.map(|beams| format!(", {beams} beams"));
    format!("{name}{}{}", solver.unwrap_or_default(), beams.unwrap_or_default())
}

/// Evaluations a token: those of the budget, or those that an adaptive solver took on average.
fn steps(budget: Budget, result: &RunResult) -> usize {
    match budget {
        Budget::Evaluations(count) => count,
        Budget::Adaptive => {
            let sum = |of: fn(&l2d_eval::Completion) -> usize| -> usize {
                result.samples.iter().map(|sample| of(&sample.completion)).sum()
            };
            let (evaluations, tokens) = (sum(|completion| completion.evaluations), sum(|completion| completion.tokens));
            (evaluations as f64 / tokens.max(1) as f64).round().max(1.0) as usize
        }
    }
}

/// The report as JSON and markdown, the plot as SVG and PNG.
fn write(folder: &Path, name: &str, report: &Report) -> Result<(), CliError> {
    let save = |extension: &str, bytes: &[u8]| {
        write_atomically(&folder.join(format!("{name}.{extension}")), |out| out.write_all(bytes))
    };
    save("json", report.to_json()?.as_bytes())?;
    save("md", report.to_markdown().as_bytes())?;
    let title = format!("{}: accuracy against diffusion steps", report.task.name);
    AccuracyPlot::from_runs(title, "accuracy, %", &report.runs).draw()?.save(&folder.join(name))?;
    Ok(())
}
