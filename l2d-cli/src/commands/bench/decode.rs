//! `l2d bench decode`: how fast tokens come, and how near that is to what the machine's memory allows.

use std::time::Instant;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_infer::Decoder;
use l2d_infer::decode::{DiffusionParams, Event, GenerationParams, Hooks, Request};
use serde::Serialize;

use super::{PROSE, prose_tokens};
use crate::args::BenchDecodeArgs;
use crate::backend::BackendKind;
use crate::decoding::Budget;
use crate::error::CliError;
use crate::model::{Model, on_interrupt};
use crate::output::say;
use crate::rates::{device_bandwidth, memory_bandwidth};

/// One row of the table.
#[derive(Debug, Serialize)]
struct Measurement {
    /// A number, or `adaptive`.
    steps: Budget,
    batch: usize,
    prompt: usize,
    /// New tokens of all sequences.
    tokens: usize,
    /// Prompt tokens computed in a second.
    prefill_per_second: f64,
    /// New tokens in a second after the prompt, median of the runs.
    tokens_per_second: f64,
    /// Evaluations of the diffusion path in a second.
    evaluations_per_second: f64,
    /// Forward passes of the diffusion path for each token; 0 for the plain LM.
    rounds_per_token: f64,
    /// Bytes of weights that were read in a second, as a part of the memory's rate; `None` without packed weights.
    bandwidth_share: Option<f64>,
}

/// All that is written with `--json`.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    backend: String,
    threads: usize,
    model: String,
    adapter: Option<String>,
    weights: String,
    /// Number format of cached keys and values.
    kv_cache: &'static str,
    /// How evaluations are laid out.
    decode: &'static str,
    /// The diffusion at the largest budget; `None` for the plain LM.
    diffusion: Option<DiffusionParams>,
    /// The guidance class.
    class: Option<String>,
    /// Bytes a second that all threads read together from a buffer larger than any cache, or that a GPU reads and writes.
    memory_bandwidth: f64,
    /// Bytes of the base's matrices, which a forward pass reads once.
    weight_bytes: usize,
    /// The most memory the process has held, in bytes, where the system says.
    peak_memory: Option<u64>,
    runs: Vec<Measurement>,
}

/// Runs the command.
pub(crate) fn run<B: Backend>(
    args: &BenchDecodeArgs,
    backend: BackendKind,
    device: &Device<B>,
) -> Result<(), CliError> {
    // The first token comes with the prompt, so one token has no speed.
    let (tokens, repeats) = (vec![args.tokens], vec![args.repeats]);
    for (name, values, least) in [
        ("--batch", &args.batch, 1),
        ("--prompt", &args.prompt, 1),
        ("--tokens", &tokens, 2),
        ("--repeats", &repeats, 1),
    ] {
        if values.iter().any(|&value| value < least) {
            return Err(CliError::Usage(format!("{name} must be at least {least}")));
        }
    }
    args.decode.check_guidance()?;
    let (model, text) = match args.random {
        true => Model::<B>::random(&args.model, backend, device)?,
        false => Model::<B>::load(&args.model, &args.decode, backend, device)?,
    };
    let usual = if args.model.adapter.is_some() || args.random { vec![1, model.default_steps()] } else { vec![1] };
    let budgets = args.decode.budgets(args.steps.as_deref(), &usual)?;
    for &budget in &budgets {
        model.check(&args.decode.diffusion(budget))?;
    }
    args.decode.refuse_idle_flags(&budgets)?;
    let class = model.class(args.decode.class.as_deref())?;
    let cancel = on_interrupt()?;
    let words = text.tokenizer.encode(PROSE, false)?;
    let lm = model.lm();
    let weight_bytes = lm.weight_bytes();
    let memory_bandwidth = if backend.is_cpu() { memory_bandwidth() } else { device_bandwidth::<B>(device) };
    let mut runs = Vec::new();
    say!("memory: {:.1} GB/s, weights {:.1} MB", memory_bandwidth / 1e9, weight_bytes as f64 / 1e6)?;
    say!("| steps | batch | prompt | prefill tok/s | tok/s | evaluations/s | rounds/token | of memory rate |")?;
    say!("|---|---|---|---|---|---|---|---|")?;
    for &budget in &budgets {
        for &batch in &args.batch {
            for &prompt in &args.prompt {
                let requests: Vec<Request> = (0..batch as u64)
                    .map(|sequence| Request {
                        tokens: prose_tokens(&words, prompt, sequence as usize),
                        class,
                        sequence,
                    })
                    .collect();
                let generation = GenerationParams {
                    max_tokens: args.tokens,
                    seed: args.decode.seed,
                    sampling: args.decode.sampling(),
                    ..GenerationParams::default()
                };
                let generation = generation.check()?;
                let mut measured = Vec::with_capacity(args.repeats);
                for _ in 0..args.repeats {
                    // A new one each time: a decoder remembers prompts.
                    let decoder: Decoder<'_, B> = model.decoder(args.decode.diffusion(budget), args.decode.mode())?;
                    let start = Instant::now();
                    let mut first = None;
                    let mut note = |_: Event<'_>| {
                        first.get_or_insert_with(Instant::now);
                    };
                    let hooks = Hooks { on_event: Some(&mut note), cancel: Some(&cancel), ..Hooks::default() };
                    let completions = decoder.generate(&requests, &generation, hooks)?;
                    if cancel.load(std::sync::atomic::Ordering::Relaxed) {
                        return Err(CliError::Interrupted);
                    }
                    let (end, first) = (Instant::now(), first.unwrap_or(start));
                    let tokens: usize = completions.iter().map(|completion| completion.tokens.len()).sum();
                    let passes: usize = completions.iter().map(|completion| completion.passes).sum();
                    let rounds: usize = completions.iter().map(|completion| completion.rounds).sum();
                    // The first token of each sequence came with the prompt.
                    let after = tokens.saturating_sub(batch) as f64;
                    let seconds = (end - first).as_secs_f64().max(1e-9);
                    let per_second = after / seconds;
                    let rounds_per_token = rounds as f64 / tokens.max(1) as f64;
                    // Sequences of a batch share the reading of the weights.
                    let read = per_second / batch as f64 * (1.0 + rounds_per_token) * weight_bytes as f64;
                    measured.push(Measurement {
                        steps: budget,
                        batch,
                        prompt,
                        tokens,
                        prefill_per_second: (batch * prompt) as f64 / (first - start).as_secs_f64().max(1e-9),
                        tokens_per_second: per_second,
                        evaluations_per_second: per_second * passes as f64 / tokens.max(1) as f64,
                        rounds_per_token,
                        bandwidth_share: (weight_bytes > 0).then(|| read / memory_bandwidth),
                    });
                }
                measured.sort_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
                // Of two in the middle the slower one.
                let median = measured.swap_remove((measured.len() - 1) / 2);
                let share = median.bandwidth_share.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share));
                say!(
                    "| {} | {} | {} | {:.0} | {:.1} | {:.0} | {:.1} | {} |",
                    median.steps,
                    median.batch,
                    median.prompt,
                    median.prefill_per_second,
                    median.tokens_per_second,
                    median.evaluations_per_second,
                    median.rounds_per_token,
                    share
                )?;
                runs.push(median);
            }
        }
    }
    let peak_memory = crate::memory::peak();
    if let Some(bytes) = peak_memory {
        say!("peak memory: {:.0} MB", bytes as f64 / 1e6)?;
    }
    let Some(path) = &args.json else { return Ok(()) };
    let report = Report {
        version: crate::VERSION,
        backend: backend.name().into(),
        threads: l2d_core::cpu::num_threads(),
        model: args.model.model.display().to_string(),
        adapter: args.model.adapter.as_ref().map(|path| path.display().to_string()),
        weights: args
            .model
            .weights
            .map_or_else(|| if backend.is_cpu() { "stored".into() } else { "f32".into() }, |weights| weights.name()),
        kv_cache: args.model.cache_format().name(),
        decode: args.decode.mode_name(),
        diffusion: budgets.last().filter(|_| args.model.adapter.is_some()).map(|&budget| args.decode.diffusion(budget)),
        class: args.decode.class.clone(),
        memory_bandwidth,
        weight_bytes,
        peak_memory,
        runs,
    };
    let text = serde_json::to_vec_pretty(&report).map_err(|e| CliError::io(path, e.into()))?;
    l2d_core::checkpoint::write_atomically(path, |out| out.write_all(&text))?;
    Ok(())
}
