//! `l2d chat`: a conversation in the terminal.

use std::io::{BufRead, Write};
use std::sync::atomic::Ordering;

use burn::tensor::backend::Backend;
use l2d_core::text::Message;
use l2d_infer::decode::{Event, GenerationParams, Hooks, Request};

use crate::args::ChatArgs;
use crate::error::CliError;
use crate::model::{Model, on_interrupt};

const HELP: &str = "/steps N  evaluations per token · /reset  forget the conversation · /exit  (or end of input) leave";

/// Runs the command: prompts on stderr, answers on stdout, until the input ends. Ctrl-C cuts an answer short.
pub(crate) fn run<B: Backend>(args: &ChatArgs) -> Result<(), CliError> {
    let device = B::Device::default();
    let (model, text) = Model::<B>::load(&args.model, &device)?;
    text.template()?;
    let mut steps = args.steps.unwrap_or_else(|| model.default_steps());
    let mut decoder = model.decoder(args.decode.diffusion(steps))?;
    let cancel = on_interrupt()?;
    let opening: Vec<Message> = args.system.iter().map(Message::system).collect();
    let mut messages = opening.clone();
    let mut turn = 0;
    eprintln!("{HELP}");
    loop {
        eprint!("[{steps} step{}] > ", if steps == 1 { "" } else { "s" });
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
                match number
                    .trim()
                    .parse()
                    .map_err(|e| CliError::Usage(format!("/steps {number}: {e}")))
                    .and_then(|n| model.decoder(args.decode.diffusion(n)).map(|decoder| (n, decoder)))
                {
                    Ok((n, new)) => (steps, decoder) = (n, new),
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
        let tokens = text.prompt(&messages)?;
        let generation = GenerationParams {
            max_tokens: model.room(args.max_tokens, 512, tokens.len()),
            seed: args.decode.seed,
            sampling: args.decode.sampling(),
            stop_tokens: text.stop_tokens.clone(),
            stop_strings: Vec::new(),
        };
        let request = Request { tokens, class: None, sequence: turn };
        turn += 1;
        cancel.store(false, Ordering::Relaxed);
        let mut show = |event: Event<'_>| {
            let (Event::Token { text, .. } | Event::Finished { text, .. }) = event;
            // A closed stdout ends the command at the next line; there is nobody left to tell.
            let _ = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush());
        };
        let hooks = Hooks { text: Some(&text), on_event: Some(&mut show), cancel: Some(&cancel), ..Hooks::default() };
        match decoder.generate(&[request], &generation.check()?, hooks) {
            Ok(answers) => messages.extend(answers.into_iter().map(|answer| Message::assistant(answer.text))),
            Err(error) => {
                messages.pop();
                eprintln!("error: {error}");
            }
        }
        writeln!(std::io::stdout()).map_err(|e| CliError::io("standard output", e))?;
    }
}
