//! Solvers that choose their steps by the error they estimate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::fixed::GridError;
use super::tableau::{self, EmbeddedTableau};

/// An explicit Runge-Kutta pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdaptiveSolver {
    /// Fehlberg 2(1), three stages.
    Fehlberg2,
    /// Heun 2(1), two stages.
    AdaptiveHeun,
    /// Bogacki-Shampine 3(2), four stages.
    Bosh3,
    /// Dormand-Prince 5(4), seven stages.
    Dopri5,
}

impl AdaptiveSolver {
    /// Every solver.
    pub const ALL: [Self; 4] = [Self::Fehlberg2, Self::AdaptiveHeun, Self::Bosh3, Self::Dopri5];

    /// Its coefficients.
    pub fn tableau(self) -> &'static EmbeddedTableau {
        match self {
            Self::Fehlberg2 => &tableau::FEHLBERG2,
            Self::AdaptiveHeun => &tableau::ADAPTIVE_HEUN,
            Self::Bosh3 => &tableau::BOGACKI_SHAMPINE3,
            Self::Dopri5 => &tableau::DORMAND_PRINCE5,
        }
    }

    /// The name used in configs and on the command line; torchdiffeq's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fehlberg2 => "fehlberg2",
            Self::AdaptiveHeun => "adaptive_heun",
            Self::Bosh3 => "bosh3",
            Self::Dopri5 => "dopri5",
        }
    }
}

impl fmt::Display for AdaptiveSolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AdaptiveSolver {
    type Err = GridError;

    fn from_str(name: &str) -> Result<Self, GridError> {
        let found = Self::ALL.into_iter().find(|solver| solver.name() == name);
        found.ok_or_else(|| GridError::UnknownSolver { name: name.to_string() })
    }
}

/// How steps are chosen. The defaults are the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveParams {
    /// Absolute error a step may make.
    pub atol: f64,
    /// Error a step may make relative to the state.
    pub rtol: f64,
    /// Length of the first step tried; `None` guesses one from two slopes.
    pub first_step: Option<f64>,
    /// Slopes one sequence may ask for; more are an error.
    pub max_evaluations: usize,
}

impl Default for AdaptiveParams {
    fn default() -> Self {
        Self { atol: 1e-4, rtol: 1e-4, first_step: Some(0.05), max_evaluations: 1_000 }
    }
}

/// Where an integration ends.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// At this time exactly: the last step is shortened to it, and no slope is asked for beyond.
    Clip(f64),
    /// At the last of these times, read off a step that goes past it: the states at the times are those of a quartic
    /// through both ends, both end slopes and the middle of a step. As torchdiffeq does it.
    Interpolate(Vec<f64>),
}

/// An adaptive solver, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Adaptive {
    solver: AdaptiveSolver,
    params: AdaptiveParams,
    end: End,
}

/// What an integration found.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// The states at the end, system by system.
    pub x: Vec<f64>,
    /// Slopes each system asked for.
    pub evaluations: Vec<usize>,
}

/// An integration that did not reach its end.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum IntegrationError<E> {
    /// The slope's own error.
    #[error(transparent)]
    Slope(E),
    /// The solver got no further.
    #[error(transparent)]
    Failed(Failure),
}

/// Why a solver got no further.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Steps became too short to move on.
    #[error("the adaptive solver's step vanished at t = {t}: raise atol and rtol, or end before t = 1")]
    Underflow {
        /// Which system.
        system: usize,
        /// Where.
        t: f64,
    },
    /// Too many slopes.
    #[error(
        "the adaptive solver spent {limit} evaluations and came to t = {t}: raise atol and rtol, end before t = 1, take the \
         expectation for the velocity (one token's jumps to another's), or allow more"
    )]
    TooMany {
        /// Which system.
        system: usize,
        /// Where.
        t: f64,
        /// The limit.
        limit: usize,
    },
    /// NaN or infinity.
    #[error("the velocity is not finite near t = {t}: check the weights")]
    NotFinite {
        /// Which system.
        system: usize,
        /// Where.
        t: f64,
    },
}

impl Failure {
    /// The system that got no further.
    pub fn system(&self) -> usize {
        match *self {
            Self::Underflow { system, .. } | Self::TooMany { system, .. } | Self::NotFinite { system, .. } => system,
        }
    }
}

/// A step is tried at this part of the length that its predecessor's error suggests.
const SAFETY: f64 = 0.9;
const MOST_GROWTH: f64 = 10.0;
const MOST_SHRINKING: f64 = 0.2;

/// A system on its way.
struct System {
    /// Its number.
    number: usize,
    t: f64,
    step: f64,
    x: Vec<f64>,
    /// The last stage of the step that led here: the slope at `(t, x)`, or for a tableau without that property one near it.
    slope: Vec<f64>,
    evaluations: usize,
    /// The longest last step that may be tried, once one that ended at `T` was rejected.
    last_step: f64,
    /// The next grid time to be read off.
    next_time: usize,
}

impl Adaptive {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`GridError::Tolerance`] for a tolerance or first step that is not a finite number above 0, or a limit of 0;
    /// [`GridError::FinalTime`] for an end outside `(0, 1]`; [`GridError::Points`] for a grid of fewer than two times.
    pub fn new(solver: AdaptiveSolver, params: AdaptiveParams, end: End) -> Result<Self, GridError> {
        let positive = |name: &'static str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(GridError::Tolerance { name, value }) }
        };
        positive("atol", params.atol)?;
        positive("rtol", params.rtol)?;
        positive("first step", params.first_step.unwrap_or(1.0))?;
        positive("limit of evaluations", params.max_evaluations as f64)?;
        let (last, points) = match &end {
            End::Clip(last) => (*last, 2),
            End::Interpolate(times) => (times.last().copied().unwrap_or(0.0), times.len()),
        };
        if points < 2 {
            return Err(GridError::Points { points });
        }
        if !(last > 0.0 && last <= 1.0) {
            return Err(GridError::FinalTime { final_t: last });
        }
        Ok(Self { solver, params, end })
    }

    /// The solver.
    pub fn solver(&self) -> AdaptiveSolver {
        self.solver
    }

    /// What it was made from.
    pub fn params(&self) -> AdaptiveParams {
        self.params
    }

    /// `T`.
    pub fn final_t(&self) -> f64 {
        match &self.end {
            End::Clip(last) => *last,
            End::Interpolate(times) => times[times.len() - 1],
        }
    }

    /// Integrates `dx/dt = slope(t, x)` from `x` at `t = 0`: systems of `dim` numbers each, one after the other.
    ///
    /// Every system has its own steps, chosen by the root mean square of its own error. Those that have not ended share
    /// the calls of `slope(systems, times, states)`, one time and `dim` numbers for each; a system's result does not depend
    /// on the others. Handing several rows over as one system gives them one error and one step. `visit(system, t, x)` sees
    /// the states at the ends of accepted steps, the start included, or at the grid times.
    ///
    /// # Errors
    /// [`IntegrationError`].
    ///
    /// # Panics
    /// If `x` is not whole systems or `slope` returns another number of values than it was given.
    pub fn integrate<E>(
        &self,
        x: Vec<f64>,
        dim: usize,
        mut slope: impl FnMut(&[usize], &[f64], &[f64]) -> Result<Vec<f64>, E>,
        mut visit: impl FnMut(usize, f64, &[f64]),
    ) -> Result<Solution, IntegrationError<E>> {
        assert!(dim > 0 && x.len().is_multiple_of(dim), "whole systems of {dim} numbers");
        let mut systems: Vec<System> = x
            .chunks_exact(dim)
            .enumerate()
            .map(|(number, x)| System {
                number,
                t: 0.0,
                step: 0.0,
                x: x.to_vec(),
                slope: Vec::new(),
                evaluations: 0,
                last_step: f64::INFINITY,
                next_time: 1,
            })
            .collect();
        let mut solution = Solution { evaluations: vec![0; systems.len()], x };
        systems.iter().for_each(|system| visit(system.number, 0.0, &system.x));
        let starts: Vec<f64> = systems.iter().flat_map(|system| system.x.clone()).collect();
        let slopes = self.ask(&mut systems, &vec![0.0; solution.evaluations.len()], &starts, &mut slope)?;
        for (system, k) in systems.iter_mut().zip(slopes.chunks_exact(dim)) {
            system.slope = k.to_vec();
        }
        self.first_steps(&mut systems, dim, &mut slope)?;

        let embedded = self.solver.tableau();
        let stages = embedded.tableau.stages();
        while !systems.is_empty() {
            let steps: Vec<f64> = systems.iter().map(|system| self.length(system)).collect::<Result<_, _>>()?;
            let mut slopes: Vec<Vec<Vec<f64>>> = systems.iter().map(|system| vec![system.slope.clone()]).collect();
            for stage in 1..stages {
                let row = embedded.tableau.coefficients[stage];
                let times: Vec<f64> = systems
                    .iter()
                    .zip(&steps)
                    .map(|(system, &step)| self.stage_time(system.t, step, embedded.tableau.nodes[stage]))
                    .collect();
                let states: Vec<f64> = systems
                    .iter()
                    .zip(&steps)
                    .zip(&slopes)
                    .flat_map(|((system, &step), slopes)| combined(&system.x, step, row, slopes))
                    .collect();
                let found = self.ask(&mut systems, &times, &states, &mut slope)?;
                for (slopes, k) in slopes.iter_mut().zip(found.chunks_exact(dim)) {
                    slopes.push(k.to_vec());
                }
            }
            for ((system, step), slopes) in systems.iter_mut().zip(steps).zip(slopes) {
                self.judge(system, step, slopes, &mut visit)?;
            }
            systems.retain(|system| {
                let ended = match &self.end {
                    End::Clip(last) => system.t >= *last,
                    End::Interpolate(times) => system.next_time == times.len(),
                };
                if ended {
                    solution.x[system.number * dim..(system.number + 1) * dim].copy_from_slice(&system.x);
                    solution.evaluations[system.number] = system.evaluations;
                }
                !ended
            });
        }
        Ok(solution)
    }

    /// Slopes for all systems that have not ended.
    fn ask<E>(
        &self,
        systems: &mut [System],
        times: &[f64],
        states: &[f64],
        slope: &mut impl FnMut(&[usize], &[f64], &[f64]) -> Result<Vec<f64>, E>,
    ) -> Result<Vec<f64>, IntegrationError<E>> {
        let limit = self.params.max_evaluations;
        if let Some(system) = systems.iter().find(|system| system.evaluations >= limit) {
            return Err(IntegrationError::Failed(Failure::TooMany { system: system.number, t: system.t, limit }));
        }
        let numbers: Vec<usize> = systems.iter().map(|system| system.number).collect();
        let found = slope(&numbers, times, states).map_err(IntegrationError::Slope)?;
        assert_eq!(found.len(), states.len(), "a slope has one value for each of the state");
        systems.iter_mut().for_each(|system| system.evaluations += 1);
        Ok(found)
    }

    /// The first step of every system: the one given, or Hairer, Norsett and Wanner's guess (section II.4) as torchdiffeq
    /// computes it.
    fn first_steps<E>(
        &self,
        systems: &mut [System],
        dim: usize,
        slope: &mut impl FnMut(&[usize], &[f64], &[f64]) -> Result<Vec<f64>, E>,
    ) -> Result<(), IntegrationError<E>> {
        if let Some(step) = self.params.first_step {
            systems.iter_mut().for_each(|system| system.step = step);
            return Ok(());
        }
        let scaled = |values: &mut dyn Iterator<Item = f64>, x: &[f64]| -> f64 {
            let squares = values.zip(x).map(|(v, x)| (v / (self.params.atol + self.params.rtol * x.abs())).powi(2));
            (squares.sum::<f64>() / x.len() as f64).sqrt()
        };
        let guesses: Vec<(f64, f64)> = systems
            .iter()
            .map(|system| {
                let size = scaled(&mut system.x.iter().copied(), &system.x);
                let speed = scaled(&mut system.slope.iter().copied(), &system.x);
                (if size < 1e-5 || speed < 1e-5 { 1e-6 } else { 0.01 * size / speed }, speed)
            })
            .collect();
        // Where steps are clipped, no slope is asked for beyond the end.
        let within = |step: f64| if let End::Clip(last) = self.end { step.min(last) } else { step };
        let guesses: Vec<(f64, f64)> = guesses.into_iter().map(|(step, speed)| (within(step), speed)).collect();
        let times: Vec<f64> = guesses.iter().map(|(step, _)| *step).collect();
        let states: Vec<f64> = systems
            .iter()
            .zip(&times)
            .flat_map(|(system, step)| {
                system.x.iter().zip(&system.slope).map(|(x, v)| x + step * v).collect::<Vec<_>>()
            })
            .collect();
        let found = self.ask(systems, &times, &states, slope)?;
        let order = self.solver.tableau().order() as f64;
        for ((system, (step, speed)), k) in systems.iter_mut().zip(guesses).zip(found.chunks_exact(dim)) {
            let change = scaled(&mut k.iter().zip(&system.slope).map(|(a, b)| a - b), &system.x) / step;
            let second = if speed <= 1e-15 && change <= 1e-15 {
                (step * 1e-3).max(1e-6)
            } else {
                (0.01 / speed.max(change)).powf(1.0 / order)
            };
            system.step = (100.0 * step).min(second);
        }
        Ok(())
    }

    /// The length of a system's next step.
    fn length<E>(&self, system: &System) -> Result<f64, IntegrationError<E>> {
        let mut step = system.step;
        if let End::Clip(last) = self.end {
            let left = last - system.t;
            // A step that would leave a sliver goes to the end.
            let reaches = step >= left || left - step < 1e-3 * step;
            if reaches && left > 1.001 * system.last_step {
                // A step to the end was rejected: go to where one of the length that may do begins. (At the end of the
                // diffusion the slope jumps to zero, and whatever step ends there has to be short.)
                step = left - system.last_step;
            } else if reaches {
                step = left;
            }
        }
        let moves = system.t + step > system.t;
        if moves {
            Ok(step)
        } else {
            Err(IntegrationError::Failed(Failure::Underflow { system: system.number, t: system.t }))
        }
    }

    fn stage_time(&self, t: f64, step: f64, node: f64) -> f64 {
        match &self.end {
            // As torchdiffeq: just before the end of the step.
            End::Interpolate(_) if node == 1.0 => (t + step).next_down(),
            End::Interpolate(_) => t + step * node,
            End::Clip(last) => (t + step * node).min(*last),
        }
    }

    /// Accepts a step or not, and chooses the next.
    fn judge<E>(
        &self,
        system: &mut System,
        step: f64,
        mut slopes: Vec<Vec<f64>>,
        visit: &mut impl FnMut(usize, f64, &[f64]),
    ) -> Result<(), IntegrationError<E>> {
        let embedded = self.solver.tableau();
        let next = combined(&system.x, step, embedded.tableau.weights, &slopes);
        let zero = vec![0.0; next.len()];
        let error = combined(&zero, step, embedded.error, &slopes);
        let AdaptiveParams { atol, rtol, .. } = self.params;
        let squares = error
            .iter()
            .zip(system.x.iter().zip(&next))
            .map(|(error, (before, after))| (error / (atol + rtol * before.abs().max(after.abs()))).powi(2));
        let ratio = (squares.sum::<f64>() / next.len() as f64).sqrt();
        if !next.iter().chain(&error).all(|x| x.is_finite()) || ratio.is_nan() {
            return Err(IntegrationError::Failed(Failure::NotFinite { system: system.number, t: system.t }));
        }
        let factor = if ratio == 0.0 {
            MOST_GROWTH
        } else {
            let least = if ratio < 1.0 { 1.0 } else { MOST_SHRINKING };
            (SAFETY / ratio.powf(1.0 / embedded.order() as f64)).max(least).min(MOST_GROWTH)
        };
        let to_the_end = matches!(self.end, End::Clip(last) if system.t + step >= last);
        if ratio > 1.0 {
            if to_the_end {
                system.last_step = step * factor;
            } else {
                system.step = step * factor;
            }
            return Ok(());
        }
        let start = system.t;
        system.t = match self.end {
            End::Clip(last) if to_the_end => last,
            _ => start + step,
        };
        match &self.end {
            End::Clip(_) => {
                system.x = next;
                visit(system.number, system.t, &system.x);
            }
            End::Interpolate(times) => {
                let before = std::mem::replace(&mut system.x, next);
                let middle = combined(&before, step, embedded.midpoint, &slopes);
                let last = &slopes[slopes.len() - 1];
                while times.get(system.next_time).is_some_and(|&time| time <= system.t) {
                    let time = times[system.next_time];
                    let part = (time - start) / step;
                    let state = quartic(&before, &system.x, &middle, &slopes[0], last, step, part);
                    visit(system.number, time, &state);
                    system.next_time += 1;
                    if system.next_time == times.len() {
                        system.x = state;
                    }
                }
            }
        }
        if let Some(last) = slopes.pop() {
            system.slope = last;
        }
        system.step = step * factor;
        Ok(())
    }
}

/// `x + step * sum_i weights_i slopes_i`.
fn combined(x: &[f64], step: f64, weights: &[f64], slopes: &[Vec<f64>]) -> Vec<f64> {
    let mut next = x.to_vec();
    for (&weight, slope) in weights.iter().zip(slopes).filter(|(weight, _)| **weight != 0.0) {
        for (value, k) in next.iter_mut().zip(slope) {
            *value += step * weight * k;
        }
    }
    next
}

/// The quartic through both ends of a step, both end slopes and its middle, at `part` of the step.
fn quartic(y0: &[f64], y1: &[f64], middle: &[f64], v0: &[f64], v1: &[f64], h: f64, part: f64) -> Vec<f64> {
    (0..y0.len())
        .map(|i| {
            let (y0, y1, m, v0, v1) = (y0[i], y1[i], middle[i], v0[i], v1[i]);
            let a = 2.0 * h * (v1 - v0) - 8.0 * (y1 + y0) + 16.0 * m;
            let b = h * (5.0 * v0 - 3.0 * v1) + 18.0 * y0 + 14.0 * y1 - 32.0 * m;
            let c = h * (v1 - 4.0 * v0) - 11.0 * y0 - 5.0 * y1 + 16.0 * m;
            y0 + part * (h * v0 + part * (c + part * (b + part * a)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn solve(solver: AdaptiveSolver, params: AdaptiveParams, last: f64, x: Vec<f64>, dim: usize) -> Solution {
        // `exp(sin(6 t))` times the start; the second number of a system turns faster.
        let slope = |_: &[usize], times: &[f64], x: &[f64]| {
            let of = |i: usize| {
                let (t, w) = (times[i / dim], 6.0 + (i % dim) as f64);
                w * (w * t).cos() * x[i]
            };
            Ok::<_, Infallible>((0..x.len()).map(of).collect())
        };
        let adaptive = Adaptive::new(solver, params, End::Clip(last)).unwrap();
        adaptive.integrate(x, dim, slope, |_, _, _| ()).unwrap()
    }

    #[test]
    fn errors_follow_the_tolerance_and_work_follows_the_order() {
        for solver in AdaptiveSolver::ALL {
            let mut work = Vec::new();
            for tolerance in [1e-3, 1e-5, 1e-7] {
                let params =
                    AdaptiveParams { atol: tolerance, rtol: tolerance, max_evaluations: 1 << 20, ..Default::default() };
                let solution = solve(solver, params, 1.0, vec![1.0], 1);
                let error = (solution.x[0] - 6f64.sin().exp()).abs();
                // Fehlberg's pair estimates no error of second order at all: 1/512 of the slopes' difference.
                let allowed = if solver == AdaptiveSolver::Fehlberg2 { 1e4 } else { 100.0 };
                assert!(error < allowed * tolerance, "{solver} {tolerance}: {error}");
                work.push(solution.evaluations[0] as f64);
            }
            // The error estimate of a step is of the embedded order + 1, so steps shrink with that root of the tolerance.
            let order = solver.tableau().embedded_order() as f64 + 1.0;
            let observed = 100f64.ln() / (work[2] / work[1]).ln();
            assert!((observed - order).abs() < 0.35 * order, "{solver}: {observed} for {order}, {work:?}");
        }
    }

    #[test]
    fn a_system_does_not_notice_the_others() {
        for solver in AdaptiveSolver::ALL {
            for first_step in [Some(0.05), None] {
                let params = AdaptiveParams { first_step, ..Default::default() };
                let starts = [[1.0, 0.5], [300.0, -2.0], [0.0, 1e-6]];
                let together = solve(solver, params, 0.9, starts.concat(), 2);
                assert!(together.evaluations[0] != together.evaluations[1], "{:?}", together.evaluations);
                for (i, start) in starts.iter().enumerate() {
                    let alone = solve(solver, params, 0.9, start.to_vec(), 2);
                    assert_eq!(alone.x, together.x[2 * i..2 * i + 2], "{solver}");
                    assert_eq!(alone.evaluations[0], together.evaluations[i]);
                }
            }
        }
    }

    #[test]
    fn a_slope_that_vanishes_at_the_end_is_met_in_few_steps() {
        // The diffusion's velocity towards one token: straight on, and zero at t = 1.
        let target = 12.0;
        for solver in AdaptiveSolver::ALL {
            let slope = |_: &[usize], t: &[f64], x: &[f64]| {
                assert!(t[0] <= 1.0);
                Ok::<_, Infallible>(vec![if t[0] >= 1.0 { 0.0 } else { (target - x[0]) / (1.0 - t[0]) }])
            };
            let adaptive = Adaptive::new(solver, AdaptiveParams::default(), End::Clip(1.0)).unwrap();
            let mut ends = Vec::new();
            let solution = adaptive.integrate(vec![-50.0], 1, slope, |_, t, _| ends.push(t)).unwrap();
            assert_eq!(ends.last(), Some(&1.0));
            assert!((solution.x[0] - target).abs() < 0.1, "{solver}: {}", solution.x[0]);
            assert!(solution.evaluations[0] < 200, "{solver}: {}", solution.evaluations[0]);
        }
    }

    #[test]
    fn a_rejected_step_that_nearly_reached_the_end_is_not_tried_again() {
        let target = 12.0;
        for solver in AdaptiveSolver::ALL {
            for i in 0..40 {
                // From steps that leave a sliver to steps that reach beyond.
                let first_step = Some(0.998 + 6e-5 * f64::from(i));
                let slope = |_: &[usize], t: &[f64], x: &[f64]| {
                    Ok::<_, Infallible>(vec![if t[0] >= 1.0 { 0.0 } else { (target - x[0]) / (1.0 - t[0]) }])
                };
                let params = AdaptiveParams { first_step, ..Default::default() };
                let adaptive = Adaptive::new(solver, params, End::Clip(1.0)).unwrap();
                let solution = adaptive.integrate(vec![-50.0], 1, slope, |_, _, _| ());
                let solution = solution.unwrap_or_else(|error| panic!("{solver} {first_step:?}: {error}"));
                assert!(solution.evaluations[0] < 200, "{solver} {first_step:?}: {}", solution.evaluations[0]);
            }
        }
    }

    #[test]
    fn tolerances_too_small_for_the_numbers_are_not_called_a_broken_slope() {
        let params = AdaptiveParams { atol: 1e-200, rtol: 1e-200, ..Default::default() };
        let adaptive = Adaptive::new(AdaptiveSolver::Dopri5, params, End::Clip(1.0)).unwrap();
        let slope = |_: &[usize], t: &[f64], _: &[f64]| Ok::<_, Infallible>(vec![(9.0 * t[0]).sin()]);
        let error = adaptive.integrate(vec![0.0], 1, slope, |_, _, _| ()).unwrap_err();
        let short = matches!(error, IntegrationError::Failed(Failure::Underflow { .. } | Failure::TooMany { .. }));
        assert!(short, "{error}");
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let make = |change: &dyn Fn(&mut AdaptiveParams)| {
            let mut params = AdaptiveParams::default();
            change(&mut params);
            Adaptive::new(AdaptiveSolver::Dopri5, params, End::Clip(1.0))
        };
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(make(&|p| p.atol = bad).unwrap_err().to_string().contains("atol"));
            assert!(make(&|p| p.rtol = bad).unwrap_err().to_string().contains("rtol"));
            assert!(make(&|p| p.first_step = Some(bad)).unwrap_err().to_string().contains("first step"));
        }
        assert!(make(&|p| p.max_evaluations = 0).is_err());
        let ends = [End::Clip(0.0), End::Clip(1.5), End::Clip(f64::NAN), End::Interpolate(vec![0.0])];
        for end in ends {
            assert!(Adaptive::new(AdaptiveSolver::Bosh3, AdaptiveParams::default(), end).is_err());
        }
        let few = make(&|p| p.max_evaluations = 20).unwrap();
        let busy = |_: &[usize], t: &[f64], _: &[f64]| Ok::<_, Infallible>(vec![(1e4 * t[0]).sin() * 1e4]);
        let error = few.integrate(vec![0.0], 1, busy, |_, _, _| ()).unwrap_err();
        assert!(matches!(error, IntegrationError::Failed(Failure::TooMany { system: 0, limit: 20, .. })), "{error}");
        let broken =
            |_: &[usize], t: &[f64], _: &[f64]| Ok::<_, Infallible>(vec![if t[0] > 0.02 { f64::NAN } else { 1.0 }]);
        let error = make(&|_| ()).unwrap().integrate(vec![0.0], 1, broken, |_, _, _| ()).unwrap_err();
        assert!(matches!(error, IntegrationError::Failed(Failure::NotFinite { .. })), "{error}");
        let failing = |_: &[usize], _: &[f64], _: &[f64]| Err("lost");
        let error = make(&|_| ()).unwrap().integrate(vec![0.0], 1, failing, |_, _, _| ()).unwrap_err();
        assert_eq!(error, IntegrationError::Slope("lost"));
        assert!("rk9".parse::<AdaptiveSolver>().is_err());
    }
}
