//! The diffusion of one token at each of several positions: from `x_0` to the logits at the final time.

use std::cell::RefCell;
use std::sync::Mutex;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use l2d_core::L2d;
use l2d_core::diffusion::Modulation;
use l2d_core::lm::{KvCache, host_values};

use super::noise::Lane;
use super::parallel::Luck;
use super::settings::{DecodeMode, Diffusion};
use crate::error::{Error, Result};
use crate::ode::FixedGrid;
use crate::sampler::argmax;
use crate::schedule::temperature_lead;
use crate::velocity::{COLDEST, Estimate, guide};

/// Rows in one forward pass of parallel-in-time decoding, at most. On a CPU a pass for 16 rows costs two to three passes for
/// one; beyond, it costs nearly as much as the rows.
const ROWS_AT_ONCE: usize = 32;

/// A model, a grid of times, and all that follows from these two alone: the diffusion vocabulary, and what every time and
/// class of the grid does to the path. Made once, used for every token.
#[derive(Debug)]
pub struct Diffuser<'m, B: Backend> {
    pub(super) model: &'m L2d<B>,
    settings: Diffusion,
    mode: DecodeMode,
    grid: FixedGrid,
    /// The diffusion vocabulary, `[V, d]`.
    table: Tensor<B, 2>,
    pub(super) calls: Vec<Call>,
    /// One row for each of `times` and each class, "no class" last, classes fastest; the closing time is the last.
    pub(super) modulation: Modulation<B>,
    times: Vec<f32>,
    /// What parallel decoding has learnt about its guesses. Decides how many are made, never what comes out.
    pub(super) luck: Mutex<Luck>,
}

/// A slope the solver asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) temperature: f64,
    pub(super) at: Where,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Where {
    /// `t = 0`: the base LM's logits, no diffusion pass.
    Start,
    /// Between: the index of its time in `times`.
    Between(usize),
    /// `t >= 1`: the velocity is zero.
    End,
}

/// Positions whose next token is wanted.
#[derive(Debug)]
pub struct Positions<'a, B: Backend> {
    /// The main path's keys and values up to these positions.
    pub cache: &'a KvCache<B>,
    /// Positions in each sequence of the cache, equally many for each. Rows are counted sequence by sequence.
    pub positions: &'a [Vec<usize>],
    /// The main path's hidden states at these positions, before the final norm: `[rows, H]`.
    pub hidden: Tensor<B, 2>,
    /// Whether the guesses on the way are wanted ([`Diffused::guesses`]).
    pub guesses: bool,
}

/// What the model took for the next token at some time of the diffusion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// The time, in `[0, 1)`.
    pub t: f64,
    /// The token: the one drawn for a sampled velocity, the most likely one otherwise. With guidance, that of the class.
    pub token: u32,
}

/// What the classes of some rows make of every evaluation. Made when the rows change, not for every token.
#[derive(Debug)]
pub struct Conditions<B: Backend> {
    /// For each time between 0 and the closing one; of twice the rows (class, no class, class, ...) where guided.
    between: Vec<Modulation<B>>,
    closing: Modulation<B>,
    /// Each row's class, or "no class".
    pub(super) classes: Vec<usize>,
    /// Which rows have a class to be guided by. If any has, all rows are evaluated twice, and the others ignore the second
    /// result: equally many rows a sequence keep the batch one product.
    pub(super) guided: Vec<bool>,
}

impl<B: Backend> Conditions<B> {
    /// Rows of a forward pass for each row of the batch.
    pub(super) fn lanes(&self) -> usize {
        if self.guided.contains(&true) { 2 } else { 1 }
    }
}

/// The end of a diffusion.
#[derive(Debug)]
pub struct Diffused<B: Backend> {
    /// `x_T`, `[rows, d]` flattened.
    pub x: Vec<f64>,
    /// Logits at `(x_T, T)`, `[rows, V]`.
    pub logits: Tensor<B, 2>,
    /// How often each row needed the diffusion path: less than the budget, because `t = 0` costs nothing, and more where
    /// guidance evaluates twice.
    pub passes: Vec<usize>,
    /// Forward passes of the diffusion path that each row took part in: as many evaluations in a sequential decoder, fewer
    /// where several are made at once.
    pub rounds: Vec<usize>,
    /// Each row's guesses in the order of time, where they were asked for.
    pub guesses: Vec<Vec<Guess>>,
}

impl<'m, B: Backend> Diffuser<'m, B> {
    /// Computes what depends on the model and the grid alone; `None` where the budget is 1, the plain LM.
    ///
    /// # Errors
    /// [`Error::Parameter`] for guidance with a path that has no classes.
    pub fn new(model: &'m L2d<B>, settings: &Diffusion) -> Result<Option<Self>> {
        let guidance = settings.params.guidance;
        if guidance != 1.0 && model.path.config.no_class().is_none() {
            return Err(Error::parameter("guidance", guidance, "1 with an adapter that was trained without classes"));
        }
        let Some(grid) = settings.grid.clone() else { return Ok(None) };
        let lead = temperature_lead(&grid);
        let mut times: Vec<f32> = Vec::new();
        let calls = grid
            .slope_times()
            .into_iter()
            .map(|t| {
                let at = if t == 0.0 {
                    Where::Start
                } else if t >= 1.0 {
                    Where::End
                } else {
                    let t = t as f32;
                    Where::Between(times.iter().position(|&known| known == t).unwrap_or_else(|| {
                        times.push(t);
                        times.len() - 1
                    }))
                };
                Call { temperature: settings.params.estimate.temperature(t + lead), at }
            })
            .collect();
        times.push(grid.final_t() as f32);
        let classes = model.path.config.classes.len();
        let per_row: Vec<f32> = times.iter().flat_map(|&t| vec![t; classes + 1]).collect();
        let class_rows: Vec<usize> = times.iter().flat_map(|_| 0..=classes).collect();
        let modulation = model.path.modulation(&per_row, Some(&class_rows));
        let table = model.path.vocabulary.table(&model.lm);
        let mode = DecodeMode::default();
        Ok(Some(Self {
            model,
            settings: settings.clone(),
            mode,
            grid,
            table,
            calls,
            modulation,
            times,
            luck: Mutex::default(),
        }))
    }

    /// The same, laying out its evaluations as `mode` says.
    pub fn with_mode(self, mode: DecodeMode) -> Self {
        Self { mode, ..self }
    }

    /// The grid of times.
    pub fn grid(&self) -> &FixedGrid {
        &self.grid
    }

    /// Numbers in the state of one row, `d`.
    pub fn dim(&self) -> usize {
        self.model.path.config.dim
    }

    /// The standard deviation `sigma` of `x_0`.
    pub fn sigma(&self) -> f64 {
        self.model.path.config.sigma
    }

    /// The temperature of every slope call, in order.
    pub fn temperatures(&self) -> Vec<f64> {
        self.calls.iter().map(|call| call.temperature).collect()
    }

    /// What the classes of some rows, `None` for "no class", make of every evaluation.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a class the adapter does not have.
    pub fn conditions(&self, classes: &[Option<usize>]) -> Result<Conditions<B>> {
        let no_class = self.model.path.config.classes.len();
        if let Some(class) = classes.iter().flatten().find(|&&class| class >= no_class) {
            return Err(Error::parameter("class", class, "one of the adapter's classes"));
        }
        let strength = self.settings.params.guidance;
        let guided: Vec<bool> = classes.iter().map(|class| class.is_some() && strength != 1.0).collect();
        let twice = guided.contains(&true);
        let single: Vec<usize> = classes.iter().map(|class| class.unwrap_or(no_class)).collect();
        let doubled: Vec<usize> = single.iter().flat_map(|&class| [class, no_class]).collect();
        let pick = |time: usize, classes: &[usize]| {
            let row = |class: usize| time * (no_class + 1) + class;
            match classes.first() {
                Some(&first) if classes.iter().all(|&class| class == first) => self.modulation.row(row(first)),
                _ => self.modulation.rows(&classes.iter().map(|&class| row(class)).collect::<Vec<_>>()),
            }
        };
        let closing = self.times.len() - 1;
        let between = (0..closing).map(|time| pick(time, if twice { &doubled } else { &single })).collect();
        Ok(Conditions { between, closing: pick(closing, &single), classes: single, guided })
    }

    /// Diffuses from `x_0` (`[rows, d]` flattened, multiplied by sigma already) to the logits at the final time.
    ///
    /// `draw(row, call, lane, logits, temperature)` draws the tokens of a sampled velocity; `visit(t, x)` sees the state at
    /// every grid time; `go_on` is asked before every evaluation, and once it says no the result is `None`.
    ///
    /// # Errors
    /// Those of `draw`; [`Error::Parameter`] where `x0` or `conditions` do not fit the rows.
    pub fn diffuse(
        &self,
        positions: &Positions<'_, B>,
        conditions: &Conditions<B>,
        x0: Vec<f64>,
        mut draw: impl FnMut(usize, usize, Lane, &[f32], f64) -> Result<usize>,
        mut visit: impl FnMut(f64, &[f64]),
        go_on: impl Fn() -> bool,
    ) -> Result<Option<Diffused<B>>> {
        let rows = positions.hidden.dims()[0];
        let count: usize = positions.positions.iter().map(Vec::len).sum();
        let guided = &conditions.guided;
        if guided.len() != rows || count != rows || x0.len() != rows * self.dim() {
            return Err(Error::parameter("rows", rows, "the same in positions, conditions and initial state"));
        }
        let lanes = conditions.lanes();
        // An expectation is no token to be guessed.
        let discrete = !matches!(self.settings.params.estimate, Estimate::Expectation { .. });
        let most = ROWS_AT_ONCE / (rows * lanes).max(1);
        if self.mode == DecodeMode::Parallel && discrete && most > 1 {
            return self.diffuse_in_parallel(most, positions, conditions, x0, &mut draw, &mut visit, &go_on);
        }
        let lm = &self.model.lm;
        let single = lm.plan_at(positions.cache, positions.positions);
        let doubled = (lanes == 2).then(|| lm.plan_at(positions.cache, &repeated(positions.positions)));
        let plan = doubled.as_ref().unwrap_or(&single);
        let hidden = repeat_rows(positions.hidden.clone(), lanes); // [rows * lanes, H]

        let d = self.dim();
        let guesses = RefCell::new(vec![Vec::new(); if positions.guesses { rows } else { 0 }]);
        let guessed = |row: usize, t: f64, token: usize| {
            if let Some(guesses) = guesses.borrow_mut().get_mut(row) {
                guesses.push(Guess { t, token: token as u32 });
            }
        };
        let slope = |call: usize, t: f64, x: &[f64]| -> std::result::Result<Vec<f64>, Interruption> {
            if !go_on() {
                return Err(Interruption::Stopped);
            }
            let Call { temperature, at } = self.calls[call];
            let logits = match at {
                Where::End => return Ok(vec![0.0; x.len()]),
                Where::Start => repeat_rows(lm.logits(positions.hidden.clone()), lanes),
                Where::Between(time) => {
                    let x_t = repeat_rows(self.tensor(x), lanes);
                    self.model.logits(positions.cache, plan, &conditions.between[time], hidden.clone(), x_t)
                }
            };
            let drawn = matches!(self.settings.params.estimate, Estimate::Sampled { .. }) && temperature > COLDEST;
            if positions.guesses && !drawn {
                let logits = host_values(logits.clone());
                for (row, logits) in logits.chunks_exact(logits.len() / (rows * lanes)).step_by(lanes).enumerate() {
                    guessed(row, t, argmax(logits)?);
                }
            }
            let x1 =
                self.settings.params.estimate.clean(temperature, logits, &self.table, |row, logits, temperature| {
                    match row % lanes {
                        0 => {
                            let token = draw(row / lanes, call, Lane::Class, logits, temperature)?;
                            guessed(row / lanes, t, token);
                            Ok(token)
                        }
                        _ if guided[row / lanes] => draw(row / lanes, call, Lane::NoClass, logits, temperature),
                        _ => Ok(0),
                    }
                })?; // [rows * lanes, d]
            let rows = x1.chunks_exact(d * lanes).zip(x.chunks_exact(d)).zip(guided);
            Ok(rows.flat_map(|((x1, x), &guided)| self.velocity(x1, x, t, guided)).collect())
        };
        let x = match self.integrate(x0, slope, visit) {
            Ok(x) => x,
            Err(Interruption::Stopped) => return Ok(None),
            Err(Interruption::Failed(error)) => return Err(error),
        };
        if !go_on() {
            return Ok(None);
        }
        let x_t = self.tensor(&x);
        let logits = self.model.logits(positions.cache, &single, &conditions.closing, positions.hidden.clone(), x_t);
        let rounds = vec![self.evaluated() + 1; rows];
        Ok(Some(Diffused { x, logits, passes: self.passes(guided), rounds, guesses: guesses.into_inner() }))
    }

    /// Integrates over the grid; `slope(call, t, x)` knows which call it is.
    pub(super) fn integrate<E>(
        &self,
        x0: Vec<f64>,
        mut slope: impl FnMut(usize, f64, &[f64]) -> std::result::Result<Vec<f64>, E>,
        visit: impl FnMut(f64, &[f64]),
    ) -> std::result::Result<Vec<f64>, E> {
        let mut calls = 0..;
        self.grid.integrate_with(x0, |t, x| slope(calls.next().unwrap_or_default(), t, x), visit)
    }

    /// The velocity of one row at `(x, t)`, towards `x1` (`[lanes, d]` flattened), guided where it is.
    pub(super) fn velocity(&self, x1: &[f64], x: &[f64], t: f64, guided: bool) -> Vec<f64> {
        let (velocity, d) = (self.settings.params.velocity, self.dim());
        let class = velocity.velocity(&x1[..d], x, t);
        if guided {
            guide(self.settings.params.guidance, &class, &velocity.velocity(&x1[d..2 * d], x, t))
        } else {
            class
        }
    }

    /// Rows of the diffusion vocabulary, `[ids, d]` flattened.
    pub(super) fn vocabulary_rows(&self, ids: &[usize]) -> Vec<f64> {
        let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        let ids = Tensor::<B, 1, Int>::from_ints(ids.as_slice(), &self.model.lm.device());
        host_values(self.table.clone().select(0, ids)).into_iter().map(f64::from).collect()
    }

    /// Rows of the table of modulations: a time by its place in the grid's list (the closing one where it is `None`), a row's
    /// class, and the lane.
    pub(super) fn modulation_row(&self, time: Option<usize>, class: usize, lane: usize) -> usize {
        let no_class = self.model.path.config.classes.len();
        let class = if lane == 0 { class } else { no_class };
        time.unwrap_or(self.times.len() - 1) * (no_class + 1) + class
    }

    /// States as the model takes them, `[rows, d]`.
    pub(super) fn tensor(&self, x: &[f64]) -> Tensor<B, 2> {
        let values: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let rows = values.len() / self.dim();
        Tensor::from_data(TensorData::new(values, [rows, self.dim()]), &self.model.lm.device())
    }

    /// Calls that need the diffusion path.
    fn evaluated(&self) -> usize {
        self.calls.iter().filter(|call| matches!(call.at, Where::Between(_))).count()
    }

    /// Evaluations of the diffusion path that each row needs.
    pub(super) fn passes(&self, guided: &[bool]) -> Vec<usize> {
        guided.iter().map(|&guided| self.evaluated() * if guided { 2 } else { 1 } + 1).collect()
    }
}

/// Why an integration ends early.
pub(super) enum Interruption {
    Stopped,
    Failed(Error),
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Each row `times` times in a row: `[rows, width]` to `[rows * times, width]`.
fn repeat_rows<B: Backend>(x: Tensor<B, 2>, times: usize) -> Tensor<B, 2> {
    if times == 1 {
        return x;
    }
    let rows = x.dims()[0];
    pick_rows(x, (0..rows).flat_map(|row| vec![row; times]))
}

/// The rows of `x: [_, width]` with the given numbers.
pub(super) fn pick_rows<B: Backend>(x: Tensor<B, 2>, rows: impl Iterator<Item = usize>) -> Tensor<B, 2> {
    let indices: Vec<i32> = rows.map(|row| row as i32).collect();
    let indices = Tensor::<B, 1, Int>::from_data(indices.as_slice(), &x.device());
    x.select(0, indices)
}

/// Each position twice.
fn repeated(positions: &[Vec<usize>]) -> Vec<Vec<usize>> {
    positions.iter().map(|at| at.iter().flat_map(|&position| [position, position]).collect()).collect()
}
