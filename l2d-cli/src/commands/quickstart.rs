//! `l2d quickstart`: an embedded LM learns, live, to think in more steps; nothing to download.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::L2d;
use l2d_core::checkpoint::{BaseFingerprint, StoredDtype, load_adapter_bytes, save_adapter, write_atomically};
use l2d_core::cpu::WeightFormat;
use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::Lm;
use l2d_core::parameters::trainable;
use l2d_eval::metric::{PairedDifference, Proportion};
use l2d_eval::plot::{AccuracyPlot, AccuracyPoint, ReferenceLine};
use l2d_eval::report::{Report, RunLabel, RunReport, TaskReport, describe_difference, markdown_table};
use l2d_eval::rows::from_jsonl;
use l2d_eval::task::Profile;
use l2d_eval::tasks::Arithmetic;
use l2d_eval::{Evaluation, RunResult, RunSettings, Sample, Scoring, Selection};
use l2d_infer::decode::{Decoder, DiffusionParams};
use l2d_infer::sampler::SamplingParams;
use l2d_train::data::{Dataset, Example};
use l2d_train::objective::add_lora;
use l2d_train::{L2dEngine, L2dTask, LmEngine, LmTask, Outcome, Silent, Task, TrainConfig, train};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::args::QuickstartArgs;
use crate::arithmetic::{Problem, SLIP_EVERY, Split, problems, write_jsonl};
use crate::backend::BackendKind;
use crate::error::CliError;
use crate::generator::{Guide, ModelGenerator};
use crate::model::{Text, on_interrupt};
use crate::output::say;
use crate::progress::{EvalProgress, TrainProgress};
use crate::tiny;

/// Budgets of the scaling curve; 1 is the plain LM.
const STEPS: [usize; 4] = [3, 7, 15, 31];
/// The budget the shown answers are decoded with.
const SHOWN_STEPS: usize = 15;
/// Problems shown with their answers.
const SHOWN: usize = 3;
/// Problems the live run learns from; more than it can see in a minute.
const TRAINING_PROBLEMS: usize = 60_000;
/// Sequences decoded together: enough to fill a CPU, few enough to see progress.
const BATCH: usize = 100;

/// Runs the command.
pub(crate) fn run<B: Backend>(args: &QuickstartArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    if let Some(folder) = &args.export_data {
        return export_data(folder, args.seed);
    }
    let start = Instant::now();
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io(&args.out, e))?;
    let cancel = on_interrupt()?;
    let (lm, text) = tiny::base::<B>(device)?;
    let recipe = tiny::recipe()?;
    say!(
        "The base: a Llama-type LM of {:.1} million parameters, pretrained on products such as {}. One written digit in \
         {SLIP_EVERY} of its corpus was wrong; what it is finetuned on from here is right.",
        lm.config.num_parameters() as f64 / 1e6,
        example_line(Problem { left: 347, right: 28 }),
    )?;

    let session = Session { lm, text, device, cancel: &cancel, args, backend };
    let examples = session.examples()?;
    let live = session.train_live(&recipe, &examples)?;
    let baseline = if args.baseline { Some(session.train_baseline(&recipe, &examples)?) } else { None };
    let shipped = if args.long {
        None
    } else {
        Some(load_adapter_bytes(Path::new("the shipped adapter"), tiny::ADAPTER, &session.lm)?)
    };
    session.evaluate(live, shipped, baseline)?;
    say!("\n{} seconds in all.", start.elapsed().as_secs())?;
    Ok(())
}

/// What the parts of the quick start share.
struct Session<'a, B: Backend> {
    lm: Lm<B>,
    text: Text,
    device: &'a Device<B>,
    cancel: &'a AtomicBool,
    args: &'a QuickstartArgs,
    backend: BackendKind,
}

impl<B: Backend> Session<'_, B> {
    /// Training examples, rendered as at inference.
    fn examples(&self) -> Result<Vec<Example>, CliError> {
        let rows: Vec<_> =
            problems(Split::Train, TRAINING_PROBLEMS, self.args.seed).into_iter().map(Problem::conversation).collect();
        Ok(Dataset::build(&rows, &self.text, &[], tiny::MAX_TOKENS)?.examples)
    }

    /// Finetunes a fresh diffusion path for as long as was asked (or, with --long, for all the recipe's steps).
    fn train_live(&self, recipe: &TrainConfig, examples: &[Example]) -> Result<DiffusionPath<B>, CliError> {
        let diffusion = recipe.diffusion.clone().check(Path::new("the recipe"))?;
        let path = DiffusionPath::init(&self.lm, &diffusion, &mut ChaCha8Rng::seed_from_u64(self.args.seed));
        say!(
            "\nFinetuning a diffusion path of {} parameters beside it ({}). Watch the loss by diffusion time t: near t = 1 \
             the path is shown almost the answer, so it falls first; near t = 0 it stays the base's.",
            diffusion.parameter_counts(&self.lm.config).total(),
            if self.args.long {
                "the whole recipe".to_string()
            } else {
                format!("about {} seconds", self.args.seconds)
            },
        )?;
        let lm = self.lm.clone();
        // On a CPU by hand, which takes packed weights.
        let lm = if self.backend.is_cpu() { lm.packed(WeightFormat::F32) } else { lm };
        let engine = L2dEngine::new(lm, recipe.engine());
        let task = L2dTask::<Autodiff<B>>::new(engine, recipe.draws());
        let path = self.train(&task, trainable(AutodiffModule::from_inner(path)), recipe, examples)?.valid();
        let file = self.args.out.join("live-adapter.safetensors");
        let notes = BTreeMap::from([("made_by".to_string(), "l2d quickstart".to_string())]);
        save_adapter(&file, &path, &BaseFingerprint::of(&self.lm), &notes, StoredDtype::F32)?;
        say!("Saved {}.", file.display())?;
        Ok(path)
    }

    /// Low-rank finetuning of the base's weights on the same data, for as long.
    fn train_baseline(&self, recipe: &TrainConfig, examples: &[Example]) -> Result<Lm<B>, CliError> {
        say!("\nThe baseline: ordinary LoRA finetuning of the base's weights, same data, same time.")?;
        let by_hand = self.backend.is_cpu();
        let lm = self.lm.clone();
        let lm = if by_hand { lm.packed(WeightFormat::F32) } else { lm };
        let lm: Lm<Autodiff<B>> = AutodiffModule::from_inner(lm);
        let lm = add_lora(lm, recipe.lora_rank, recipe.lora_alpha, &mut ChaCha8Rng::seed_from_u64(self.args.seed));
        let task = LmTask::new(LmEngine::new(&lm, by_hand, recipe.engine()), recipe.lora_dropout);
        // The base has learnt this task already; the paper, too, sweeps weight finetuning at a tenth of L2D's rate.
        let config = TrainConfig { learning_rate: recipe.learning_rate / 10.0, ..recipe.clone() };
        let trained = self.train(&task, lm, &config, examples)?.valid();
        // The corrections are packed beside their weights.
        Ok(if by_hand { trained.packed(WeightFormat::F32) } else { trained })
    }

    fn train<T: Task<Autodiff<B>>>(
        &self,
        task: &T,
        model: T::Model,
        recipe: &TrainConfig,
        examples: &[Example],
    ) -> Result<T::Model, CliError> {
        let (examples, validation) = examples.split_at(examples.len() - recipe.validation_examples.min(64));
        let mut config = recipe.clone();
        if !self.args.long {
            // A few throw-away updates tell how many fit into the time; the schedule needs to know.
            const PROBE: u64 = 3;
            let probe = TrainConfig { steps: Some(PROBE), warmup_steps: 0, validate_every: 0, ..config.clone() };
            let start = Instant::now();
            let cold = train(task, model.clone(), &examples, &[], &probe, None, self.device, self.cancel, &mut Silent)?;
            drop(cold);
            let per_step = start.elapsed().as_secs_f64() / PROBE as f64;
            let steps = ((self.args.seconds as f64 / per_step) as u64).max(10);
            config.steps = Some(steps);
            config.warmup_steps = config.warmup_steps.min(steps / 5);
            config.validate_every = (steps / 5).max(1);
        }
        let mut progress = TrainProgress::new(config.total_steps(examples.len()));
        let trained =
            train(task, model, &examples, validation, &config, None, self.device, self.cancel, &mut progress)?;
        match trained.outcome {
            Outcome::Finished | Outcome::StoppedEarly => Ok(trained.model),
            Outcome::Interrupted => Err(CliError::Interrupted),
        }
    }

    /// Held-out problems at every budget, the table, the plot, three answers.
    fn evaluate(
        &self,
        live: DiffusionPath<B>,
        shipped: Option<DiffusionPath<B>>,
        baseline: Option<Lm<B>>,
    ) -> Result<(), CliError> {
        let held_out = problems(Split::Test, self.args.problems as usize, self.args.seed);
        let mut jsonl = Vec::new();
        write_jsonl(&held_out, Problem::solution, &mut jsonl).map_err(|e| CliError::io("memory", e))?;
        let task = Arithmetic { max_new_tokens: tiny::MAX_NEW_TOKENS, ..Arithmetic::default() };
        let rows = from_jsonl("held-out problems", &jsonl)?;
        let evaluation = Evaluation::prepare(&task, &rows, &[], &Selection::default(), None)?;
        say!("\n{} held-out problems, each budget of evaluations per token:", held_out.len())?;

        let mut runs = Vec::new();
        let mut kept: BTreeMap<(&str, usize), RunResult> = BTreeMap::new();
        let mut run = |series: &'static str, steps: usize, decoder: Decoder<'_, B>, sampling: SamplingParams| {
            let result = self.score(&evaluation, series, steps, decoder, sampling)?;
            runs.push(result.1);
            kept.insert((series, steps), result.0);
            Ok::<_, CliError>(())
        };
        run("base, greedy", 1, Decoder::plain(&self.lm), SamplingParams::greedy())?;
        run("base, sampled", 1, Decoder::plain(&self.lm), SamplingParams::default())?;
        if let Some(lm) = &baseline {
            run("LoRA, sampled", 1, Decoder::plain(lm), SamplingParams::default())?;
        }
        let live_name: &'static str = if self.args.long { "L2D, trained now" } else { "L2D, live" };
        let mut adapters = vec![(live_name, L2d { lm: self.lm.clone(), path: live })];
        adapters.extend(shipped.map(|path| ("L2D, shipped", L2d { lm: self.lm.clone(), path })));
        for (series, model) in &adapters {
            for steps in STEPS {
                let params = DiffusionParams { evaluations: steps, estimate: tiny::estimate(), ..Default::default() };
                run(series, steps, Decoder::new(model, &params.check()?)?, SamplingParams::default())?;
            }
        }

        say!("\n{}", markdown_table(&runs))?;
        say!(
            "One evaluation is the plain LM. ± is the standard error. Every token but the greedy row's is sampled untempered."
        )?;
        let best = adapters.last().map_or(live_name, |(series, _)| series);
        for (a, b) in [((best, 15), ("base, sampled", 1)), ((best, 31), (best, 3))] {
            if let (Some(first), Some(second)) = (kept.get(&a), kept.get(&b)) {
                let difference = PairedDifference::of(first.judged("accuracy"), second.judged("accuracy"))?;
                let name = |(series, steps): (&str, usize)| format!("{series} at {steps}");
                say!("{}.", describe_difference(&name(a), &name(b), &difference))?;
            }
        }
        self.show_answers(&held_out, &kept, best)?;
        self.write(&evaluation, runs)
    }

    fn score(
        &self,
        evaluation: &Evaluation<'_>,
        series: &'static str,
        steps: usize,
        decoder: Decoder<'_, B>,
        sampling: SamplingParams,
    ) -> Result<(RunResult, RunReport), CliError> {
        let settings = RunSettings {
            samples: 1,
            batch_size: BATCH,
            seed: self.args.seed,
            generation: json!({ "series": series, "steps": steps, "estimate": tiny::estimate(), "sampling": sampling }),
        };
        let mut generator = ModelGenerator {
            decoder,
            guide: Guide::All(None),
            text: &self.text,
            sampling,
            beam: None,
            along: false,
            cancel: self.cancel,
            threads: self.backend.decode_threads(),
        };
        let mut progress = EvalProgress::new(format!("{series} at {steps}"));
        let result = evaluation.run(&settings, Scoring::Now, &mut generator, None, &mut progress, self.cancel)?;
        progress.clear();
        if result.interrupted || self.cancel.load(Ordering::Relaxed) {
            return Err(CliError::Interrupted);
        }
        let label = RunLabel { series: series.to_owned(), steps, guidance: None };
        let report = RunReport::new(evaluation.task(), Profile::Exact, label, &settings, &result);
        if let Some(accuracy) = report.accuracy() {
            say!("  {series} at {steps}: {:.1} %", 100.0 * accuracy.mean)?;
        }
        Ok((result, report))
    }

    /// Three problems with the answers at 1 and 15 evaluations: the first ones that only one of the two gets right, be it
    /// the plain LM.
    fn show_answers(
        &self,
        held_out: &[Problem],
        kept: &BTreeMap<(&str, usize), RunResult>,
        series: &str,
    ) -> Result<(), CliError> {
        let (Some(plain), Some(diffused)) = (kept.get(&("base, sampled", 1)), kept.get(&(series, SHOWN_STEPS))) else {
            return Ok(());
        };
        let right = |sample: &Sample| sample.scores.values().all(|score| score.correct);
        let differing: Vec<_> =
            plain.samples.iter().zip(&diffused.samples).filter(|(a, b)| right(a) != right(b)).collect();
        say!(
            "\nProblems that only one of 1 and {SHOWN_STEPS} evaluations gets right ({series}, same seed), the first {} of {}:",
            differing.len().min(SHOWN),
            differing.len(),
        )?;
        for (one, many) in differing.into_iter().take(SHOWN) {
            let problem = held_out[one.row];
            say!("  {} (= {})", problem.question(), problem.answer())?;
            for (steps, sample) in [(1, one), (SHOWN_STEPS, many)] {
                let mark = if right(sample) { "right" } else { "wrong" };
                say!("    {steps:>2}: {:<60} {mark}", sample.completion.text)?;
            }
        }
        Ok(())
    }

    fn write(&self, evaluation: &Evaluation<'_>, runs: Vec<RunReport>) -> Result<(), CliError> {
        let folder = &self.args.out;
        let diffused = runs.iter().filter(|run| run.label.series.starts_with("L2D"));
        let mut plot = AccuracyPlot::from_runs("3-digit × 2-digit products", "right answers, %", diffused);
        for run in runs.iter().filter(|run| !run.label.series.starts_with("L2D")) {
            let Some(Proportion { mean: accuracy, standard_error, .. }) = run.accuracy() else { continue };
            // With one evaluation every path is the plain LM: all curves start there.
            if run.label.series == "base, sampled" {
                for series in &mut plot.series {
                    series.points.push(AccuracyPoint { steps: 1, accuracy, standard_error });
                }
            }
            plot.references.push(ReferenceLine { label: run.label.series.clone(), accuracy, standard_error });
        }
        plot.draw()?.save(&folder.join("quickstart"))?;
        let (counts, hash) = (evaluation.counts(), Some(evaluation.prompt_hash()));
        let described = TaskReport::new(evaluation.task(), Profile::Exact, counts, hash, &[]);
        let report = Report { runs, ..Report::new(described, json!({ "name": "the embedded LM" }), Vec::new()) };
        for (name, text) in [("quickstart.json", report.to_json()?), ("quickstart.md", report.to_markdown())] {
            write_atomically(&folder.join(name), |out| out.write_all(text.as_bytes()))?;
        }
        say!("\nWrote the plot, {}, and the numbers beside it.", folder.join("quickstart.png").display())?;
        Ok(())
    }
}

fn example_line(problem: Problem) -> String {
    format!("{}: {}", problem.question(), problem.solution())
}

/// The task's data, for whoever wants to train on it by hand.
fn export_data(folder: &Path, seed: u64) -> Result<(), CliError> {
    std::fs::create_dir_all(folder).map_err(|e| CliError::io(folder, e))?;
    let write = |name: &str, split, count, solution: &mut dyn FnMut(Problem) -> String| {
        let rows = problems(split, count, seed);
        write_atomically(&folder.join(name), |out| {
            let mut out = BufWriter::new(out);
            write_jsonl(&rows, solution, &mut out)?;
            out.flush()
        })
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    write("corpus.jsonl", Split::Train, TRAINING_PROBLEMS, &mut |problem| problem.solution_with_slips(&mut rng))?;
    write("train.jsonl", Split::Train, TRAINING_PROBLEMS, &mut Problem::solution)?;
    write("test.jsonl", Split::Test, 1000, &mut Problem::solution)?;
    say!("Wrote corpus.jsonl (with slips, for the base), train.jsonl and test.jsonl to {}.", folder.display())?;
    Ok(())
}
