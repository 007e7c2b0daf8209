//! `l2d generate`: one prompt, one answer.

use std::io::{Read, Write};
use std::time::Instant;

use burn::tensor::backend::Backend;
use l2d_core::text::Message;
use l2d_infer::decode::{Event, FinishReason, GenerationParams, Hooks, Request};
use serde_json::json;

use crate::args::GenerateArgs;
use crate::backend::BackendKind;
use crate::decoding::Budget;
use crate::error::CliError;
use crate::model::{Model, on_interrupt};
use crate::output::say;
use crate::trace::Trace;

/// Runs the command. The answer streams to stdout; a line of figures goes to stderr.
pub(crate) fn run<B: Backend>(args: &GenerateArgs, backend: BackendKind) -> Result<(), CliError> {
    let device = B::Device::default();
    let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, &device)?;
    let prompt = prompt(&args.prompt)?;
    let tokens = if args.raw {
        text.raw(&prompt)?
    } else {
        let system = args.system.iter().map(Message::system);
        text.prompt(&system.chain([Message::user(prompt.clone())]).collect::<Vec<_>>())?
    };
    let class = model.class(args.decode.class.as_deref())?;
    let budget = args.decode.budget(args.steps, model.default_steps())?;
    let decoder = model.decoder(args.decode.diffusion(budget), args.decode.mode())?;
    let generation = GenerationParams {
        max_tokens: model.room(args.max_tokens, 256, tokens.len()),
        seed: args.decode.seed,
        sampling: args.decode.sampling(),
        stop_tokens: text.stop_tokens.clone(),
        stop_strings: args.stop.clone(),
    };
    let cancel = on_interrupt()?;
    let start = Instant::now();
    let mut written = Ok(());
    let mut first_token = None;
    let mut trace = Trace::new(&text.tokenizer);
    let mut show = |event: Event<'_>| {
        first_token.get_or_insert_with(Instant::now);
        if let Event::Token { token, passes, rounds, guesses, .. } = event {
            trace.push(token, passes, rounds, guesses);
        }
        let (Event::Token { text, .. } | Event::Finished { text, .. }) = event;
        written = std::mem::replace(&mut written, Ok(())).and_then(|()| {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        });
    };
    let request = Request { tokens, class, sequence: 0 };
    let prompt_tokens = request.tokens.len();
    let hooks = Hooks {
        text: Some(&text),
        on_event: Some(&mut show),
        cancel: Some(&cancel),
        guesses: args.trace.is_some(),
        ..Hooks::default()
    };
    let completions = decoder.generate(&[request], &generation.check()?, hooks)?;
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Err(CliError::OutputClosed),
        Err(error) => return Err(CliError::io("standard output", error)),
        Ok(()) => say!("")?,
    }
    let end = Instant::now();
    if let Some(path) = &args.trace {
        let settings = json!({
            "model": args.model.model,
            "adapter": args.model.adapter,
            "steps": budget,
            "diffusion": args.decode.diffusion(budget),
            "sampling": args.decode.sampling(),
            "class": args.decode.class,
            "seed": args.decode.seed,
            "prompt": prompt,
        });
        let [lines, page] = trace.write(path, &settings)?;
        eprintln!("[trace: {} and {}]", lines.display(), page.display());
    }
    for completion in &completions {
        let (first, tokens) = (first_token.unwrap_or(end), completion.tokens.len());
        // The first token's time is the prompt's.
        let speed = match tokens {
            0 | 1 => String::new(),
            _ => format!(", {:.1} tokens/s", (tokens - 1) as f64 / (end - first).as_secs_f64()),
        };
        let each = |count: usize| count as f64 / tokens.max(1) as f64;
        let spent = match budget {
            Budget::Evaluations(1) => "1 evaluation each".to_owned(),
            // How many forward passes the evaluations of a token took on average.
            Budget::Evaluations(steps) => format!("{steps} evaluations each in {:.1} rounds", each(completion.rounds)),
            Budget::Adaptive => format!("{:.1} evaluations each", each(completion.passes)),
        };
        eprintln!(
            "[{prompt_tokens} prompt tokens and the first new one in {:.2} s; {tokens} new at {spent}{speed}; {}]",
            (first - start).as_secs_f64(),
            describe(&completion.finish),
        );
        if completion.finish == FinishReason::Cancelled {
            return Err(CliError::Interrupted);
        }
    }
    Ok(())
}

fn prompt(given: &str) -> Result<String, CliError> {
    if given != "-" {
        return Ok(given.to_string());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| CliError::io("standard input", e))?;
    Ok(text.trim_end_matches('\n').to_string())
}

/// Why an answer ended, for people.
pub(crate) fn describe(finish: &FinishReason) -> &'static str {
    match finish {
        FinishReason::StopToken(_) => "ended by itself",
        FinishReason::StopString(_) => "ended at a stop text",
        FinishReason::MaxTokens => "cut at --max-tokens",
        FinishReason::Cancelled => "interrupted",
    }
}
