//! How tokens are diffused, drawn and searched: flags that several commands share.

use clap::{Args, ValueEnum};

use crate::error::CliError;

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

    /// Strength of the guidance: 0 = without the class, 1 = with it, more = away from what the class is not [default: 1]. An
    /// evaluation takes several, and without --class guides each row by its task's class.
    #[arg(long, allow_negative_numbers = true, value_delimiter = ',', value_name = "W", help_heading = "Diffusion")]
    pub(crate) guidance: Vec<f64>,

    /// Whether evaluations wait for one another; the tokens are the same [default: parallel].
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Diffusion")]
    pub(crate) decode: Option<DecodeKind>,

    /// Temperature of the emitted token; 0 = greedy. As in the paper, nothing is truncated or tempered unless a flag says
    /// so: of the model's generation_config.json only the end tokens are used [default: 1].
    #[arg(long, allow_negative_numbers = true, value_name = "T", help_heading = "Sampling")]
    pub(crate) temperature: Option<f64>,

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
    pub(crate) fn diffusion_flags(&self) -> [(&'static str, bool); 12] {
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
            ("--guidance", !self.guidance.is_empty()),
        ]
    }

    /// Refuses strengths of guidance that a command with one answer has no use for.
    pub(crate) fn check_guidance(&self) -> Result<(), CliError> {
        match (&*self.guidance, &self.class) {
            ([], _) | ([_], Some(_)) => Ok(()),
            ([_], None) => Err(CliError::Usage("--guidance needs a --class to guide by".into())),
            _ => Err(CliError::Usage("--guidance takes one strength here; `l2d eval` compares several".into())),
        }
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
        if let (false, true, Some((flag, _))) = (adaptive, has_adapter, given[7..11].iter().find(|(_, given)| *given)) {
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

    #[test]
    fn a_cooling_schedule_is_two_numbers() {
        assert_eq!(parse_schedule("1,0.8"), Ok((1.0, 0.8)));
        assert!(parse_schedule("1").is_err() && parse_schedule("a,b").is_err());
    }
}
