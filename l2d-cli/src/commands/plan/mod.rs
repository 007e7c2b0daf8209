//! `l2d plan`: what a run would take, before it is started. First from the settings alone, then from a few updates on the
//! longest examples.

mod estimate;
mod measure;

use std::path::Path;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_train::data::{Example, ExampleSource};
use l2d_train::{FrozenWeights, ObjectiveKind, TrainConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use self::estimate::{Parameters, Parts};
use self::measure::Measured;
use crate::args::PlanArgs;
use crate::backend::BackendKind;
use crate::commands::train::learner::{Learner, kept};
use crate::commands::train::{data, precision, settings};
use crate::error::CliError;
use crate::memory;
use crate::model::{load_base, on_interrupt};
use crate::output::say;

/// The data as a run would see it.
#[derive(Debug, Serialize)]
struct DataPlan {
    examples: usize,
    validation_examples: usize,
    tokens_per_epoch: u64,
    labels_per_epoch: u64,
    longest: usize,
    updates_per_epoch: f64,
    updates: u64,
}

/// Everything that is said.
#[derive(Debug, Serialize)]
struct Plan {
    version: &'static str,
    backend: &'static str,
    model: String,
    precision: Vec<(&'static str, String)>,
    parameters: Parameters,
    data: DataPlan,
    /// Sequences in memory at a time.
    micro_batch: usize,
    /// Bytes by part, estimated from the settings.
    memory: Parts,
    estimated_bytes: f64,
    measured: Option<Measured>,
    /// Bytes that the run may have.
    available_bytes: Option<f64>,
    /// What the run is expected to take at most: measured, or else estimated.
    needed_bytes: f64,
    needed_is_measured: bool,
    fits: Option<bool>,
}

/// Runs the command.
pub(crate) fn run<B: Backend>(args: &PlanArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    let mut config = settings::from_files(&args.source.config, &args.source.set)?;
    config.max_tokens = args.source.max_tokens.unwrap_or(config.max_tokens);
    // Nothing is answered or written by a plan.
    config.generate.task = None;
    config.best = l2d_train::BestBy::Validation;
    config.check()?;
    config.sources = data::sources(&args.source.data, &config)?;
    config.check()?;
    if args.memory.is_some_and(|gigabytes| !(gigabytes > 0.0 && gigabytes.is_finite())) {
        return Err(CliError::Usage("--memory is a number of gigabytes above 0".into()));
    }
    let before = memory::process().map_or(0, |memory| memory.current);
    let machine = memory::available().filter(|_| backend.is_cpu()).map(|bytes| (bytes + before) as f64);
    let available = args.memory.map(|gigabytes| gigabytes * 1e9).or(machine);
    let stored = config.frozen_weights == FrozenWeights::Stored;
    let packed = config.objective != ObjectiveKind::Full && backend.is_cpu() && stored;
    let (lm, text) = load_base::<B>(&args.model, None, device, packed)?;
    let lm = kept(lm, &config, backend)?;
    let (cache, cancel) = (data::cache_folder(args.source.data_cache.as_deref())?, on_interrupt()?);
    let store = data::open(&config, &text, lm.config.max_positions, &cache, &cancel, true)?;
    let (examples, validation) = data::data(store, &config)?;
    let (data_plan, longest) = survey(&examples, validation.len(), &config)?;
    let micro_batch = config.micro_batch_size.unwrap_or(config.batch_size).min(config.batch_size);
    let rows = precision::table(&lm, &config, backend, "f32");
    let lm_config = lm.config.clone();
    let packed_bytes = if lm.is_packed() { lm.weight_bytes() } else { 0 };
    let file = args.source.config.first().map_or(Path::new("the settings"), |file| file);
    let learner = Learner::new(lm, &config, file, backend, &mut ChaCha8Rng::seed_from_u64(config.seed))?;
    let parameters = Parameters::of(&learner, &lm_config, &config)?;
    let worst: Vec<&Example> = longest.iter().take(micro_batch).collect();
    let memory = Parts::new(&lm_config, &config, &parameters, packed_bytes, &worst, &data_plan);
    let measured = match args.no_measure {
        true => None,
        false => Some(measure::measure(learner, &longest, &examples, &config, device, backend, available)?),
    };
    let estimated_bytes = memory.total();
    let found = measured.as_ref().and_then(|measured| measured.peak_at(micro_batch));
    // One sequence may be too much already: then no more were tried.
    let least = measured.as_ref().and_then(Measured::least).unwrap_or(0.0);
    let needed_bytes = found.unwrap_or(estimated_bytes.max(least));
    let plan = Plan {
        version: crate::VERSION,
        backend: backend.name(),
        model: args.model.display().to_string(),
        precision: rows,
        parameters,
        data: data_plan,
        micro_batch,
        memory,
        estimated_bytes,
        measured,
        available_bytes: available,
        needed_bytes,
        needed_is_measured: found.is_some(),
        fits: available.map(|available| needed_bytes <= available),
    };
    if args.json {
        let json = serde_json::to_string_pretty(&plan).map_err(|e| CliError::io("standard output", e.into()))?;
        say!("{json}")?;
    } else {
        print(&plan)?;
    }
    match plan.fits {
        Some(true) => Ok(()),
        Some(false) => Err(CliError::DoesNotFit(advice(&plan))),
        None => Err(CliError::Usage(
            "how much memory there is cannot be asked for here: say it with --memory, in GB".to_string(),
        )),
    }
}

/// Counts the examples, and keeps the longest of a batch, longest first.
fn survey(
    examples: &dyn ExampleSource,
    validation_examples: usize,
    config: &TrainConfig,
) -> Result<(DataPlan, Vec<Example>), CliError> {
    let (mut tokens, mut labels) = (0u64, 0u64);
    let mut longest: Vec<Example> = Vec::new();
    for index in 0..examples.len() {
        let example = examples.get(index)?;
        tokens += example.tokens.len() as u64;
        labels += (example.tokens.len() - example.prompt) as u64;
        if longest.len() < config.batch_size || longest.last().is_some_and(|l| l.tokens.len() < example.tokens.len()) {
            let at = longest.partition_point(|other| other.tokens.len() >= example.tokens.len());
            longest.insert(at, example.into_owned());
            longest.truncate(config.batch_size);
        }
    }
    let plan = DataPlan {
        examples: examples.len(),
        validation_examples,
        tokens_per_epoch: tokens,
        labels_per_epoch: labels,
        longest: longest.first().map_or(0, |example| example.tokens.len()),
        updates_per_epoch: examples.len() as f64 / config.batch_size as f64,
        updates: config.total_steps(examples.len()),
    };
    Ok((plan, longest))
}

fn print(plan: &Plan) -> Result<(), CliError> {
    let Plan { parameters, data, memory: parts, .. } = plan;
    say!("{} on {}", plan.model, plan.backend)?;
    say!("\nnumber formats\n{}", precision::written(&plan.precision).trim_end())?;
    say!("\nparameters\n  trained  {}\n  frozen   {}", parameters.trained, parameters.frozen)?;
    say!(
        "\ndata\n  {} examples, {} held back; an epoch has {} tokens, {} of them labelled, in {:.1} updates; {} updates in all",
        data.examples,
        data.validation_examples,
        data.tokens_per_epoch,
        data.labels_per_epoch,
        data.updates_per_epoch,
        data.updates
    )?;
    say!(
        "\nmemory, estimated, at a micro-batch of the {} longest examples ({} tokens)",
        plan.micro_batch,
        data.longest
    )?;
    for (name, bytes) in parts.rows() {
        say!("  {name:32} {:>10}", memory::written(bytes))?;
    }
    say!("  {:32} {:>10}", "together", memory::written(plan.estimated_bytes))?;
    if let Some(measured) = &plan.measured {
        say!("\nmeasured")?;
        for sample in &measured.samples {
            let peak = sample.peak_bytes.map_or("unknown".to_string(), memory::written);
            say!("  an update of the {} longest: {:.2} s, peak memory {peak}", sample.sequences, sample.seconds)?;
        }
        say!(
            "  typical examples: {:.0} tokens/s, so {:.2} s an update and {} for all {}, validation and checkpoints apart",
            measured.tokens_per_second,
            measured.seconds_per_update,
            indicatif::HumanDuration(std::time::Duration::from_secs_f64(measured.seconds_in_all)),
            data.updates
        )?;
        if let Some(largest) = measured.largest_micro_batch {
            say!(
                "  largest micro-batch that fits: {largest} ({})",
                if largest == 0 {
                    "not even one, measured"
                } else if measured.largest_is_extrapolated {
                    "extrapolated along a line through the measured sizes"
                } else {
                    "measured"
                }
            )?;
        }
    }
    let available = plan.available_bytes.map_or("unknown".to_string(), memory::written);
    let how = if plan.needed_is_measured { "measured" } else { "estimated" };
    say!("\nneeds {} ({how}) of {available}", memory::written(plan.needed_bytes))?;
    Ok(())
}

/// What to change where it does not fit.
fn advice(plan: &Plan) -> String {
    let available = plan.available_bytes.map_or("unknown".to_string(), memory::written);
    let largest = plan.measured.as_ref().and_then(|measured| measured.largest_micro_batch);
    let micro = match largest {
        None if plan.micro_batch > 1 => "a smaller micro_batch_size".to_string(),
        // Not even one sequence fits.
        Some(0) | None => "a smaller max_tokens".to_string(),
        Some(largest) => format!("micro_batch_size = {largest}"),
    };
    format!(
        "it needs {} of {available}; try {micro}, recompute = \"blocks\", a smaller head_chunk or a smaller rank",
        memory::written(plan.needed_bytes)
    )
}
