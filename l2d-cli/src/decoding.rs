//! What the flags of decoding say, as the decoder takes it.

use std::fmt;

use clap::ValueEnum;
use l2d_infer::decode::{AdaptiveSteps, BeamParams, DecodeMode, DiffusionParams, Stopping};
use l2d_infer::ode::{AdaptiveParams, AdaptiveSolver, FixedGrid, Solver};
use l2d_infer::sampler::SamplingParams;
use l2d_infer::schedule::TemperatureSchedule;
use l2d_infer::velocity::{Estimate, Normalise};
use serde::{Serialize, Serializer};

use crate::args::{DecodeArgs, DecodeKind, FirstStep, SearchArgs, SolverKind, StoppingKind, VelocityKind};
use crate::error::CliError;

/// What is spent on a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budget {
    /// So many evaluations; 1 is the plain LM.
    Evaluations(usize),
    /// As many as an adaptive solver asks for.
    Adaptive,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evaluations(count) => count.fmt(f),
            Self::Adaptive => f.write_str("adaptive"),
        }
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Evaluations(count) => serializer.serialize_u64(*count as u64),
            Self::Adaptive => serializer.serialize_str("adaptive"),
        }
    }
}

impl SolverKind {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// The adaptive solver of that name.
    pub(crate) fn adaptive(self) -> Option<AdaptiveSolver> {
        self.name().parse().ok()
    }
}

impl DecodeArgs {
    /// The budgets of a run: those asked for, else `usual`. An adaptive solver takes none.
    pub(crate) fn budgets(&self, asked: Option<&[usize]>, usual: &[usize]) -> Result<Vec<Budget>, CliError> {
        match (self.solver.and_then(SolverKind::adaptive), asked) {
            (Some(solver), Some(_)) => Err(CliError::Usage(format!(
                "--steps means nothing with --solver {solver}, which takes as many as --atol and --rtol ask for"
            ))),
            (Some(_), None) => Ok(vec![Budget::Adaptive]),
            (None, Some(asked)) => Ok(asked.iter().copied().map(Budget::Evaluations).collect()),
            // Of the usual ones each solver takes the next that its steps add up to: the paper's 15 is 17 with `rk4`.
            (None, None) => {
                let fits = |&count: &usize| FixedGrid::for_evaluations(self.fixed_solver(), count, 1.0).is_ok();
                let fitting = |&usual: &usize| (usual..2 * usual + 1).find(fits).unwrap_or(usual);
                Ok(usual.iter().map(fitting).map(Budget::Evaluations).collect())
            }
        }
    }

    /// The budget of a command that takes one.
    pub(crate) fn budget(&self, asked: Option<usize>, usual: usize) -> Result<Budget, CliError> {
        let budgets = self.budgets(asked.as_ref().map(std::slice::from_ref), &[usual])?;
        Ok(budgets[0])
    }

    /// Refuses flags of the diffusion where all budgets are 1, the plain LM.
    pub(crate) fn refuse_idle_flags(&self, budgets: &[Budget]) -> Result<(), CliError> {
        match self.diffusion_flags().into_iter().find(|(_, given)| *given) {
            Some((flag, _)) if budgets.iter().all(|&budget| budget == Budget::Evaluations(1)) => {
                Err(CliError::Usage(format!("{flag} means nothing with --steps 1, the plain LM: ask for more steps")))
            }
            _ => Ok(()),
        }
    }

    fn fixed_solver(&self) -> Solver {
        self.solver.and_then(|solver| solver.name().parse().ok()).unwrap_or_default()
    }

    /// The diffusion that spends `budget` on each token.
    pub(crate) fn diffusion(&self, budget: Budget) -> DiffusionParams {
        let schedule = match self.cool {
            Some((power, end)) => TemperatureSchedule::Polynomial { power, end },
            None => TemperatureSchedule::Constant { temperature: self.velocity_temperature.unwrap_or(1.0) },
        };
        let expectation = |normalise| Estimate::Expectation { schedule, normalise };
        let usual = DiffusionParams::default();
        let adaptive = self.solver.and_then(SolverKind::adaptive).map(|solver| {
            let usual = AdaptiveParams::default();
            let tolerance = AdaptiveParams {
                atol: self.atol.unwrap_or(usual.atol),
                rtol: self.rtol.unwrap_or(usual.rtol),
                first_step: match self.first_step {
                    None => usual.first_step,
                    Some(FirstStep::Auto) => None,
                    Some(FirstStep::Length(length)) => Some(length),
                },
                max_evaluations: self.max_evaluations.unwrap_or(usual.max_evaluations),
            };
            AdaptiveSteps { solver, tolerance, as_reference: None }
        });
        let velocity = match adaptive {
            Some(_) => VelocityKind::Expectation,
            None => VelocityKind::Sampled,
        };
        DiffusionParams {
            evaluations: match budget {
                Budget::Evaluations(count) => count,
                Budget::Adaptive => usual.evaluations,
            },
            solver: self.fixed_solver(),
            final_t: self.final_time.unwrap_or(usual.final_t),
            estimate: match self.velocity.unwrap_or(velocity) {
                VelocityKind::Sampled => Estimate::Sampled { schedule },
                VelocityKind::Argmax => Estimate::Argmax,
                VelocityKind::Expectation => expectation(Normalise::None),
                VelocityKind::ExpectationNormalised => expectation(Normalise::Renormalise),
                VelocityKind::ExpectationClamped => expectation(Normalise::ClampToNearest),
            },
            guidance: self.guidance.first().copied().unwrap_or(1.0),
            adaptive,
            ..usual
        }
    }

    /// How the evaluations of a token are laid out.
    pub(crate) fn mode(&self) -> DecodeMode {
        match self.decode {
            Some(DecodeKind::Sequential) => DecodeMode::Sequential,
            Some(DecodeKind::Parallel) | None => DecodeMode::Parallel,
        }
    }

    /// The name of the mode that these flags end up with: only tokens on a grid of times can be guessed ahead.
    pub(crate) fn mode_name(&self) -> &'static str {
        let expectation = matches!(self.diffusion(Budget::Evaluations(1)).estimate, Estimate::Expectation { .. });
        match self.mode() {
            DecodeMode::Parallel if !expectation && self.solver.and_then(SolverKind::adaptive).is_none() => "parallel",
            DecodeMode::Parallel | DecodeMode::Sequential => "sequential",
        }
    }

    /// The same for a task that has a temperature of its own, unless one was asked for.
    pub(crate) fn sampling_for(&self, usual: Option<f64>) -> SamplingParams {
        let temperature = self.temperature.or(usual).unwrap_or(1.0);
        SamplingParams { temperature, ..self.sampling() }
    }

    /// How the emitted token is drawn.
    pub(crate) fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
        }
    }
}

impl SearchArgs {
    /// The beam search that was asked for.
    pub(crate) fn beam(&self) -> Option<BeamParams> {
        let usual = BeamParams::default();
        self.beams.map(|hypotheses| BeamParams {
            hypotheses,
            length_exponent: self.length_exponent.unwrap_or(usual.length_exponent),
            score_temperature: self.score_temperature.unwrap_or(usual.score_temperature),
            stopping: match self.stopping {
                None => usual.stopping,
                Some(StoppingKind::First) => Stopping::First,
                Some(StoppingKind::Likely) => Stopping::Likely,
                Some(StoppingKind::Certain) => Stopping::Certain,
            },
        })
    }
}
