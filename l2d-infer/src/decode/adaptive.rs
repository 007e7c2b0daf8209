//! The diffusion of a token in steps that follow their own error.
//!
//! Every row has its own times, so what `(t, class)` does to the path is computed for each evaluation; the rest is as on a
//! grid. Rows that have not arrived share a forward pass, and none is the worse for its company.
//!
//! An error can only be estimated where the velocity is a function of state and time. A sampled velocity therefore draws
//! with one random number for the whole token ([`Noise::velocity_token`](super::Noise::velocity_token) with call 0), not
//! with a new one each time.

use std::ops::Range;

use burn::tensor::backend::Backend;
use l2d_core::lm::host_values;

use super::diffuser::{Conditions, Diffused, Diffuser, Guess, Interruption, Positions, pick_rows};
use super::noise::Lane;
use super::settings::ReferenceSteps;
use crate::error::{Error, Result};
use crate::ode::{Adaptive, IntegrationError};
use crate::sampler::argmax;
use crate::velocity::{COLDEST, Estimate};

/// A solver, and whether it goes as the reference's, all rows together.
#[derive(Debug)]
pub(super) struct AdaptiveCourse {
    pub(super) solver: Adaptive,
    pub(super) reference: Option<ReferenceSteps>,
}

/// What the integration found out on its way.
struct Tally {
    /// Evaluations of the diffusion path in which each row took part.
    evaluated: Vec<usize>,
    guesses: Vec<Vec<Guess>>,
}

impl<B: Backend> Diffuser<'_, B> {
    /// [`Diffuser::diffuse`] along an adaptive solver.
    pub(super) fn diffuse_adaptively(
        &self,
        course: &AdaptiveCourse,
        positions: &Positions<'_, B>,
        conditions: &Conditions<B>,
        x0: Vec<f64>,
        draw: &mut dyn FnMut(usize, usize, Lane, &[f32], f64) -> Result<usize>,
        visit: &mut dyn FnMut(Range<usize>, f64, &[f64]),
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Diffused<B>>> {
        let (rows, lanes, d) = (positions.hidden.dims()[0], conditions.lanes(), self.dim());
        let mut tally = Tally { evaluated: vec![0; rows], guesses: Vec::new() };
        tally.guesses.resize(if positions.guesses { rows } else { 0 }, Vec::new());
        // Where the steps are shared, the one system is all rows.
        let (dim, width) = if course.reference.is_some() { (rows * d, rows) } else { (d, 1) };
        let beyond = course.reference.is_some_and(|reference| reference.beyond_the_end);
        let slope = |systems: &[usize], times: &[f64], states: &[f64]| {
            if !go_on() {
                return Err(Interruption::Stopped);
            }
            let asked: Vec<usize> = systems.iter().flat_map(|system| system * width..(system + 1) * width).collect();
            let times: Vec<f64> = times.iter().flat_map(|&t| vec![t; width]).collect();
            let mut velocities = vec![0.0; states.len()];
            // At the start the base LM's logits serve, at the end the velocity is zero: neither needs the path.
            let between: Vec<usize> =
                (0..asked.len()).filter(|&i| times[i] > 0.0 && (times[i] < 1.0 || beyond)).collect();
            let start: Vec<usize> = (0..asked.len()).filter(|&i| times[i] == 0.0).collect();
            for (part, on_path) in [(start, false), (between, true)] {
                if part.is_empty() {
                    continue;
                }
                let numbers: Vec<usize> = part.iter().map(|&i| asked[i]).collect();
                let part_times: Vec<f64> = part.iter().map(|&i| times[i]).collect();
                let x: Vec<f64> = part.iter().flat_map(|&i| states[i * d..(i + 1) * d].to_vec()).collect();
                let logits = if on_path {
                    numbers.iter().for_each(|&row| tally.evaluated[row] += 1);
                    self.logits_at(positions, conditions, &numbers, &part_times, &x)
                } else {
                    let hidden = pick_rows(positions.hidden.clone(), numbers.iter().copied());
                    let logits = host_values(self.model.lm.logits(hidden));
                    let vocabulary = logits.len() / numbers.len();
                    logits.chunks_exact(vocabulary).flat_map(|row| row.repeat(lanes)).collect()
                };
                let vocabulary = logits.len() / (numbers.len() * lanes);
                for (((&row, &i), &t), (logits, x)) in numbers
                    .iter()
                    .zip(&part)
                    .zip(&part_times)
                    .zip(logits.chunks_exact(vocabulary * lanes).zip(x.chunks_exact(d)))
                {
                    let x1 = self.targets_of(row, t, lanes, logits, conditions.guided[row], draw, &mut tally)?;
                    let velocity = self.velocity_from(&x1, x, t, conditions.guided[row]);
                    velocities[i * d..(i + 1) * d].copy_from_slice(&velocity);
                }
            }
            Ok(velocities)
        };
        let visit = |system: usize, t: f64, x: &[f64]| visit(system * width..(system + 1) * width, t, x);
        let solution = match course.solver.integrate(x0, dim, slope, visit) {
            Ok(solution) => solution,
            Err(IntegrationError::Slope(Interruption::Stopped)) => return Ok(None),
            Err(IntegrationError::Slope(Interruption::Failed(error))) => return Err(error),
            Err(IntegrationError::Failed(failure)) => {
                return Err(Error::Integration(failure).in_row(failure.system() * width));
            }
        };
        if !go_on() {
            return Ok(None);
        }
        let plan = self.model.lm.plan_at(positions.cache, positions.positions);
        let times = vec![course.solver.final_t() as f32; rows];
        let closing = self.model.path.modulation(&times, Some(&conditions.classes));
        let x_t = self.tensor(&solution.x);
        let logits = self.model.logits(positions.cache, &plan, &closing, positions.hidden.clone(), x_t);
        let lanes_of = |row: usize| if conditions.guided[row] { 2 } else { 1 };
        Ok(Some(Diffused {
            x: solution.x,
            logits,
            evaluations: (0..rows).map(|row| solution.evaluations[row / width] + 1).collect(),
            passes: tally.evaluated.iter().enumerate().map(|(row, count)| count * lanes_of(row) + 1).collect(),
            rounds: tally.evaluated.iter().map(|count| count + 1).collect(),
            guesses: tally.guesses,
        }))
    }

    /// Logits of the joined model for some rows, each at its own time: `[rows, lanes, V]` flattened.
    fn logits_at(
        &self,
        positions: &Positions<'_, B>,
        conditions: &Conditions<B>,
        numbers: &[usize],
        times: &[f64],
        x: &[f64],
    ) -> Vec<f32> {
        let (rows, lanes, d) = (positions.hidden.dims()[0], conditions.lanes(), self.dim());
        // Over pages any rows may take part. In a dense batch every sequence has equally many: the rows that have arrived
        // stand in with something that is not read.
        let part: Vec<usize> = if positions.cache.is_paged() { numbers.to_vec() } else { (0..rows).collect() };
        let asked: Vec<Option<usize>> =
            part.iter().map(|row| numbers.iter().position(|number| number == row)).collect();
        let no_class = self.model.path.config.classes.len();
        let (mut at, mut classes, mut states, mut sources) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (&row, asked) in part.iter().zip(&asked) {
            for lane in 0..lanes {
                at.push(asked.map_or(times[0], |i| times[i]) as f32);
                classes.push(if lane == 0 { conditions.classes[row] } else { no_class });
                let i = asked.unwrap_or(0);
                states.extend_from_slice(&x[i * d..(i + 1) * d]);
                sources.push(row);
            }
        }
        let mut row = 0..;
        let repeated: Vec<Vec<usize>> = positions
            .positions
            .iter()
            .map(|at| {
                let rows = at.iter().zip(&mut row);
                rows.flat_map(|(&at, row)| vec![at; if part.contains(&row) { lanes } else { 0 }]).collect()
            })
            .collect();
        let plan = self.model.lm.plan_at(positions.cache, &repeated);
        let modulation = self.model.path.modulation(&at, Some(&classes));
        let hidden = pick_rows(positions.hidden.clone(), sources.into_iter());
        let x_t = self.tensor(&states);
        let logits = host_values(self.model.logits(positions.cache, &plan, &modulation, hidden, x_t));
        if part.len() == numbers.len() {
            return logits;
        }
        let width = logits.len() / part.len();
        let rows = logits.chunks_exact(width).zip(&asked).filter(|(_, asked)| asked.is_some());
        rows.flat_map(|(logits, _)| logits.to_vec()).collect()
    }

    /// `x1_hat` of one row from its logits `[lanes, V]`: `[lanes, d]` flattened.
    fn targets_of(
        &self,
        row: usize,
        t: f64,
        lanes: usize,
        logits: &[f32],
        guided: bool,
        draw: &mut dyn FnMut(usize, usize, Lane, &[f32], f64) -> Result<usize>,
        tally: &mut Tally,
    ) -> Result<Vec<f64>> {
        let estimate = self.estimate();
        let temperature = estimate.temperature(t);
        let vocabulary = logits.len() / lanes;
        let mut targets = Vec::with_capacity(lanes * self.dim());
        for (lane, logits) in logits.chunks_exact(vocabulary).enumerate() {
            let drawn = matches!(estimate, Estimate::Sampled { .. }) && temperature > COLDEST;
            let token = match (lane, drawn) {
                (1, _) if !guided => 0,
                (0, true) => draw(row, 0, Lane::Class, logits, temperature)?,
                (_, true) => draw(row, 0, Lane::NoClass, logits, temperature)?,
                (_, false) => argmax(logits).map_err(|error| error.in_row(row))?,
            };
            if let (0, Some(guesses)) = (lane, tally.guesses.get_mut(row)) {
                guesses.push(Guess { t, token: token as u32 });
            }
            let expected = matches!(estimate, Estimate::Expectation { .. }) && temperature > COLDEST;
            targets.extend(if expected && (lane == 0 || guided) {
                self.expected(temperature, logits)?
            } else {
                self.vocabulary_rows(&[token])
            });
        }
        Ok(targets)
    }
}
