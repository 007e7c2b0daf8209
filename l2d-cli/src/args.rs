//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::arithmetic::TEST_PROBLEMS;
use crate::backend::BackendKind;
use crate::error::CliError;

/// Large language models to diffusion finetuning: train a small diffusion path beside a frozen language model, then decode
/// each token in as many diffusion steps as you want to pay for.
#[derive(Debug, Parser)]
#[command(name = "l2d", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Where to compute [default: the first one compiled in, the CPU before the GPUs].
    #[arg(long, global = true, value_enum, help_heading = "Global options")]
    pub(crate) backend: Option<BackendKind>,

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
    /// Continue one prompt; the answer alone goes to stdout.
    Generate(GenerateArgs),
    /// Talk to a model.
    Chat(ChatArgs),
    /// Score a model on a benchmark at several numbers of diffusion steps.
    Eval(EvalArgs),
    /// Say what a file or folder is: a model, an adapter, and whether the two fit.
    Inspect(InspectArgs),
    /// Measure speed.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Tokens per second of a model, by steps, batch and prompt length.
    Decode(BenchDecodeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchDecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Evaluations per token, several after commas [default: 1, and 15 with an adapter].
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(crate) steps: Option<Vec<usize>>,

    /// Sequences decoded together, several after commas.
    #[arg(long, value_name = "B,..", value_delimiter = ',', default_value = "1")]
    pub(crate) batch: Vec<usize>,

    /// Tokens of the prompts, several after commas.
    #[arg(long, value_name = "P,..", value_delimiter = ',', default_value = "128")]
    pub(crate) prompt: Vec<usize>,

    /// New tokens of each sequence.
    #[arg(long, value_name = "M", default_value_t = 32)]
    pub(crate) tokens: usize,

    /// Runs of each case; the median is shown.
    #[arg(long, value_name = "R", default_value_t = 3)]
    pub(crate) repeats: usize,

    /// Write the figures to this file as well.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,
}

/// The model.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A Hugging Face folder or a .gguf file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// The trained diffusion path; without it the model is the plain LM.
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: Option<PathBuf>,

    /// Number format of the base's weights in memory, on the CPU [default: stored].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) weights: Option<WeightsKind>,

    /// Number format of cached keys and values, on the CPU: f16 reads half the bytes of a long context, and rounds
    /// [default: f32].
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) kv_cache: Option<CacheKind>,
}

/// Number formats of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheKind {
    /// 32 bits a number, nothing rounded.
    F32,
    /// 16 bits a number, half precision.
    F16,
}

/// Number formats of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsKind {
    /// As the file stores them, nothing rounded: 16-bit floats and GGUF's blocks (Q4_0 to Q8_0, Q4_K to Q6_K) as they are.
    Stored,
    /// 32 bits a weight.
    F32,
    /// 16 bits, bfloat16; rounds what is finer.
    Bf16,
    /// 16 bits, half precision; rounds what is finer.
    F16,
    /// 8.5 bits in blocks of 32; rounds what is finer.
    #[value(name = "q8_0")]
    Q8_0,
    /// 5 bits in blocks of 32; rounds what is finer.
    #[value(name = "q4_1")]
    Q4_1,
}

/// How tokens are diffused and drawn.
#[derive(Debug, Clone, Args)]
pub(crate) struct DecodeArgs {
    /// Guess of the next embedding along the diffusion [default: sampled; expectation with an adaptive solver].
    #[arg(long, value_enum, help_heading = "Diffusion")]
    pub(crate) velocity: Option<VelocityKind>,

    /// Solver of the diffusion [default: midpoint].
    #[arg(long, value_enum, help_heading = "Diffusion")]
    pub(crate) solver: Option<SolverKind>,

    /// Absolute error that a step of an adaptive solver may make [default: 1e-4].
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Diffusion")]
    pub(crate) atol: Option<f64>,

    /// Error relative to the state that a step of an adaptive solver may make [default: 1e-4].
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Diffusion")]
    pub(crate) rtol: Option<f64>,

    /// First step that an adaptive solver tries; auto guesses one from two velocities [default: 0.05].
    #[arg(long, allow_negative_numbers = true, value_name = "X", value_parser = parse_first_step, help_heading = "Diffusion")]
    pub(crate) first_step: Option<FirstStep>,

    /// Velocities that an adaptive solver may ask for on one token; more are an error [default: 1000].
    #[arg(long, value_name = "N", help_heading = "Diffusion")]
    pub(crate) max_evaluations: Option<usize>,

    /// Temperature of the guess along the diffusion; 0 = arg-max [default: 1].
    #[arg(long, allow_negative_numbers = true, value_name = "T", conflicts_with = "cool", help_heading = "Diffusion")]
    pub(crate) velocity_temperature: Option<f64>,

    /// Let the guess cool down as (1 - t/END)^POWER instead: POWER,END.
    #[arg(long, value_name = "POWER,END", value_parser = parse_schedule, help_heading = "Diffusion")]
    pub(crate) cool: Option<(f64, f64)>,

    /// Diffusion time at which the token is drawn [default: 1].
    #[arg(long, allow_negative_numbers = true, value_name = "T", help_heading = "Diffusion")]
    pub(crate) final_time: Option<f64>,

    /// Class that guides the diffusion, one of those the adapter was trained with.
    #[arg(long, value_name = "NAME", help_heading = "Diffusion")]
    pub(crate) class: Option<String>,

    /// Strength of the guidance: 0 = without the class, 1 = with it, more = away from what the class is not [default: 1].
    #[arg(long, allow_negative_numbers = true, value_name = "W", requires = "class", help_heading = "Diffusion")]
    pub(crate) guidance: Option<f64>,

    /// Whether evaluations wait for one another; the tokens are the same [default: parallel].
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Diffusion")]
    pub(crate) decode: Option<DecodeKind>,

    /// Temperature of the emitted token; 0 = greedy. As in the paper, nothing is truncated or tempered unless a flag says
    /// so: of the model's generation_config.json only the end tokens are used.
    #[arg(long, allow_negative_numbers = true, default_value_t = 1.0, value_name = "T", help_heading = "Sampling")]
    pub(crate) temperature: f64,

    /// Keep the K most likely tokens; 0 keeps all.
    #[arg(long, default_value_t = 0, value_name = "K", help_heading = "Sampling")]
    pub(crate) top_k: usize,

    /// Keep the most likely tokens up to this probability; 1 keeps all.
    #[arg(long, allow_negative_numbers = true, default_value_t = 1.0, value_name = "P", help_heading = "Sampling")]
    pub(crate) top_p: f64,

    /// Drop tokens less likely than P times the most likely; 0 keeps all.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.0, value_name = "P", help_heading = "Sampling")]
    pub(crate) min_p: f64,

    /// Penalty on tokens already there, the prompt's too: divides their logits; 1 changes nothing.
    #[arg(long, allow_negative_numbers = true, default_value_t = 1.0, value_name = "X", help_heading = "Sampling")]
    pub(crate) repetition_penalty: f64,

    /// Taken off the logit of a token that is among the new ones; 0 changes nothing.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.0, value_name = "X", help_heading = "Sampling")]
    pub(crate) presence_penalty: f64,

    /// Taken off the logit of a token for each time it is among the new ones; 0 changes nothing.
    #[arg(long, allow_negative_numbers = true, default_value_t = 0.0, value_name = "X", help_heading = "Sampling")]
    pub(crate) frequency_penalty: f64,

    /// Added to the logit of token number ID, -inf forbids it; may be given several times.
    #[arg(long, allow_hyphen_values = true, value_name = "ID=X", value_parser = parse_bias, help_heading = "Sampling")]
    pub(crate) logit_bias: Vec<(u32, f32)>,

    /// Seed of all randomness.
    #[arg(long, default_value_t = 0, help_heading = "Sampling")]
    pub(crate) seed: u64,
}

impl DecodeArgs {
    /// The flags of the diffusion, and whether they were given.
    pub(crate) fn diffusion_flags(&self) -> [(&'static str, bool); 11] {
        [
            ("--velocity", self.velocity.is_some()),
            ("--solver", self.solver.is_some()),
            ("--velocity-temperature", self.velocity_temperature.is_some()),
            ("--cool", self.cool.is_some()),
            ("--final-time", self.final_time.is_some()),
            ("--decode", self.decode.is_some()),
            ("--class", self.class.is_some()),
            ("--atol", self.atol.is_some()),
            ("--rtol", self.rtol.is_some()),
            ("--first-step", self.first_step.is_some()),
            ("--max-evaluations", self.max_evaluations.is_some()),
        ]
    }

    /// Refuses diffusion flags that would have no effect with this model, and what makes no sense of the others.
    pub(crate) fn check(&self, has_adapter: bool) -> Result<(), CliError> {
        self.sampling().check()?;
        let given = self.diffusion_flags();
        let usage = |flag: &str, reason: &str| Err(CliError::Usage(format!("{flag} {reason}")));
        let expectation =
            self.velocity.is_some_and(|kind| !matches!(kind, VelocityKind::Sampled | VelocityKind::Argmax));
        if has_adapter && expectation && self.decode == Some(DecodeKind::Parallel) {
            return usage("--decode parallel", "guesses tokens, and an expectation is none: leave the flag out");
        }
        let adaptive = self.solver.is_some_and(|solver| solver.adaptive().is_some());
        if has_adapter && adaptive && self.decode == Some(DecodeKind::Parallel) {
            return usage(
                "--decode parallel",
                "guesses the times to come, and an adaptive solver finds them as it goes",
            );
        }
        if let (false, true, Some((flag, _))) = (adaptive, has_adapter, given[7..].iter().find(|(_, given)| *given)) {
            return usage(flag, "is for the adaptive solvers: fehlberg2, adaptive_heun, bosh3, dopri5");
        }
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) if !has_adapter => {
                usage(flag, "means nothing for the plain LM: name a diffusion path with --adapter")
            }
            Some(_) if self.velocity == Some(VelocityKind::Argmax) => {
                match given[2..4].iter().find(|(_, given)| *given) {
                    Some((flag, _)) => {
                        usage(flag, "means nothing with --velocity argmax, which takes the most likely token")
                    }
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// How `x1_hat` is made from logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VelocityKind {
    /// The embedding of a sampled token.
    Sampled,
    /// The embedding of the most likely token.
    Argmax,
    /// The expected embedding.
    Expectation,
    /// The expected embedding, stretched to the sphere.
    ExpectationNormalised,
    /// The row nearest to the expected embedding.
    ExpectationClamped,
}

/// How the evaluations of a token are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DecodeKind {
    /// As many at once as can be guessed (an expectation cannot, and is decoded sequentially).
    Parallel,
    /// One after the other.
    Sequential,
}

/// Beam search in the place of sampling.
#[derive(Debug, Clone, Args)]
pub(crate) struct SearchArgs {
    /// Keep the N likeliest hypotheses at each token instead of drawing one. With --steps K every hypothesis is diffused: half
    /// a budget of 15 for each is --beams 7 --steps 7.
    #[arg(long, value_name = "N", help_heading = "Search")]
    pub(crate) beams: Option<usize>,

    /// A hypothesis of n tokens scores its log-likelihood divided by n^X; 0 ignores lengths [default: 1].
    #[arg(long, allow_negative_numbers = true, value_name = "X", requires = "beams", help_heading = "Search")]
    pub(crate) length_exponent: Option<f64>,

    /// Draw the answer among the finished hypotheses from softmax(score / T); 0 takes the best [default: 0].
    #[arg(long, allow_negative_numbers = true, value_name = "T", requires = "beams", help_heading = "Search")]
    pub(crate) score_temperature: Option<f64>,

    /// When to stop looking [default: likely].
    #[arg(long, value_enum, value_name = "WHEN", requires = "beams", help_heading = "Search")]
    pub(crate) stopping: Option<StoppingKind>,
}

/// When a search has seen enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoppingKind {
    /// As soon as as many hypotheses have ended as are kept.
    First,
    /// Once none that goes on scores better now than the worst of those.
    Likely,
    /// Once none that goes on can still come to score better.
    Certain,
}

/// The first step of an adaptive solver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FirstStep {
    Auto,
    Length(f64),
}

/// The solvers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SolverKind {
    /// One evaluation a step.
    Euler,
    /// Two evaluations a step.
    Midpoint,
    /// Two evaluations a step, the trapezoidal rule.
    Heun2,
    /// Three evaluations a step.
    Heun3,
    /// Four evaluations a step: the 3/8 rule, as torchdiffeq's rk4.
    Rk4,
    /// Four evaluations a step: the classic rule.
    #[value(name = "rk4_classic")]
    Rk4Classic,
    /// Adaptive: steps as long as --atol and --rtol allow. Fehlberg 2(1).
    Fehlberg2,
    /// Adaptive: Heun 2(1).
    #[value(name = "adaptive_heun")]
    AdaptiveHeun,
    /// Adaptive: Bogacki-Shampine 3(2).
    Bosh3,
    /// Adaptive: Dormand-Prince 5(4).
    Dopri5,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Evaluations per token; 1 = the plain LM [default: 15 with an adapter, else 1].
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,

    /// The most tokens to emit [default: 256, or what the context has room for].
    #[arg(long, value_name = "M")]
    pub(crate) max_tokens: Option<usize>,

    /// Feed the prompt as it is, without a chat template.
    #[arg(long)]
    pub(crate) raw: bool,

    /// A system message before the prompt.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,

    /// End the answer before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Write the guesses on the way to each token to FILE.jsonl, and as a page to look at to FILE.html.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["beams", "samples"])]
    pub(crate) trace: Option<PathBuf>,

    /// Answers to draw, decoded together; the first is the one drawn without this flag.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096), conflicts_with = "beams")]
    pub(crate) samples: Option<u64>,

    /// Give each token's log-probability and those of the N likeliest, of the plain LM alone (--steps 1); with --json.
    #[arg(long, value_name = "N", requires = "json", conflicts_with = "beams")]
    pub(crate) logprobs: Option<usize>,

    /// One JSON object for each answer on stdout, once all are complete.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,

    #[command(flatten)]
    pub(crate) search: SearchArgs,

    /// The prompt; - reads stdin.
    pub(crate) prompt: String,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Evaluations per token; 1 = the plain LM [default: 15 with an adapter, else 1].
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,

    /// The most tokens in one answer [default: 512, or what the context has room for].
    #[arg(long, value_name = "M")]
    pub(crate) max_tokens: Option<usize>,

    /// A system message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// A Hugging Face folder or a .gguf file. With --from-scratch: a folder with config.json and a tokenizer, no weights.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,

    /// Conversations: .jsonl, .jsonl.gz, or folders of them. A row holds `messages`, or `question` and `answer`.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) data: Vec<PathBuf>,

    /// The run's folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Settings as TOML (docs/training.md lists them); flags override it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Go on from the newest checkpoint in --out.
    #[arg(long)]
    pub(crate) resume: bool,

    /// What to train.
    #[arg(long, value_enum)]
    pub(crate) objective: Option<ObjectiveArg>,

    /// Start from random weights (objective full).
    #[arg(long)]
    pub(crate) from_scratch: bool,

    /// Store the finished adapter or LM in f16: half the size, rounded.
    #[arg(long)]
    pub(crate) f16: bool,

    /// Updates.
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,

    /// Passes over the data.
    #[arg(long, allow_negative_numbers = true, value_name = "X", conflicts_with = "steps")]
    pub(crate) epochs: Option<f64>,

    /// Sequences per update.
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,

    /// Sequences in memory at a time.
    #[arg(long, value_name = "N")]
    pub(crate) micro_batch_size: Option<usize>,

    /// Peak learning rate.
    #[arg(long, allow_negative_numbers = true, value_name = "X")]
    pub(crate) learning_rate: Option<f64>,

    /// Drop examples longer than this.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,

    /// Seed of initialisation, order and draws.
    #[arg(long)]
    pub(crate) seed: Option<u64>,

    /// Any other setting: key=value as in the TOML file, e.g. --set diffusion.dim=64.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectiveArg {
    /// The diffusion path beside the frozen LM.
    L2d,
    /// All weights of the LM.
    Full,
    /// Low-rank corrections of the LM.
    Lora,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Benchmarks, comma-separated.
    #[arg(long, value_delimiter = ',', required = true, value_name = "TASKS")]
    pub(crate) tasks: Vec<String>,

    /// Folder of data sets in the Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,

    /// Only the first N rows.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,

    /// Evaluations per token to compare, comma-separated [default: 1,15 with an adapter, else 1].
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub(crate) steps: Option<Vec<usize>>,

    /// Folder for samples, results and plot. The same command goes on where it was stopped.
    #[arg(long, value_name = "DIR", default_value = "eval-results")]
    pub(crate) out: PathBuf,

    /// Sequences decoded together.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) batch_size: usize,

    /// The most tokens of one answer [default: the task's own].
    #[arg(long, value_name = "M")]
    pub(crate) max_tokens: Option<usize>,

    #[command(flatten)]
    pub(crate) decode: DecodeArgs,

    #[command(flatten)]
    pub(crate) search: SearchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model folder, a .gguf file, or an adapter.
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,

    /// List every tensor.
    #[arg(long)]
    pub(crate) tensors: bool,
}

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Where the table, the plot and the live adapter go.
    #[arg(long, value_name = "DIR", default_value = "quickstart")]
    pub(crate) out: PathBuf,

    /// Seconds of live finetuning.
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub(crate) seconds: u64,

    /// Held-out problems per row of the table.
    #[arg(long, default_value_t = 400, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=TEST_PROBLEMS))]
    pub(crate) problems: u64,

    /// Train to the end instead of using the shipped adapter.
    #[arg(long)]
    pub(crate) long: bool,

    /// Add low-rank finetuning of the weights on the same data and for the same time.
    #[arg(long)]
    pub(crate) baseline: bool,

    /// Only write the task's data (corpus.jsonl, train.jsonl, test.jsonl) into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) export_data: Option<PathBuf>,

    /// Seed.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected ID=X, e.g. 198=-5")?;
    let id = id.trim().parse().map_err(|e| format!("`{id}` is no token number: {e}"))?;
    Ok((id, bias.trim().parse().map_err(|e| format!("`{bias}`: {e}"))?))
}

fn parse_first_step(text: &str) -> Result<FirstStep, String> {
    match text {
        "auto" => Ok(FirstStep::Auto),
        _ => text.parse().map(FirstStep::Length).map_err(|e| format!("a number or `auto`: {e}")),
    }
}

fn parse_schedule(text: &str) -> Result<(f64, f64), String> {
    let number = |part: &str| part.trim().parse::<f64>().map_err(|e| format!("`{part}`: {e}"));
    let (power, end) = text.split_once(',').ok_or("expected POWER,END, e.g. 1,0.8")?;
    Ok((number(power)?, number(end)?))
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
    fn a_cooling_schedule_is_two_numbers() {
        assert_eq!(parse_schedule("1,0.8"), Ok((1.0, 0.8)));
        assert!(parse_schedule("1").is_err() && parse_schedule("a,b").is_err());
    }
}
