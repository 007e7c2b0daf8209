//! `l2d chat`: a conversation in the terminal.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::text::Message;
use l2d_infer::decode::{Completion, Decoder, Event, FinishReason, GenerationParams, Hooks, Request};

use crate::args::ChatArgs;
use crate::backend::BackendKind;
use crate::commands::generate::describe;
use crate::decoding::Budget;
use crate::error::CliError;
use crate::model::{Model, Text, on_interrupt};
use crate::output::say;

const HELP: &str = "/steps N  evaluations per token · /reset  forget the conversation · /exit  (or end of input) leave";

/// Runs the command: prompts on stderr, answers on stdout, until the input ends. Ctrl-C cuts an answer short.
pub(crate) fn run<B: Backend>(args: &ChatArgs, backend: BackendKind, device: &Device<B>) -> Result<(), CliError> {
    args.decode.check_guidance()?;
    let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, device)?;
    text.template()?;
    model.class(args.decode.class.as_deref())?;
    let mut budget = args.decode.budget(args.steps, model.default_steps())?;
    let mut decoder = model.decoder(args.decode.diffusion(budget), args.decode.mode())?;
    let cancel = on_interrupt()?;
    let opening: Vec<Message> = args.system.iter().map(Message::system).collect();
    let mut messages = opening.clone();
    let mut turn = 0;
    eprintln!("{HELP}");
    loop {
        eprint!("[{budget} step{}] > ", if budget == Budget::Evaluations(1) { "" } else { "s" });
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).map_err(|e| CliError::io("standard input", e))? == 0 {
            eprintln!();
            return Ok(());
        }
        let line = line.trim();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("", _) => continue,
            ("/exit" | "/quit", _) => return Ok(()),
            ("/reset", _) => {
                messages.clone_from(&opening);
                continue;
            }
            ("/steps", number) => {
                let change = || {
                    let count = number.trim().parse();
                    let count = count.map_err(|e| CliError::Usage(format!("/steps {number}: {e}")))?;
                    let budget = args.decode.budget(Some(count), 1)?;
                    Ok::<_, CliError>((budget, model.decoder(args.decode.diffusion(budget), args.decode.mode())?))
                };
                match change() {
                    Ok(new) => (budget, decoder) = new,
                    Err(error) => eprintln!("{error}"),
                }
                continue;
            }
            (command, _) if command.starts_with('/') => {
                eprintln!("{HELP}");
                continue;
            }
            _ => {}
        }
        messages.push(Message::user(line));
        cancel.store(false, Ordering::Relaxed);
        match answer(args, &model, &decoder, &text, &messages, turn, &cancel) {
            Ok(completion) => {
                match completion.finish {
                    FinishReason::StopToken(_) => {}
                    cut => eprintln!("[{}]", describe(&cut)),
                }
                messages.push(Message::assistant(completion.text));
            }
            Err(CliError::OutputClosed) => return Err(CliError::OutputClosed),
            Err(error) => {
                messages.pop();
                eprintln!("error: {error}");
                if matches!(error, CliError::Infer(l2d_infer::Error::Context { .. })) {
                    eprintln!("hint: the conversation fills the model's context; /reset begins a new one");
                }
            }
        }
        turn += 1;
    }
}

/// Decodes and streams one answer.
fn answer<B: Backend>(
    args: &ChatArgs,
    model: &Model<B>,
    decoder: &Decoder<'_, B>,
    text: &Text,
    messages: &[Message],
    turn: u64,
    cancel: &AtomicBool,
) -> Result<Completion, CliError> {
    let tokens = text.prompt(messages)?;
    let generation = GenerationParams {
        max_tokens: model.room(args.max_tokens, 512, tokens.len()),
        seed: args.decode.seed,
        sampling: args.decode.sampling(),
        stop_tokens: text.stop_tokens.clone(),
        stop_strings: Vec::new(),
    };
    let mut show = |event: Event<'_>| {
        let (Event::Token { text, .. } | Event::Finished { text, .. }) = event;
        // A closed stdout ends the command with the answer's last line.
        let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
    };
    let hooks = Hooks { text: Some(text), on_event: Some(&mut show), cancel: Some(cancel), ..Hooks::default() };
    let request = Request { tokens, class: model.class(args.decode.class.as_deref())?, sequence: turn };
    let mut completions = decoder.generate(&[request], &generation.check()?, hooks)?;
    say!("")?;
    completions.pop().ok_or_else(|| CliError::Usage("the decoder gave no answer".into()))
}
