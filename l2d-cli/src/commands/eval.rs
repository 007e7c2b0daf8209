//! `l2d eval`: a benchmark at several numbers of diffusion steps.

use std::path::Path;

use burn::tensor::backend::Backend;
use indicatif::ProgressBar;
use l2d_core::checkpoint::{BaseFingerprint, inspect_adapter, write_atomically};
use l2d_eval::metric::Proportion;
use l2d_eval::plot::AccuracyPlot;
use l2d_eval::report::{Report, RunReport, TaskReport};
use l2d_eval::rows::{read_file, read_split};
use l2d_eval::task::Turn;
use l2d_eval::tasks::by_name;
use l2d_eval::{BoxError, Evaluation, Journal, LengthLimit, Progress, RunSettings, Sample};
use serde_json::{Value, json};

use crate::args::{EvalArgs, ModelArgs};
use crate::error::CliError;
use crate::generator::{ModelGenerator, messages};
use crate::model::{Model, Text, on_interrupt};
use crate::progress::plain_bar;

/// The paper drops rows whose prompt and reference answer are longer together.
const MAX_ROW_TOKENS: usize = 2048;

/// Runs the command. Finished samples are in a journal, so the same command goes on where it was stopped.
pub(crate) fn run<B: Backend>(args: &EvalArgs) -> Result<(), CliError> {
    let tasks = args.tasks.iter().map(|name| by_name(name)).collect::<Result<Vec<_>, _>>()?;
    let device = B::Device::default();
    let (model, text) = Model::<B>::load(&args.model, &device)?;
    // Refuse a number of steps that cannot be met before hours of those that can.
    for &steps in &args.steps {
        model.decoder(args.decode.diffusion(steps))?;
    }
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
    let identity = identity(&args.model, &BaseFingerprint::of(model.lm()))?;
    let cancel = on_interrupt()?;
    for task in &tasks {
        let (rows, shot_rows, provenance) = match task.data_set() {
            Some(data_set) => {
                let (rows, provenance) = read_split(&args.data, &data_set, task.split(), args.limit)?;
                let (shots, _) = read_split(&args.data, &data_set, task.shot_split(), Some(task.shots()))?;
                (rows, shots, Some(provenance))
            }
            // A task of ours, without a published data set or shots: its rows are a file that the quick start writes.
            None => (read_file(&args.data.join(format!("{}.jsonl", task.split())))?, Vec::new(), None),
        };
        let measure = |turns: &[Turn], solution: &str| length(&text, turns, solution);
        let limit = LengthLimit { measure: &measure, max_tokens: MAX_ROW_TOKENS };
        let evaluation = Evaluation::prepare(task.as_ref(), &rows, &shot_rows, args.limit, Some(&limit))?;
        let mut journal = Journal::open(args.out.join(format!("{}.samples.jsonl", task.name())))?;
        let mut runs = Vec::new();
        let mut interrupted = false;
        for &steps in &args.steps {
            let params = args.decode.diffusion(steps);
            let settings = RunSettings {
                samples: 1,
                batch_size: args.batch_size,
                seed: args.decode.seed,
                generation: json!({
                    "model": identity,
                    "diffusion": params,
                    "sampling": args.decode.sampling(),
                    "max_tokens": args.max_tokens,
                }),
            };
            let mut generator = ModelGenerator {
                decoder: model.decoder(params)?,
                text: &text,
                sampling: args.decode.sampling(),
                max_tokens: args.max_tokens,
                cancel: &cancel,
            };
            let mut bar = Bar(plain_bar(0, &format!("{} at {steps}", task.name())));
            let result = evaluation.run(&settings, &mut generator, Some(&mut journal), &mut bar, &cancel)?;
            bar.0.finish();
            interrupted |= result.interrupted;
            runs.push(RunReport::new(&evaluation, series(args), steps, &settings, &result));
            if interrupted {
                break;
            }
        }
        let report = Report::new(TaskReport::new(&evaluation, provenance.as_ref()), identity.clone(), runs);
        write(&args.out, task.name(), &report)?;
        println!("{}", report.to_markdown());
        if interrupted {
            return Err(CliError::Interrupted);
        }
    }
    Ok(())
}

/// Tokens of a prompt and its reference answer.
fn length(text: &Text, turns: &[Turn], solution: &str) -> Result<usize, BoxError> {
    Ok(text.prompt(&messages(turns))?.len() + text.tokenizer.encode(solution, false)?.len())
}

/// What the results are results of: names for people, fingerprints for the journal.
fn identity(args: &ModelArgs, base: &BaseFingerprint) -> Result<Value, CliError> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let adapter = match &args.adapter {
        None => Value::Null,
        Some(file) => {
            let bytes = std::fs::read(file).map_err(|e| CliError::io(file, e))?;
            json!({ "name": name(file), "sha256": sha256(&bytes), "notes": inspect_adapter(file)?.notes })
        }
    };
    Ok(json!({ "name": name(&args.model), "base": base, "adapter": adapter }))
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn series(args: &EvalArgs) -> &'static str {
    if args.model.adapter.is_some() { "L2D" } else { "base" }
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

/// The harness's progress as a bar.
pub(crate) struct Bar(pub(crate) ProgressBar);

impl Progress for Bar {
    fn begin(&mut self, total: usize, resumed: usize) {
        self.0.set_length(total as u64);
        self.0.set_position(resumed as u64);
    }

    fn batch(&mut self, finished: &[Sample], so_far: Proportion) {
        self.0.inc(finished.len() as u64);
        self.0.set_message(format!("accuracy {:.1} %", 100.0 * so_far.mean));
    }
}
