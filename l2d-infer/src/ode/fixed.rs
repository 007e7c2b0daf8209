//! Solvers with a fixed grid of times, and the budgets of evaluations they can meet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::tableau::{self, Tableau};

/// An explicit Runge-Kutta solver that takes one step from each grid time to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// One evaluation a step, order 1.
    Euler,
    /// Two evaluations a step, order 2; never evaluates the right end of a step. The paper's default.
    #[default]
    Midpoint,
    /// Two evaluations a step, order 2.
    Heun2,
    /// Three evaluations a step, order 3.
    Heun3,
    /// Four evaluations a step, order 4: the 3/8 rule, as torchdiffeq's `rk4`.
    Rk4,
    /// Four evaluations a step, order 4: the classic rule.
    Rk4Classic,
}

impl Solver {
    /// Every solver.
    pub const ALL: [Self; 6] = [Self::Euler, Self::Midpoint, Self::Heun2, Self::Heun3, Self::Rk4, Self::Rk4Classic];

    /// Its coefficients.
    pub fn tableau(self) -> &'static Tableau {
        match self {
            Self::Euler => &tableau::EULER,
            Self::Midpoint => &tableau::MIDPOINT,
            Self::Heun2 => &tableau::HEUN2,
            Self::Heun3 => &tableau::HEUN3,
            Self::Rk4 => &tableau::RK4_THREE_EIGHTHS,
            Self::Rk4Classic => &tableau::RK4_CLASSIC,
        }
    }

    /// The name used in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Midpoint => "midpoint",
            Self::Heun2 => "heun2",
            Self::Heun3 => "heun3",
            Self::Rk4 => "rk4",
            Self::Rk4Classic => "rk4_classic",
        }
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Solver {
    type Err = GridError;

    fn from_str(name: &str) -> Result<Self, GridError> {
        Self::ALL
            .into_iter()
            .find(|solver| solver.name() == name)
            .ok_or_else(|| GridError::UnknownSolver { name: name.to_string() })
    }
}

/// A grid that cannot be laid.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GridError {
    /// No solver has this name.
    #[error(
        "no solver is called `{name}` (there are: euler, midpoint, heun2, heun3, rk4, rk4_classic; adaptive: fehlberg2, \
         adaptive_heun, bosh3, dopri5)"
    )]
    UnknownSolver {
        /// The name given.
        name: String,
    },
    /// A budget that is no whole number of steps plus the last evaluation.
    #[error(
        "{solver} cannot spend exactly {evaluations} evaluations: it takes {stages} a step and one more at the end; the \
         nearest budgets are {}", .nearest.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(" and ")
    )]
    Budget {
        /// The solver.
        solver: Solver,
        /// The budget asked for.
        evaluations: usize,
        /// Evaluations a step.
        stages: usize,
        /// The one or two budgets nearest to it.
        nearest: Vec<usize>,
    },
    /// A budget no decoder should be asked for: a grid that fine has no distinct f32 times.
    #[error("{evaluations} evaluations are more than the {limit} this decoder takes for one token")]
    TooMany {
        /// The budget asked for.
        evaluations: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// A grid needs two ends.
    #[error("a grid needs at least 2 points, {points} given")]
    Points {
        /// The number given.
        points: usize,
    },
    /// A number that steers an adaptive solver is out of range.
    #[error("{name} must be a finite number above 0, not {value}")]
    Tolerance {
        /// Which.
        name: &'static str,
        /// The number given.
        value: f64,
    },
    /// The final time is outside the diffusion.
    #[error("the final time must lie in (0, 1], not {final_t}")]
    FinalTime {
        /// The time given.
        final_t: f64,
    },
}

/// Above this the f32 grid times of neighbouring points start to coincide in their last digits.
const MAX_EVALUATIONS: usize = 1 << 16;

/// A solver on a uniform grid of times from 0 to a final time `T`.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedGrid {
    solver: Solver,
    times: Vec<f64>,
}

impl FixedGrid {
    /// A grid of `points` uniform times on `[0, final_t]`: an f32 linspace promoted to f64, as the reference lays it.
    ///
    /// # Errors
    /// Fewer than two points, more than 65,536, or a final time outside `(0, 1]`.
    pub fn new(solver: Solver, points: usize, final_t: f64) -> Result<Self, GridError> {
        if points < 2 {
            return Err(GridError::Points { points });
        }
        if points > MAX_EVALUATIONS {
            return Err(GridError::TooMany { evaluations: points, limit: MAX_EVALUATIONS });
        }
        if !(final_t > 0.0 && final_t <= 1.0 && final_t as f32 > 0.0) {
            return Err(GridError::FinalTime { final_t });
        }
        Ok(Self { solver, times: linspace_f32(final_t as f32, points) })
    }

    /// The grid that spends exactly `evaluations` evaluations for one token, the closing one at `(x_T, T)` included;
    /// `None` for 1, which is the plain LM and integrates nothing.
    ///
    /// # Errors
    /// [`GridError::Budget`] where the solver's steps do not add up to it; otherwise as [`FixedGrid::new`].
    pub fn for_evaluations(solver: Solver, evaluations: usize, final_t: f64) -> Result<Option<Self>, GridError> {
        let stages = solver.tableau().stages();
        if evaluations > MAX_EVALUATIONS {
            return Err(GridError::TooMany { evaluations, limit: MAX_EVALUATIONS });
        }
        if evaluations == 0 {
            return Err(GridError::Budget { solver, evaluations, stages, nearest: vec![1] });
        }
        let (steps, rest) = ((evaluations - 1) / stages, (evaluations - 1) % stages);
        if rest != 0 {
            let below = steps * stages + 1;
            return Err(GridError::Budget { solver, evaluations, stages, nearest: vec![below, below + stages] });
        }
        if steps == 0 {
            return if final_t > 0.0 && final_t <= 1.0 { Ok(None) } else { Err(GridError::FinalTime { final_t }) };
        }
        Self::new(solver, steps + 1, final_t).map(Some)
    }

    /// The solver.
    pub fn solver(&self) -> Solver {
        self.solver
    }

    /// The grid times, the first 0, the last `T`; at least two.
    pub fn times(&self) -> &[f64] {
        &self.times
    }

    /// `T`: where the closing evaluation takes place.
    pub fn final_t(&self) -> f64 {
        self.times[self.times.len() - 1]
    }

    /// Length of the last step.
    pub fn last_step(&self) -> f64 {
        self.final_t() - self.times[self.times.len() - 2]
    }

    /// The budget: slopes of all steps and the closing evaluation.
    pub fn evaluations(&self) -> usize {
        (self.times.len() - 1) * self.solver.tableau().stages() + 1
    }

    /// The times at which [`FixedGrid::integrate`] asks for a slope, in that order. Known before anything is integrated,
    /// so whatever depends on `t` alone can be computed beforehand.
    pub fn slope_times(&self) -> Vec<f64> {
        let nodes = self.solver.tableau().nodes;
        self.times
            .windows(2)
            .flat_map(|ends| nodes.iter().map(move |&node| stage_time(ends[0], ends[1], node)))
            .collect()
    }

    /// Integrates `dx/dt = slope(t, x)` from `x` at `t = 0` and returns the state at `T`.
    ///
    /// The state is any flat list of numbers, e.g. `[batch, d]` row by row; `slope` returns one number for each.
    ///
    /// # Errors
    /// The first error of `slope`.
    ///
    /// # Panics
    /// If `slope` returns another number of values than it was given.
    pub fn integrate<E>(
        &self,
        x: Vec<f64>,
        slope: impl FnMut(f64, &[f64]) -> Result<Vec<f64>, E>,
    ) -> Result<Vec<f64>, E> {
        self.integrate_with(x, slope, |_, _| ())
    }

    /// As [`FixedGrid::integrate`], and shows the state at every grid time, the first and the last included, to `visit`.
    ///
    /// # Errors
    /// The first error of `slope`.
    ///
    /// # Panics
    /// If `slope` returns another number of values than it was given.
    pub fn integrate_with<E>(
        &self,
        mut x: Vec<f64>,
        mut slope: impl FnMut(f64, &[f64]) -> Result<Vec<f64>, E>,
        mut visit: impl FnMut(f64, &[f64]),
    ) -> Result<Vec<f64>, E> {
        let tableau = self.solver.tableau();
        visit(self.times[0], &x);
        let mut slopes: Vec<Vec<f64>> = Vec::with_capacity(tableau.stages());
        for ends in self.times.windows(2) {
            let (start, end) = (ends[0], ends[1]);
            slopes.clear();
            for (&node, row) in tableau.nodes.iter().zip(tableau.coefficients) {
                let stage = advance(&x, end - start, row, &slopes);
                let k = slope(stage_time(start, end, node), &stage)?;
                assert_eq!(k.len(), x.len(), "a slope has one value for each of the state");
                slopes.push(k);
            }
            x = advance(&x, end - start, tableau.weights, &slopes);
            visit(end, &x);
        }
        Ok(x)
    }
}

/// A node of 1 is the right end itself: `start + (end - start)` may miss it by a rounding error, and whether `t` has
/// reached 1 decides whether the velocity is zero. Like the grid, times within a step are f32 in the reference.
fn stage_time(start: f64, end: f64, node: f64) -> f64 {
    if node == 1.0 { end } else { f64::from(start as f32 + (end as f32 - start as f32) * node as f32) }
}

/// `x + step * sum_i weights_i slopes_i`.
fn advance(x: &[f64], step: f64, weights: &[f64], slopes: &[Vec<f64>]) -> Vec<f64> {
    let mut next = x.to_vec();
    for (&weight, slope) in weights.iter().zip(slopes).filter(|(weight, _)| **weight != 0.0) {
        for (value, k) in next.iter_mut().zip(slope) {
            *value += step * weight * k;
        }
    }
    next
}

/// `torch.linspace(0, end, points, dtype=float32)`, promoted: PyTorch counts the second half back from the end, so the
/// last time is `end` itself, and compilers contract that half to fused multiply-adds.
fn linspace_f32(end: f32, points: usize) -> Vec<f64> {
    let step = end / (points - 1) as f32;
    let time = |i: usize| if i < points / 2 { i as f32 * step } else { (-step).mul_add((points - 1 - i) as f32, end) };
    (0..points).map(|i| f64::from(time(i))).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// `dx/dt = 6 cos(6 t) x`, whose solution from 1 is `exp(sin(6 t))`: it depends on `t` explicitly, so wrong nodes
    /// show, and its errors stay far above the rounding of f32 times.
    fn largest_error(solver: Solver, points: usize) -> f64 {
        let grid = FixedGrid::new(solver, points, 1.0).unwrap();
        let slope = |t: f64, x: &[f64]| Ok::<_, Infallible>(vec![6.0 * (6.0 * t).cos() * x[0]]);
        let mut largest = 0.0f64;
        grid.integrate_with(vec![1.0], slope, |t, x| largest = largest.max((x[0] - (6.0 * t).sin().exp()).abs()))
            .unwrap();
        largest
    }

    #[test]
    fn every_solver_converges_with_its_order() {
        for solver in Solver::ALL {
            // The slope of a line through (ln h, ln error) is the observed order.
            let points: Vec<(f64, f64)> = [33usize, 65, 129, 257]
                .iter()
                .map(|&n| ((1.0 / (n - 1) as f64).ln(), largest_error(solver, n).ln()))
                .collect();
            let count = points.len() as f64;
            let (mean_h, mean_e) = points.iter().fold((0.0, 0.0), |(h, e), p| (h + p.0 / count, e + p.1 / count));
            let covariance: f64 = points.iter().map(|(h, e)| (h - mean_h) * (e - mean_e)).sum();
            let variance: f64 = points.iter().map(|(h, _)| (h - mean_h).powi(2)).sum();
            let observed = covariance / variance;
            let order = solver.tableau().order() as f64;
            assert!((observed - order).abs() < 0.25, "{solver}: observed order {observed}, expected {order}");
        }
    }

    #[test]
    fn slope_times_are_those_of_the_calls() {
        for solver in Solver::ALL {
            for final_t in [1.0, 0.99, 0.37] {
                let grid = FixedGrid::new(solver, 8, final_t).unwrap();
                let mut called = Vec::new();
                let slope = |t: f64, x: &[f64]| {
                    called.push(t);
                    Ok::<_, Infallible>(vec![0.0; x.len()])
                };
                grid.integrate(vec![0.0; 3], slope).unwrap();
                assert_eq!(called, grid.slope_times());
                assert_eq!(called.len() + 1, grid.evaluations());
                assert_eq!(called[0], 0.0);
                assert_eq!(grid.final_t(), f64::from(final_t as f32));
                assert!(called.iter().all(|&t| t <= grid.final_t()));
            }
        }
    }

    #[test]
    fn budgets_become_grids_or_say_what_would_fit() {
        let points = |solver, n| FixedGrid::for_evaluations(solver, n, 1.0).unwrap().unwrap().times().len();
        assert_eq!(points(Solver::Euler, 15), 15);
        assert_eq!(points(Solver::Midpoint, 15), 8);
        assert_eq!(points(Solver::Midpoint, 3), 2);
        assert_eq!(points(Solver::Midpoint, 127), 64);
        assert_eq!(points(Solver::Heun3, 13), 5);
        assert_eq!(points(Solver::Rk4, 17), 5);
        for solver in Solver::ALL {
            assert_eq!(FixedGrid::for_evaluations(solver, 1, 1.0), Ok(None));
            for n in 2..200 {
                match FixedGrid::for_evaluations(solver, n, 1.0) {
                    Ok(grid) => assert_eq!(grid.unwrap().evaluations(), n),
                    Err(GridError::Budget { nearest, .. }) => {
                        assert!(nearest.iter().all(|&n| FixedGrid::for_evaluations(solver, n, 1.0).is_ok()));
                        assert!(nearest[0] < n && n < nearest[1]);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        let message = FixedGrid::for_evaluations(Solver::Midpoint, 8, 1.0).unwrap_err().to_string();
        assert!(message.contains("midpoint") && message.contains("7 and 9"), "{message}");
        assert!(FixedGrid::for_evaluations(Solver::Midpoint, 0, 1.0).unwrap_err().to_string().contains("1"));
        assert!(matches!(FixedGrid::for_evaluations(Solver::Euler, usize::MAX, 1.0), Err(GridError::TooMany { .. })));
        for final_t in [0.0, -1.0, 1.5, f64::NAN, 1e-60] {
            assert!(matches!(FixedGrid::new(Solver::Euler, 4, final_t), Err(GridError::FinalTime { .. })));
        }
    }

    #[test]
    fn an_error_of_the_slope_ends_the_integration() {
        let grid = FixedGrid::new(Solver::Rk4, 5, 1.0).unwrap();
        let mut calls = 0;
        let outcome = grid.integrate(vec![0.0], |_, x| {
            calls += 1;
            if calls == 3 { Err("lost") } else { Ok(x.to_vec()) }
        });
        assert_eq!((outcome, calls), (Err("lost"), 3));
    }

    #[test]
    fn names_are_read_back() {
        for solver in Solver::ALL {
            assert_eq!(solver.name().parse(), Ok(solver));
        }
        assert!("dopri".parse::<Solver>().unwrap_err().to_string().contains("midpoint"));
    }
}
