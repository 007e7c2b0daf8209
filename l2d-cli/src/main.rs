//! The command `l2d`. This file is the table of contents: parse, set up logging, run one command, report.

mod adapters;
mod args;
mod arithmetic;
mod backend;
mod commands;
mod decoding;
mod device_memory;
mod error;
mod export;
mod generator;
mod hub;
mod memory;
mod model;
mod output;
mod place;
mod progress;
mod ranks;
mod rates;
mod selfcheck;
mod tiny;
mod trace;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{BenchCommand, Cli, Command, ConvertCommand, DataCommand, PlotCommand};
use crate::backend::with_backend;
use crate::error::CliError;
use crate::place::Place;

/// The version, and the commit that this was built from, `unknown` outside a repository.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("L2D_COMMIT"), ")");

fn main() -> ExitCode {
    // Started by itself to build a cell for a program: at once, before there are threads.
    if std::env::args_os().nth(1).is_some_and(|first| first == commands::eval::tools::AGAIN) {
        return l2d_sandbox::enter();
    }
    let cli = Cli::parse();
    set_up_logging(cli.verbose);
    device_memory::end_with_an_error();
    match run(cli) {
        Ok(()) | Err(CliError::OutputClosed) => ExitCode::SUCCESS,
        Err(CliError::Elsewhere) => ExitCode::FAILURE,
        Err(error) => {
            error.print("");
            error.exit_code()
        }
    }
}

fn run(mut cli: Cli) -> Result<(), CliError> {
    for path in cli.command.inputs() {
        hub::fetch(path)?;
    }
    let place = &Place::new(cli.backend, cli.devices)?.unchecked(cli.skip_self_check);
    if place.count() > 1 && !matches!(cli.command, Command::Train(_) | Command::Eval(_)) {
        return Err(CliError::Usage(format!("--devices names {}, and this command computes on one", place.count())));
    }
    let backend = place.kind;
    match cli.command {
        Command::Quickstart(args) => {
            with_backend!(place, B, devices => commands::quickstart::run::<B>(&args, backend, &devices[0]))
        }
        Command::Train(args) => commands::train::run(&args, place),
        Command::Plan(args) => {
            with_backend!(place, B, devices => commands::plan::run::<B>(&args, backend, &devices[0]))
        }
        Command::Plot(PlotCommand::Losses(args)) => commands::losses::overlay(&args),
        Command::Generate(args) => {
            with_backend!(place, B, devices => commands::generate::run::<B>(&args, backend, &devices[0]))
        }
        Command::Chat(args) => {
            with_backend!(place, B, devices => commands::chat::run::<B>(&args, backend, &devices[0]))
        }
        Command::Eval(args) => commands::eval::run(&args, place),
        Command::Data(DataCommand::Inspect(args)) => commands::data::inspect(&args),
        Command::Convert(ConvertCommand::Merge(args)) => {
            with_backend!(place, B, devices => commands::convert::merge::<B>(&args, &devices[0]))
        }
        Command::Convert(ConvertCommand::FromPytorch(args)) => {
            with_backend!(place, B, devices => commands::convert::from_pytorch::<B>(&args, &devices[0]))
        }
        Command::Convert(ConvertCommand::ToPytorch(args)) => {
            with_backend!(place, B, devices => commands::convert::to_pytorch::<B>(&args, &devices[0]))
        }
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Warmup(args) => {
            with_backend!(place, B, devices => commands::warmup::run::<B>(&args, backend, &devices[0]))
        }
        Command::Bench(BenchCommand::Decode(args)) => {
            with_backend!(place, B, devices => commands::bench::decode::run::<B>(&args, backend, &devices[0]))
        }
        Command::Bench(BenchCommand::Train(args)) => {
            with_backend!(place, B, devices => commands::bench::train::run::<B>(&args, backend, &devices[0]))
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
