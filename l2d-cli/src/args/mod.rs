//! The command line: one file for each command, and `model` and `decode` for what several share.

mod bench;
mod convert;
mod data;
mod decode;
mod doctor;
mod eval;
mod generate;
mod inspect;
mod model;
mod plan;
mod plot;
mod quickstart;
mod train;
mod warmup;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub(crate) use self::bench::{BenchCommand, BenchDecodeArgs, BenchTrainArgs};
pub(crate) use self::convert::{ConvertCommand, ConvertMergeArgs, FromPytorchArgs, ToPytorchArgs};
pub(crate) use self::data::{DataCommand, DataInspectArgs, SourceArgs};
pub(crate) use self::decode::{DecodeArgs, DecodeKind, FirstStep, SearchArgs, SolverKind, StoppingKind, VelocityKind};
pub(crate) use self::doctor::DoctorArgs;
pub(crate) use self::eval::{
    AnswersArgs, CompareArgs, EvalArgs, EvalCommand, EvalSubcommand, MergeArgs, RescoreArgs, ScoringArgs,
};
pub(crate) use self::generate::{ChatArgs, GenerateArgs};
pub(crate) use self::inspect::InspectArgs;
pub(crate) use self::model::{CacheKind, ModelArgs, WeightsKind};
pub(crate) use self::plan::PlanArgs;
pub(crate) use self::plot::{CurveKind, PlotCommand, PlotLossesArgs};
pub(crate) use self::quickstart::QuickstartArgs;
pub(crate) use self::train::{ObjectiveArg, TrainArgs};
pub(crate) use self::warmup::WarmupArgs;
use crate::backend::BackendKind;
use crate::place::DeviceList;

/// Large language models to diffusion finetuning: train a small diffusion path beside a frozen language model, then decode
/// each token in as many diffusion steps as you want to pay for.
#[derive(Debug, Parser)]
#[command(name = "l2d", version = crate::VERSION, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Where to compute [default: the first one compiled in, the CPU before the GPUs].
    #[arg(long, global = true, value_enum, help_heading = "Global options")]
    pub(crate) backend: Option<BackendKind>,

    /// Which devices: cuda:0, wgpu:1, or for `train` several that train together, cuda:0-7 [default: the backend's first].
    #[arg(long, global = true, value_name = "LIST", help_heading = "Global options")]
    pub(crate) devices: Option<DeviceList>,

    /// Use a GPU that computes known numbers wrongly all the same.
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) skip_self_check: bool,

    /// Log more to stderr: -v for information, -vv for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch an embedded model learn to think in more steps: about three minutes, needs nothing.
    Quickstart(QuickstartArgs),
    /// Finetune a diffusion path (or, with --objective, the model itself).
    Train(TrainArgs),
    /// Say what a run would take: parameters, memory, time; exits with 1 where it does not fit.
    Plan(PlanArgs),
    /// Draw what runs have written.
    #[command(subcommand)]
    Plot(PlotCommand),
    /// Continue one prompt; the answer alone goes to stdout.
    Generate(GenerateArgs),
    /// Talk to a model.
    Chat(ChatArgs),
    /// Score a model on a benchmark at several numbers of diffusion steps.
    Eval(EvalCommand),
    /// Look at training data.
    #[command(subcommand)]
    Data(DataCommand),
    /// Say what a file or folder is: a model, an adapter, and whether the two fit.
    Inspect(InspectArgs),
    /// Say what this machine and this binary have, how fast it is, and what to change.
    Doctor(DoctorArgs),
    /// Let a GPU compile and choose its kernels for a model before anybody waits for an answer.
    Warmup(WarmupArgs),
    /// Models and adapters from one format into another.
    #[command(subcommand)]
    Convert(ConvertCommand),
    /// Measure speed.
    #[command(subcommand)]
    Bench(BenchCommand),
}

impl Command {
    /// The models, adapters and data sets that the command reads, which may be addresses on the hub.
    pub(crate) fn inputs(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Quickstart(_) | Self::Plot(_) | Self::Doctor(_) => Vec::new(),
            Self::Warmup(args) => args.model.inputs(),
            Self::Train(args) => args.source.inputs(&mut args.model).into_iter().chain(&mut args.lora).collect(),
            Self::Plan(args) => args.source.inputs(&mut args.model),
            Self::Generate(args) => args.model.inputs(),
            Self::Chat(args) => args.model.inputs(),
            Self::Eval(args) => args.inputs(),
            Self::Data(DataCommand::Inspect(args)) => args.source.inputs(&mut args.model),
            Self::Inspect(args) => args.paths.iter_mut().collect(),
            Self::Convert(ConvertCommand::Merge(args)) => {
                std::iter::once(&mut args.model).chain(&mut args.lora).collect()
            }
            Self::Convert(ConvertCommand::FromPytorch(args)) => vec![&mut args.model, &mut args.checkpoint],
            Self::Convert(ConvertCommand::ToPytorch(args)) => vec![&mut args.model, &mut args.adapter],
            Self::Bench(BenchCommand::Decode(args)) => args.model.inputs(),
            Self::Bench(BenchCommand::Train(args)) => vec![&mut args.model],
        }
    }
}

impl EvalCommand {
    fn inputs(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Run(args) => args.model.inputs().into_iter().chain([&mut args.data]).collect(),
            Self::Again(EvalSubcommand::Rescore(args)) => vec![&mut args.answers.data],
            Self::Again(EvalSubcommand::Merge(args)) => vec![&mut args.answers.data],
            Self::Again(EvalSubcommand::Tasks | EvalSubcommand::Compare(_)) => Vec::new(),
        }
    }
}

impl SourceArgs {
    fn inputs<'a>(&'a mut self, model: &'a mut PathBuf) -> Vec<&'a mut PathBuf> {
        std::iter::once(model).chain(&mut self.data).collect()
    }
}

impl ModelArgs {
    fn inputs(&mut self) -> Vec<&mut PathBuf> {
        std::iter::once(&mut self.model).chain(&mut self.lora).chain(&mut self.adapter).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_evaluation_is_run_or_worked_on() {
        let parse = |text: &str| Cli::try_parse_from(text.split(' ')).map(|cli| cli.command);
        let run = parse("l2d eval --model m --tasks gsm8k,math --data d --samples 1,3-5 --guidance 1,2").unwrap();
        assert!(matches!(run, Command::Eval(EvalCommand::Run(args)) if args.tasks.len() == 2));
        let again = parse("l2d eval rescore out --data d --profile paper").unwrap();
        assert!(matches!(again, Command::Eval(EvalCommand::Again(EvalSubcommand::Rescore(_)))));
        assert!(parse("l2d eval --tasks gsm8k").unwrap_err().to_string().contains("--model"));
        assert!(parse("l2d eval --model m --tasks gsm8k --data d --samples x").is_err());
        assert!(parse("l2d eval --model m --tasks gsm8k --data d --likelihood --steps 1").is_err());
    }
}
