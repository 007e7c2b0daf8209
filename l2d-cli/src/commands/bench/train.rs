//! `l2d bench train`: how long forward and backward of a micro-batch take, and how near that is to the time that its
//! unavoidable multiplications would take alone.

use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Device;
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use l2d_core::config::LmConfig;
use l2d_core::diffusion::{DiffusionConfig, DiffusionPath, Variant};
use l2d_core::lm::Lm;
use l2d_core::parameters::trainable;
use l2d_train::data::{Batch, Example};
use l2d_train::objective::{StepLoss, add_lora};
use l2d_train::{L2dEngine, L2dTask, LmEngine, LmTask, ObjectiveKind, Task, TrainConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{PROSE, prose_tokens};
use crate::args::BenchTrainArgs;
use crate::backend::BackendKind;
use crate::commands::train::settings;
use crate::error::CliError;
use crate::model::load_base;
use crate::output::say;
use crate::rates::{host_product_rate, product_rate};

/// One row of the table.
#[derive(Debug, Serialize)]
struct Measurement {
    /// Part of the positions that is labelled.
    labelled: f64,
    /// Labelled positions of the micro-batch.
    labels: usize,
    /// Tokens of the micro-batch.
    tokens: usize,
    /// Forward and backward, median of the repeats.
    seconds: f64,
    tokens_per_second: f64,
    labels_per_second: f64,
    /// Multiplications and additions that cannot be avoided.
    operations: f64,
    /// `operations` at the measured rate of matrix products, as a part of `seconds`.
    share: f64,
    /// Mean loss, nats per label and draw: to see that two ways compute the same.
    loss: f64,
}

/// All that is written with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    backend: &'static str,
    threads: usize,
    model: String,
    settings: TrainConfig,
    /// By automatic differentiation, or by hand.
    autodiff: bool,
    /// Operations a second of large matrix products on this backend.
    product_rate: f64,
    /// The most memory the process has held, in bytes, where the system says.
    peak_memory: Option<u64>,
    runs: Vec<Measurement>,
}

/// Runs the command.
pub(crate) fn run<B: Backend>(args: &BenchTrainArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    for (name, value) in [("--batch", args.batch), ("--repeats", args.repeats), ("--tokens", args.tokens / 2)] {
        if value == 0 {
            return Err(CliError::Usage(format!("{name} is too small to measure anything")));
        }
    }
    if args.labelled.iter().any(|part| !(*part > 0.0 && *part <= 1.0)) {
        return Err(CliError::Usage("--labelled is a part of the positions, above 0 and at most 1".into()));
    }
    let config = settings::from_files(args.config.as_slice(), &args.set)?;
    config.check()?;
    let by_hand = backend.is_cpu() && !args.autodiff;
    let product_rate = if by_hand { host_product_rate() } else { product_rate::<B>(device, FloatDType::F32) };
    say!("matrix products: {:.0} GFLOP/s ({})", product_rate / 1e9, backend.name())?;
    let (lm, text) = load_base::<B>(&args.model, None, device, by_hand && config.objective != ObjectiveKind::Full)?;
    let words = text.raw(PROSE)?;
    let mut bench = Bench { args, config: &config, words, product_rate, by_hand, runs: Vec::new() };
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    say!("| labelled | labels | seconds | tokens/s | labels/s | share of the products' rate | loss |")?;
    say!("|---|---|---|---|---|---|---|")?;
    match config.objective {
        ObjectiveKind::L2d => {
            let diffusion = config.diffusion.clone().check(std::path::Path::new("the settings"))?;
            let path = DiffusionPath::init(&lm, &diffusion, &mut rng);
            let shape = Shape::l2d(&lm.config, &diffusion, config.draws_per_position);
            let task = L2dTask::<Autodiff<B>>::new(L2dEngine::new(lm, config.engine()), config.draws());
            bench.measure::<B, _>(&task, trainable(AutodiffModule::from_inner(path)), shape)?;
        }
        ObjectiveKind::Full | ObjectiveKind::Lora => {
            let shape =
                Shape::weights(&lm.config, (config.objective == ObjectiveKind::Lora).then_some(config.lora_rank));
            let lm: Lm<Autodiff<B>> = AutodiffModule::from_inner(lm);
            let lm = match config.objective {
                ObjectiveKind::Lora => add_lora(lm, config.lora_rank, config.lora_alpha, &mut rng),
                _ if lm.config.tie_word_embeddings => trainable(Lm { head: None, ..lm }),
                _ => trainable(lm),
            };
            let task = LmTask::new(LmEngine::new(&lm, by_hand, config.engine()), config.lora_dropout);
            bench.measure::<B, _>(&task, lm, shape)?;
        }
    }
    let (peak_memory, runs) = (crate::memory::peak(), bench.runs);
    if let Some(bytes) = peak_memory {
        say!("peak memory: {:.0} MB", bytes as f64 / 1e6)?;
    }
    let Some(path) = &args.json else { return Ok(()) };
    let report = Report {
        version: crate::VERSION,
        backend: backend.name(),
        threads: l2d_core::cpu::num_threads(),
        model: args.model.display().to_string(),
        autodiff: !by_hand,
        settings: config.clone(),
        product_rate,
        peak_memory,
        runs,
    };
    let json = serde_json::to_vec_pretty(&report).map_err(|e| CliError::io(path, e.into()))?;
    l2d_core::checkpoint::write_atomically(path, |out| out.write_all(&json))?;
    Ok(())
}

struct Bench<'a> {
    args: &'a BenchTrainArgs,
    config: &'a TrainConfig,
    words: Vec<u32>,
    product_rate: f64,
    by_hand: bool,
    runs: Vec<Measurement>,
}

impl Bench<'_> {
    fn measure<B: Backend, T: Task<Autodiff<B>>>(
        &mut self,
        task: &T,
        model: T::Model,
        shape: Shape,
    ) -> Result<(), CliError> {
        let BenchTrainArgs { batch, tokens, repeats, .. } = *self.args;
        for &labelled in &self.args.labelled {
            let labels = ((tokens as f64 * labelled).round() as usize).clamp(1, tokens);
            // One token more than positions: the last is a target alone.
            let examples: Vec<Example> = (0..batch)
                .map(|b| Example {
                    tokens: prose_tokens(&self.words, tokens + 1, b),
                    prompt: tokens + 1 - labels,
                    class: None,
                    conversation: b,
                })
                .collect();
            let rows = Batch::new(&examples.iter().collect::<Vec<_>>(), task.no_class(&model));
            let mut seconds = Vec::with_capacity(repeats);
            let mut loss = StepLoss::default();
            for repeat in 0..=repeats {
                let mut rngs: Vec<ChaCha8Rng> =
                    (0..batch).map(|b| ChaCha8Rng::seed_from_u64(self.config.seed + b as u64)).collect();
                let start = Instant::now();
                let (found, gradients) = task.gradients(&model, &rows, &mut rngs);
                let done = start.elapsed();
                let norm = gradients.norm();
                if repeat > 0 {
                    // A GPU has done it when a number has arrived.
                    seconds.push(if self.by_hand { done } else { start.elapsed() }.as_secs_f64());
                }
                if !norm.is_finite() {
                    return Err(CliError::Usage("the gradient is no number: is this a trained model?".into()));
                }
                loss = found;
            }
            seconds.sort_by(f64::total_cmp);
            let median = seconds[repeats / 2];
            let operations = shape.operations(batch, tokens, labels);
            let row = Measurement {
                labelled,
                labels: batch * labels,
                tokens: batch * tokens,
                seconds: median,
                tokens_per_second: (batch * tokens) as f64 / median,
                labels_per_second: (batch * labels) as f64 / median,
                operations,
                share: operations / self.product_rate / median,
                loss: loss.mean(),
            };
            say!(
                "| {} | {} | {:.2} | {:.0} | {:.0} | {:.0} % of {:.0} GFLOP | {:.5} |",
                row.labelled,
                row.labels,
                row.seconds,
                row.tokens_per_second,
                row.labels_per_second,
                100.0 * row.share,
                row.operations / 1e9,
                row.loss
            )?;
            self.runs.push(row);
        }
        Ok(())
    }
}

/// Operations of a step, a multiplication and its addition counted as two: what no implementation can leave out.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// For each token: the main path.
    token: f64,
    /// For each labelled position: whatever is computed there.
    label: f64,
    /// Products of a query with a key, and of a score with a value, there and back: for each token and for each label, in
    /// numbers of a position seen.
    seen_by_token: f64,
    seen_by_label: f64,
}

impl Shape {
    /// Main path forward without head; diffusion path forward and back to its input; its trained layers both ways; the head
    /// forward and back. Weights that are trained cost three products, frozen ones two.
    fn l2d(lm: &LmConfig, path: &DiffusionConfig, draws: usize) -> Self {
        let (h, f, v, q, kv) = (lm.hidden_size, lm.intermediate_size, lm.vocab_size, lm.query_size(), lm.kv_size());
        let versions = h * q + q * h + 3 * h * f;
        let layers = lm.num_layers as f64;
        let frozen = match path.variant {
            Variant::Lora { .. } => versions as f64 * layers,
            Variant::Full | Variant::Scratch => 0.0,
        };
        let trained = path.parameter_counts(lm).total() as f64;
        let draws = draws as f64;
        Self {
            token: 2.0 * layers * (versions + 2 * h * kv) as f64,
            label: draws * (4.0 * frozen + 6.0 * trained + 4.0 * (h * v) as f64),
            seen_by_token: 4.0 * layers * q as f64,
            // Two products there; back to the queries the scores again, and two more.
            seen_by_label: draws * 10.0 * layers * q as f64,
        }
    }

    /// The LM itself, all of it (`rank` absent) or low-rank corrections of its blocks; the head at labelled positions.
    fn weights(lm: &LmConfig, rank: Option<usize>) -> Self {
        let (h, f, v, q, kv) = (lm.hidden_size, lm.intermediate_size, lm.vocab_size, lm.query_size(), lm.kv_size());
        let layers = lm.num_layers as f64;
        let blocks = layers * (2 * h * q + 2 * h * kv + 3 * h * f) as f64;
        let corrections = rank.map(|r| layers * (r * (2 * (h + q) + 2 * (h + kv) + 3 * (h + f))) as f64);
        let head = (h * v) as f64;
        Self {
            token: corrections.map_or(6.0 * blocks, |corrections| 4.0 * blocks + 6.0 * corrections),
            label: if rank.is_some() { 4.0 * head } else { 6.0 * head },
            seen_by_token: 14.0 * layers * q as f64,
            seen_by_label: 0.0,
        }
    }

    fn operations(&self, batch: usize, tokens: usize, labels: usize) -> f64 {
        let (tokens, labels) = (tokens as f64, labels as f64);
        let seen_by_tokens = tokens * (tokens + 1.0) / 2.0;
        let seen_by_labels = labels * (tokens - labels) + labels * (labels + 1.0) / 2.0;
        batch as f64
            * (self.token * tokens
                + self.label * labels
                + self.seen_by_token * seen_by_tokens
                + self.seen_by_label * seen_by_labels)
    }
}
