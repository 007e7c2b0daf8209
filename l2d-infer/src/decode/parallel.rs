//! Parallel-in-time diffusion of one token (METHOD section 8.6).
//!
//! With the random numbers of every draw fixed beforehand, the token drawn at each slope call is a function of the state
//! there, and every state is a function of `x_0` and the tokens drawn before it. So the tokens of the calls that are left
//! are guessed, all states follow, and one forward pass evaluates many of them at once. The guesses up to the first wrong
//! one were right, and at that one the right token is known: at least one call is settled in each round. A pass over the
//! weights for a dozen rows costs far less than a dozen passes.

use std::convert::Infallible;
use std::sync::PoisonError;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use l2d_core::lm::host_values;

use super::course::{GridCourse, Where};
use super::diffuser::{Conditions, Diffused, Diffuser, Guess, Positions, pick_rows};
use super::noise::Lane;
use crate::error::{Error, Result};
use crate::sampler::argmax;
use crate::velocity::COLDEST;

/// How far one row has come.
struct Track {
    /// The token of each slope call, with the class and without: settled before `settled`, guessed from there on.
    tokens: Vec<[usize; 2]>,
    /// Calls whose tokens are those of a sequential decoder.
    settled: usize,
    /// Logits at `(x_T, T)`, once every call is settled and the closing evaluation was made.
    closing: Option<Vec<f32>>,
    rounds: usize,
    /// The latest logits; guesses are drawn from them when they are needed.
    newest: Vec<f32>,
    /// Calls whose tokens were drawn since `newest` came.
    guessed: usize,
}

/// How often guesses have held lately.
#[derive(Debug, Clone, Copy)]
pub(super) struct Luck {
    held: f64,
    checked: f64,
}

impl Default for Luck {
    fn default() -> Self {
        Self { held: 8.0, checked: 10.0 }
    }
}

impl Luck {
    /// Older guesses count for less.
    const MEMORY: f64 = 0.95;

    fn learn(&mut self, held: usize, checked: usize) {
        self.held = Self::MEMORY * self.held + held as f64;
        self.checked = Self::MEMORY * self.checked + checked as f64;
    }

    /// The number of evaluations of each row in one pass, at most `most`, that settles the most calls for its cost: `k` of
    /// them settle `1 + p + .. + p^(k-1)` calls, and each row of a pass costs `row_cost` of a pass with one.
    fn evaluations(self, rows: usize, row_cost: f64, most: usize) -> usize {
        let p = self.held / self.checked;
        let worth = |k: usize| {
            let settled: f64 = (0..k).map(|i| p.powi(i as i32)).sum();
            // Guessing has costs of its own: draws and states.
            let guessing = if k > 1 { 1.1 } else { 1.0 };
            settled / (guessing * (1.0 + row_cost * ((k * rows) as f64 - 1.0)))
        };
        (1..=most.max(1)).max_by(|&a, &b| worth(a).total_cmp(&worth(b)).then(b.cmp(&a))).unwrap_or(1)
    }
}

/// Something to evaluate: a slope call by its number, or the closing evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Evaluation {
    Call(usize),
    Closing,
}

impl<B: Backend> Diffuser<'_, B> {
    /// [`Diffuser::diffuse`] with at most `most` evaluations of each row in one forward pass. For estimates that are rows
    /// of the vocabulary alone.
    pub(super) fn diffuse_in_parallel(
        &self,
        course: &GridCourse<B>,
        most: usize,
        positions: &Positions<'_, B>,
        conditions: &Conditions<B>,
        x0: Vec<f64>,
        draw: &mut dyn FnMut(usize, usize, Lane, &[f32], f64) -> Result<usize>,
        visit: &mut dyn FnMut(f64, &[f64]),
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Diffused<B>>> {
        let (rows, lanes, d) = (positions.hidden.dims()[0], conditions.lanes(), self.dim());
        // As a sequential decoder would draw: `lane` is 1 for guidance's second velocity.
        let mut token = |row: usize, call: usize, lane: usize, logits: &[f32]| {
            match (lane, course.calls[call].temperature) {
                (1, _) if !conditions.guided[row] => Ok(0),
                (_, temperature) if temperature <= COLDEST => argmax(logits).map_err(|error| error.in_row(row)),
                (0, temperature) => draw(row, call, Lane::Class, logits, temperature),
                (_, temperature) => draw(row, call, Lane::NoClass, logits, temperature),
            }
            .and_then(|token| match token < logits.len() {
                true => Ok(token),
                false => Err(Error::parameter("drawn token", token, "in the vocabulary")),
            })
        };

        // The base LM's logits are those at t = 0, and the first guess everywhere.
        let base = host_values(self.model.lm.logits(positions.hidden.clone()));
        let vocabulary = base.len() / rows;
        let mut tracks = Vec::with_capacity(rows);
        for (row, logits) in base.chunks_exact(vocabulary).enumerate() {
            let mut tokens = vec![[0; 2]; course.calls.len()];
            let settled = course.costly(0);
            for (call, tokens) in tokens.iter_mut().enumerate().take(settled) {
                for (lane, guess) in tokens.iter_mut().enumerate().take(lanes) {
                    *guess = token(row, call, lane, logits)?;
                }
            }
            let newest = logits.to_vec();
            tracks.push(Track { tokens, settled, closing: None, rounds: 0, newest, guessed: settled });
        }

        while tracks.iter().any(|track| track.closing.is_none()) {
            if !go_on() {
                return Ok(None);
            }
            let open = tracks.iter().filter(|track| track.closing.is_none()).count();
            let luck = *course.luck.lock().unwrap_or_else(PoisonError::into_inner);
            let ahead = luck.evaluations(open * lanes, self.model.lm.row_cost(), most);
            let planned: Vec<Vec<Evaluation>> = tracks.iter().map(|track| next(course, track, ahead)).collect();
            for (row, (track, planned)) in tracks.iter_mut().zip(&planned).enumerate() {
                // What lies behind the last planned evaluation needs no guess yet.
                let end = match planned.last() {
                    Some(&Evaluation::Call(call)) => call + 1,
                    Some(Evaluation::Closing) => course.calls.len(),
                    None => 0,
                };
                for call in track.guessed..end {
                    for lane in 0..lanes {
                        // Logits of a state that no sequential decoder meets may be no distribution: any guess will do.
                        let guess = token(row, call, lane, &track.newest);
                        track.tokens[call][lane] = guess.unwrap_or(track.tokens[call][lane]);
                    }
                }
                track.guessed = track.guessed.max(end);
            }
            // Over pages each row takes part with as many evaluations as it has. In a dense batch all take part with equally
            // many, and what is too much repeats the last and is not read.
            let longest = planned.iter().map(Vec::len).max().unwrap_or(0);
            let widths: Vec<usize> = planned
                .iter()
                .map(|planned| if positions.cache.is_paged() { planned.len() } else { longest })
                .collect();
            let firsts: Vec<usize> = widths
                .iter()
                .scan(0, |next, width| {
                    *next += width;
                    Some(*next - width)
                })
                .collect();
            let x1 = self.targets(&tracks, lanes);
            let (mut states, mut modulations) = (Vec::new(), Vec::new());
            for (row, planned) in planned.iter().enumerate() {
                let part = row * course.calls.len() * lanes * d..(row + 1) * course.calls.len() * lanes * d;
                let (at_call, at_end) =
                    self.states(course, x0[row * d..(row + 1) * d].to_vec(), &x1[part], conditions.guided[row]);
                for slot in 0..widths[row] {
                    let (state, time) = match planned.get(slot).or(planned.last()) {
                        Some(&Evaluation::Call(call)) => match course.calls[call].at {
                            Where::Between(time) => (&at_call[call], Some(time)),
                            Where::Start | Where::End => unreachable!("not planned"),
                        },
                        Some(Evaluation::Closing) | None => (&at_end, None),
                    };
                    for lane in 0..lanes {
                        states.extend_from_slice(state);
                        modulations.push(course.modulation_row(time, conditions.classes[row], lane));
                    }
                }
            }
            let mut row = 0..;
            let repeated: Vec<Vec<usize>> = positions
                .positions
                .iter()
                .map(|at| at.iter().zip(&mut row).flat_map(|(&at, row)| vec![at; widths[row] * lanes]).collect())
                .collect();
            let lm = &self.model.lm;
            let plan = lm.plan_at(positions.cache, &repeated);
            let x_t = self.tensor(&states);
            let sources = widths.iter().enumerate().flat_map(|(row, width)| vec![row; width * lanes]);
            let hidden = pick_rows(positions.hidden.clone(), sources);
            let modulation = course.modulation.rows(&modulations);
            let logits = host_values(self.model.logits(positions.cache, &plan, &modulation, hidden, x_t));

            for (row, (track, planned)) in tracks.iter_mut().zip(&planned).enumerate() {
                if planned.is_empty() {
                    continue;
                }
                track.rounds += 1;
                let mut right = true;
                let (mut held, mut checked, mut newest) = (0, 0, None);
                for (slot, &evaluation) in planned.iter().enumerate() {
                    let from = (firsts[row] + slot) * lanes;
                    let of_lane = |lane: usize| &logits[(from + lane) * vocabulary..(from + lane + 1) * vocabulary];
                    match evaluation {
                        Evaluation::Closing => track.closing = right.then(|| of_lane(0).to_vec()),
                        Evaluation::Call(call) => {
                            let before = track.tokens[call];
                            for lane in 0..lanes {
                                match token(row, call, lane, of_lane(lane)) {
                                    Ok(drawn) => track.tokens[call][lane] = drawn,
                                    Err(error) if right => return Err(error),
                                    // Not an evaluation that a sequential decoder makes: the old guess stays.
                                    Err(_) => {}
                                }
                            }
                            if right {
                                track.settled = course.costly(call + 1);
                                right = track.tokens[call] == before;
                                checked += 1;
                                held += usize::from(right);
                            }
                            newest = Some(from);
                        }
                    }
                }
                course.luck.lock().unwrap_or_else(PoisonError::into_inner).learn(held, checked);
                // The calls that were too far ahead are guessed anew, from the latest logits.
                if let (Some(from), Some(&Evaluation::Call(last))) = (newest, planned.last()) {
                    track.newest.copy_from_slice(&logits[from * vocabulary..(from + 1) * vocabulary]);
                    track.guessed = (last + 1).max(track.settled);
                }
            }
        }

        // Once more, all rows together, as the sequential decoder goes.
        let x1 = self.targets(&tracks, lanes);
        let calls = course.calls.len();
        let slope = |call: usize, t: f64, x: &[f64]| {
            let targets = (0..rows).map(|row| &x1[(row * calls + call) * lanes * d..][..lanes * d]);
            let rows = targets.zip(x.chunks_exact(d)).zip(&conditions.guided);
            Ok::<_, Infallible>(rows.flat_map(|((x1, x), &guided)| self.velocity(x1, x, t, guided)).collect())
        };
        let Ok(x) = course.integrate(x0, slope, visit);
        let passes = course.passes(&conditions.guided);
        let rounds = tracks.iter().map(|track| track.rounds).collect();
        let times = course.grid.slope_times();
        let guesses = tracks.iter().filter(|_| positions.guesses).map(|track| {
            let calls = times.iter().zip(&course.calls).zip(&track.tokens);
            let calls = calls.filter(|((_, call), _)| call.at != Where::End);
            calls.map(|((&t, _), tokens)| Guess { t, token: tokens[0] as u32 }).collect()
        });
        let guesses = guesses.collect();
        let closing: Vec<f32> = tracks.into_iter().flat_map(|track| track.closing.unwrap_or_default()).collect();
        let logits = Tensor::from_data(TensorData::new(closing, [rows, vocabulary]), &positions.hidden.device());
        let evaluations = vec![course.grid.evaluations(); rows];
        Ok(Some(Diffused { x, logits, evaluations, passes, rounds, guesses }))
    }

    /// What the tokens of all rows and calls stand for, `[rows, calls, lanes, d]` flattened.
    fn targets(&self, tracks: &[Track], lanes: usize) -> Vec<f64> {
        let tokens = tracks.iter().flat_map(|track| &track.tokens).flat_map(|tokens| &tokens[..lanes]);
        self.vocabulary_rows(&tokens.copied().collect::<Vec<_>>())
    }

    /// The states of one row at every call, and at `T`, on the way to the given targets (`[calls, lanes, d]` flattened).
    fn states(&self, course: &GridCourse<B>, x0: Vec<f64>, x1: &[f64], guided: bool) -> (Vec<Vec<f64>>, Vec<f64>) {
        let width = x1.len() / course.calls.len();
        let mut states = Vec::with_capacity(course.calls.len());
        let slope = |call: usize, t: f64, x: &[f64]| {
            states.push(x.to_vec());
            Ok::<_, Infallible>(self.velocity(&x1[call * width..][..width], x, t, guided))
        };
        let Ok(end) = course.integrate(x0, slope, |_, _| ());
        (states, end)
    }
}

/// What is to be evaluated next for a row: nothing once it is complete.
fn next<B: Backend>(course: &GridCourse<B>, track: &Track, ahead: usize) -> Vec<Evaluation> {
    if track.closing.is_some() {
        return Vec::new();
    }
    let calls = (track.settled..course.calls.len()).filter(|&call| matches!(course.calls[call].at, Where::Between(_)));
    calls.map(Evaluation::Call).chain([Evaluation::Closing]).take(ahead).collect()
}
