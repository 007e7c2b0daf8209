//! `l2d generate`: one prompt, one answer.

use std::io::{Read, Write};
use std::time::Instant;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::text::Message;
use l2d_infer::decode::{Completion, Event, FinishReason, GenerationParams, Hooks, Request, Search};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::backend::BackendKind;
use crate::decoding::Budget;
use crate::error::CliError;
use crate::model::{Model, Text, on_interrupt};
use crate::output::say;
use crate::trace::Trace;

/// Answers decoded together, at most.
const TOGETHER: usize = 32;

/// Runs the command. One answer streams to stdout; several, those of a search, and JSON come when they are complete. A line
/// of figures goes to stderr.
pub(crate) fn run<B: Backend>(args: &GenerateArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    args.decode.check_guidance()?;
    let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, device)?;
    let prompt = prompt(&args.prompt)?;
    let tokens = if args.raw {
        text.raw(&prompt)?
    } else {
        let system = args.system.iter().map(Message::system);
        text.prompt(&system.chain([Message::user(prompt.clone())]).collect::<Vec<_>>())?
    };
    let class = model.class(args.decode.class.as_deref())?;
    let budget = args.decode.budget(args.steps, model.default_steps())?;
    args.decode.refuse_idle_flags(&[budget])?;
    let decoder = model.decoder(args.decode.diffusion(budget), args.decode.mode())?.with_batch(TOGETHER);
    let generation = GenerationParams {
        max_tokens: model.room(args.max_tokens, 256, tokens.len()),
        seed: args.decode.seed,
        sampling: args.decode.sampling(),
        stop_tokens: text.stop_tokens.clone(),
        stop_strings: args.stop.clone(),
    }
    .check()?;
    let beam = args.search.beam().map(|beam| beam.check()).transpose()?;
    let cancel = on_interrupt()?;
    let request = Request { tokens, class, sequence: 0 };
    let mut clock = Clock { start: Instant::now(), first: None, prompt_tokens: request.tokens.len(), budget };

    if let Some(beam) = beam {
        let found = decoder.search(&[request], &generation, &beam, Some(&text), Some(&cancel))?;
        return found.iter().try_for_each(|search| show_search(args, &text, &clock, search));
    }

    let samples = args.samples.unwrap_or(1);
    let requests: Vec<Request> = (0..samples).map(|sequence| Request { sequence, ..request.clone() }).collect();
    let streamed = samples == 1 && !args.json;
    let (mut written, mut trace) = (Ok(()), Trace::new(&text.tokenizer));
    let mut show = |event: Event<'_>| {
        clock.first.get_or_insert_with(Instant::now);
        if let Event::Token { token, evaluations, rounds, guesses, .. } = event {
            trace.push(token, evaluations, rounds, guesses);
        }
        let (Event::Token { text, .. } | Event::Finished { text, .. }) = event;
        if streamed {
            written = std::mem::replace(&mut written, Ok(())).and_then(|()| {
                let mut out = std::io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.flush()
            });
        }
    };
    let hooks = Hooks {
        text: Some(&text),
        on_event: Some(&mut show),
        cancel: Some(&cancel),
        guesses: args.trace.is_some(),
        log_probabilities: args.logprobs,
        ..Hooks::default()
    };
    let completions = decoder.generate(&requests, &generation, hooks)?;
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Err(CliError::OutputClosed),
        Err(error) => return Err(CliError::io("standard output", error)),
        Ok(()) if streamed => say!("")?,
        Ok(()) => {}
    }
    let end = Instant::now();
    for (sample, completion) in completions.iter().enumerate() {
        match (args.json, streamed) {
            (true, _) => {
                let mut answer = answer(&text, completion);
                answer["sample"] = json!(sample);
                say!("{answer}")?;
            }
            (false, false) => say!("{}", completion.text)?,
            (false, true) => {}
        }
        if samples > 1 {
            eprintln!(
                "[answer {} of {samples}: {} tokens; {}]",
                sample + 1,
                completion.tokens.len(),
                describe(&completion.finish)
            );
        }
    }
    clock.report(&completions, end);
    if let Some(path) = &args.trace {
        let settings = json!({
            "model": args.model.model.display().to_string(),
            "adapter": args.model.adapter.as_ref().map(|path| path.display().to_string()),
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
    if completions.iter().any(|completion| completion.finish == FinishReason::Cancelled) {
        return Err(CliError::Interrupted);
    }
    Ok(())
}

/// What the line of figures needs to know.
struct Clock {
    start: Instant,
    /// When the first token came.
    first: Option<Instant>,
    prompt_tokens: usize,
    budget: Budget,
}

impl Clock {
    /// The line of figures, of all answers together.
    fn report(&self, completions: &[Completion], end: Instant) {
        let first = self.first.unwrap_or(end);
        let sum = |of: fn(&Completion) -> usize| -> usize { completions.iter().map(of).sum() };
        let tokens = sum(|completion| completion.tokens.len());
        // The first token's time is the prompt's.
        let speed = match tokens.saturating_sub(completions.len()) {
            0 => String::new(),
            after => format!(", {:.1} tokens/s", after as f64 / (end - first).as_secs_f64()),
        };
        let each = |count: usize| count as f64 / tokens.max(1) as f64;
        let spent = match self.budget {
            Budget::Evaluations(1) => "1 evaluation each".to_owned(),
            // How many forward passes the evaluations of a token took on average.
            Budget::Evaluations(steps) => {
                format!("{steps} evaluations each in {:.1} rounds", each(sum(|completion| completion.rounds)))
            }
            Budget::Adaptive => format!("{:.1} evaluations each", each(sum(|completion| completion.evaluations))),
        };
        let ends = match completions {
            [one] => format!("; {}", describe(&one.finish)),
            _ => String::new(),
        };
        eprintln!(
            "[{} prompt tokens and the first new one in {:.2} s; {tokens} new at {spent}{speed}{ends}]",
            self.prompt_tokens,
            (first - self.start).as_secs_f64(),
        );
    }
}

/// An answer as JSON.
fn answer(text: &Text, completion: &Completion) -> Value {
    let name = |id: u32| text.tokenizer.decode(&[id], false).unwrap_or_default();
    let mut answer = json!({
        "text": completion.text,
        "tokens": completion.tokens,
        "finish": completion.finish,
        "evaluations": completion.evaluations,
        "path_evaluations": completion.passes,
        "rounds": completion.rounds,
    });
    if !completion.log_probabilities.is_empty() {
        let tokens = completion.tokens.iter().zip(&completion.log_probabilities);
        let logprobs = tokens.map(|(&id, found)| {
            let top: Vec<Value> = found
                .top
                .iter()
                .map(|&(id, logprob)| json!({ "id": id, "text": name(id), "logprob": logprob }))
                .collect();
            json!({ "id": id, "text": name(id), "logprob": found.chosen, "top": top })
        });
        answer["logprobs"] = logprobs.collect();
    }
    answer
}

/// The answer of a search, and with JSON all its hypotheses.
fn show_search(args: &GenerateArgs, text: &Text, clock: &Clock, search: &Search) -> Result<(), CliError> {
    let chosen = &search.hypotheses[search.chosen];
    if args.json {
        let hypotheses = search.hypotheses.iter().map(|hypothesis| {
            let mut answer = answer(text, &hypothesis.completion);
            answer["log_likelihood"] = json!(hypothesis.log_likelihood);
            answer["score"] = json!(hypothesis.score);
            answer
        });
        let hypotheses: Vec<Value> = hypotheses.collect();
        say!(
            "{}",
            json!({
                "chosen": search.chosen,
                "interrupted": search.interrupted,
                "evaluations": search.evaluations,
                "path_evaluations": search.passes,
                "hypotheses": hypotheses,
            })
        )?;
    } else {
        say!("{}", chosen.completion.text)?;
    }
    let (seconds, tokens) = (clock.start.elapsed().as_secs_f64(), chosen.completion.tokens.len());
    eprintln!(
        "[{} prompt tokens, {tokens} new in {seconds:.2} s; {} hypotheses, this one with log-likelihood {:.2} and score \
         {:.3}; {} evaluations of the path in all; {}]",
        clock.prompt_tokens,
        search.hypotheses.len(),
        chosen.log_likelihood,
        chosen.score,
        search.passes,
        if search.interrupted { "interrupted" } else { describe(&chosen.completion.finish) },
    );
    if search.interrupted { Err(CliError::Interrupted) } else { Ok(()) }
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
