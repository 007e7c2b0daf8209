//! The command `l2d`. This file is the table of contents: parse, set up logging, run one command, report.

mod args;
mod arithmetic;
mod backend;
mod commands;
mod decoding;
mod error;
mod export;
mod generator;
mod hub;
mod memory;
mod model;
mod output;
mod progress;
mod tiny;
mod trace;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{BenchCommand, Cli, Command, ConvertCommand, DataCommand, PlotCommand};
use crate::backend::{BackendKind, with_backend};
use crate::error::CliError;

fn main() -> ExitCode {
    // Started by itself to build a cell for a program: at once, before there are threads.
    if std::env::args_os().nth(1).is_some_and(|first| first == commands::eval::tools::AGAIN) {
        return l2d_sandbox::enter();
    }
    let cli = Cli::parse();
    set_up_logging(cli.verbose);
    match run(cli) {
        Ok(()) | Err(CliError::OutputClosed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            error.exit_code()
        }
    }
}

fn run(mut cli: Cli) -> Result<(), CliError> {
    for path in cli.command.inputs() {
        hub::fetch(path)?;
    }
    let backend = cli.backend.unwrap_or_else(BackendKind::default_kind);
    match cli.command {
        Command::Quickstart(args) => with_backend!(backend, B => commands::quickstart::run::<B>(&args, backend)),
        Command::Train(args) => with_backend!(backend, B => commands::train::run::<B>(&args, backend)),
        Command::Plan(args) => with_backend!(backend, B => commands::plan::run::<B>(&args, backend)),
        Command::Plot(PlotCommand::Losses(args)) => commands::losses::overlay(&args),
        Command::Generate(args) => with_backend!(backend, B => commands::generate::run::<B>(&args, backend)),
        Command::Chat(args) => with_backend!(backend, B => commands::chat::run::<B>(&args, backend)),
        Command::Eval(args) => with_backend!(backend, B => commands::eval::run::<B>(&args, backend)),
        Command::Data(DataCommand::Inspect(args)) => commands::data::inspect(&args),
        Command::Convert(ConvertCommand::Merge(args)) => {
            with_backend!(backend, B => commands::convert::merge::<B>(&args))
        }
        Command::Convert(ConvertCommand::FromPytorch(args)) => {
            with_backend!(backend, B => commands::convert::from_pytorch::<B>(&args))
        }
        Command::Convert(ConvertCommand::ToPytorch(args)) => {
            with_backend!(backend, B => commands::convert::to_pytorch::<B>(&args))
        }
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Bench(BenchCommand::Decode(args)) => {
            with_backend!(backend, B => commands::bench::decode::run::<B>(&args, backend))
        }
        Command::Bench(BenchCommand::Train(args)) => {
            with_backend!(backend, B => commands::bench::train::run::<B>(&args, backend))
        }
    }
}

/// Logs go to stderr, so that stdout is the answer alone. `RUST_LOG` overrides -v.
fn set_up_logging(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "l2d=info,l2d_core=info,l2d_train=info,l2d_infer=info,l2d_eval=info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}
