//! How a token is diffused, as a user writes it and checked.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ode::{FixedGrid, Solver};
use crate::velocity::{Estimate, VelocityForm};

/// The diffusion of one token. The defaults are the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionParams {
    /// The budget: evaluations of the joined model for one token, the closing one included. 1 is the plain LM.
    pub evaluations: usize,
    /// The solver.
    pub solver: Solver,
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
        Ok(Diffusion { grid: FixedGrid::for_evaluations(self.solver, self.evaluations, self.final_t)?, params: self })
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
    /// `None` for a budget of 1: the plain LM.
    pub(super) grid: Option<FixedGrid>,
}

impl Diffusion {
    /// What it was made from.
    pub fn params(&self) -> &DiffusionParams {
        &self.params
    }

    /// The grid of times; `None` for the plain LM.
    pub fn grid(&self) -> Option<&FixedGrid> {
        self.grid.as_ref()
    }
}
