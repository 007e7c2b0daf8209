//! `l2d warmup`: every kernel that a model will need is compiled, and the fastest of each kind found, before anybody waits.

use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use indicatif::{ProgressBar, ProgressDrawTarget};
use l2d_infer::decode::{GenerationParams, Hooks, Request};

use super::bench::{PROSE, prose_tokens};
use crate::args::WarmupArgs;
use crate::backend::BackendKind;
use crate::error::CliError;
use crate::model::{Model, on_interrupt};
use crate::output::say;
use crate::progress::style;

/// The shortest prompt.
const SHORTEST: usize = 16;
/// Tokens of each answer: the first comes with the prompt, the next has the shapes of all that follow.
const TOKENS: usize = 3;

/// Runs the command.
pub(crate) fn run<B: Backend>(args: &WarmupArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    if args.batch.contains(&0) || args.prompt == 0 {
        return Err(CliError::Usage("--batch and --prompt must be at least 1".into()));
    }
    args.decode.check_guidance()?;
    if backend.is_cpu() {
        eprintln!("on a CPU nothing is compiled while it runs: this warms nothing up, it only measures");
    }
    let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, device)?;
    let usual = if args.model.adapter.is_some() { vec![1, model.default_steps()] } else { vec![1] };
    let budgets = args.decode.budgets(args.steps.as_deref(), &usual)?;
    for &budget in &budgets {
        model.check(&args.decode.diffusion(budget))?;
    }
    let longest = model.lm().config.max_positions.saturating_sub(TOKENS);
    if args.prompt > longest {
        return Err(CliError::Usage(format!("--prompt {}: this model's context has room for {longest}", args.prompt)));
    }
    let class = model.class(args.decode.class.as_deref())?;
    let cancel = on_interrupt()?;
    let words = text.tokenizer.encode(PROSE, false)?;
    let lengths: Vec<usize> = std::iter::successors(Some(SHORTEST.min(args.prompt)), |length| {
        (length * 2 <= args.prompt).then_some(length * 2)
    })
    .collect();
    let rounds = budgets.len() * args.batch.len() * lengths.len();
    let bar = ProgressBar::with_draw_target(Some(rounds as u64), ProgressDrawTarget::stderr());
    bar.set_style(style("{bar:30} {pos}/{len} {elapsed} ETA {eta} · {msg}"));
    let generation =
        GenerationParams { max_tokens: TOKENS, sampling: args.decode.sampling(), ..GenerationParams::default() }
            .check()?;
    say!("| steps | batch | prompt | first time, s | again, s |")?;
    say!("|---|---|---|---|---|")?;
    let (start, mut saved) = (Instant::now(), 0.0);
    for &budget in &budgets {
        for &batch in &args.batch {
            for &length in &lengths {
                bar.set_message(format!("{budget}, batch {batch}, prompt {length}"));
                let requests: Vec<Request> = (0..batch)
                    .map(|sequence| Request {
                        tokens: prose_tokens(&words, length, sequence),
                        class,
                        sequence: sequence as u64,
                    })
                    .collect();
                let mut seconds = [0.0; 2];
                for seconds in &mut seconds {
                    // A new one each time: a decoder remembers prompts.
                    let decoder = model.decoder(args.decode.diffusion(budget), args.decode.mode())?;
                    let begun = Instant::now();
                    decoder.generate(&requests, &generation, Hooks { cancel: Some(&cancel), ..Hooks::default() })?;
                    if cancel.load(Ordering::Relaxed) {
                        return Err(CliError::Interrupted);
                    }
                    *seconds = begun.elapsed().as_secs_f64();
                }
                saved += (seconds[0] - seconds[1]).max(0.0);
                bar.suspend(|| say!("| {budget} | {batch} | {length} | {:.2} | {:.2} |", seconds[0], seconds[1]))?;
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    eprintln!("ready after {:.1} s, {saved:.1} s of them spent once", start.elapsed().as_secs_f64());
    if !cfg!(feature = "autotune") && !backend.is_cpu() {
        eprintln!(
            "kernels are kept by the driver alone: without the feature autotune nothing is chosen or cached by l2d"
        );
    }
    Ok(())
}
