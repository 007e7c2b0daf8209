//! How a token is diffused, as a user writes it and checked.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ode::{Adaptive, AdaptiveParams, AdaptiveSolver, End, FixedGrid, Solver};
use crate::velocity::{Estimate, VelocityForm};

/// The diffusion of one token. The defaults are the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionParams {
    /// The budget: evaluations of the joined model for one token, the closing one included. 1 is the plain LM.
    pub evaluations: usize,
    /// The solver.
    pub solver: Solver,
    /// In the place of a budget and its solver: steps as long as an estimate of their error allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveSteps>,
    /// The time `T` at which the diffusion ends and the token is drawn, in `(0, 1]`.
    pub final_t: f64,
    /// How the clean embedding is guessed.
    pub estimate: Estimate,
    /// How fast the state moves towards the guess.
    pub velocity: VelocityForm,
    /// The strength `w` of classifier-free guidance, `w v(class) + (1 - w) v(no class)`. At 1 the class alone decides and
    /// nothing more is computed.
    pub guidance: f64,
}

impl Default for DiffusionParams {
    fn default() -> Self {
        Self {
            evaluations: 15,
            solver: Solver::Midpoint,
            adaptive: None,
            final_t: 1.0,
            estimate: Estimate::default(),
            velocity: VelocityForm::Constant,
            guidance: 1.0,
        }
    }
}

impl DiffusionParams {
    /// Lays the grid and checks the ranges.
    ///
    /// # Errors
    /// [`Error::Grid`] for a budget the solver cannot meet, [`Error::Parameter`] for a number out of range.
    pub fn check(self) -> Result<Diffusion> {
        self.estimate.check()?;
        if !self.guidance.is_finite() {
            return Err(Error::parameter("guidance", self.guidance, "a finite number; 1 is no guidance"));
        }
        let steps = match self.adaptive {
            Some(adaptive) => adaptive.check(self.final_t)?,
            None => match FixedGrid::for_evaluations(self.solver, self.evaluations, self.final_t)? {
                Some(grid) => Steps::Grid(grid),
                None => Steps::None,
            },
        };
        Ok(Diffusion { steps, params: self })
    }
}

/// Steps that follow their own error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveSteps {
    /// The pair of Runge-Kutta formulas.
    pub solver: AdaptiveSolver,
    /// How much error a step may make, and how many evaluations a token.
    #[serde(default)]
    pub tolerance: AdaptiveParams,
    /// For comparisons with the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_reference: Option<ReferenceSteps>,
}

/// As torchdiffeq and with it the reference goes: one error and one step for the whole batch, past `T` and back by
/// interpolation. What a row gets depends on its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceSteps {
    /// Times on the grid whose states are read off.
    pub points: usize,
    /// Whether the velocity goes on beyond `t = 1` by its formula, as in the reference's Qwen 2 model, or is zero there.
    pub beyond_the_end: bool,
}

impl AdaptiveSteps {
    fn check(self, final_t: f64) -> Result<Steps> {
        let end = match self.as_reference {
            None => End::Clip(final_t),
            Some(reference) => {
                End::Interpolate(FixedGrid::new(Solver::Euler, reference.points, final_t)?.times().to_vec())
            }
        };
        let solver = Adaptive::new(self.solver, self.tolerance, end)?;
        Ok(Steps::Adaptive { solver, reference: self.as_reference })
    }
}

/// How the evaluations of a token are laid out. The tokens are the same in both (but for roundings: a product of one row and
/// one of many may differ in the last bit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecodeMode {
    /// As many evaluations in one forward pass as can be guessed. An expectation over the vocabulary cannot be guessed and is
    /// decoded sequentially.
    #[default]
    Parallel,
    /// One evaluation after the other.
    Sequential,
}

/// Checked [`DiffusionParams`].
#[derive(Debug, Clone, PartialEq)]
pub struct Diffusion {
    pub(super) params: DiffusionParams,
    pub(super) steps: Steps,
}

/// How the diffusion gets from `t = 0` to `T`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Steps {
    /// A budget of 1: not at all, this is the plain LM.
    None,
    Grid(FixedGrid),
    Adaptive {
        solver: Adaptive,
        reference: Option<ReferenceSteps>,
    },
}

impl Diffusion {
    /// What it was made from.
    pub fn params(&self) -> &DiffusionParams {
        &self.params
    }

    /// The grid of times; `None` for the plain LM and for an adaptive solver.
    pub fn grid(&self) -> Option<&FixedGrid> {
        match &self.steps {
            Steps::Grid(grid) => Some(grid),
            Steps::None | Steps::Adaptive { .. } => None,
        }
    }
}
