//! The diffusion of one token at each of several positions: from `x_0` to the logits at the final time.

use std::cell::RefCell;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use l2d_core::L2d;
use l2d_core::lm::{KvCache, TokenTable, host_values};

use super::adaptive::AdaptiveCourse;
use super::course::{Call, GridCourse, OnGrid, Where};
use super::noise::Lane;
use super::settings::{DecodeMode, Diffusion, DiffusionParams, Steps};
use crate::error::{Error, Result};
use crate::ode::FixedGrid;
use crate::sampler::argmax;
use crate::velocity::{COLDEST, Estimate, guide};

/// Rows in one forward pass of parallel-in-time decoding, at most. On a CPU a pass for 16 rows costs two to three passes for
/// one; beyond, it costs nearly as much as the rows.
const ROWS_AT_ONCE: usize = 32;

/// A model, the times of its diffusion, and all that follows from these alone. Made once, used for every token.
#[derive(Debug)]
pub struct Diffuser<'m, B: Backend> {
    pub(super) model: &'m L2d<B>,
    params: DiffusionParams,
    mode: DecodeMode,
    /// The diffusion vocabulary, `[V, d]`.
    table: TokenTable<B>,
    course: Course<B>,
}

/// How the diffusion gets from `t = 0` to `T`.
#[derive(Debug)]
enum Course<B: Backend> {
    Grid(GridCourse<B>),
    Adaptive(AdaptiveCourse),
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
    /// On a fixed grid.
    on_grid: Option<OnGrid<B>>,
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
    /// Evaluations of each row as a budget counts them: the one at `t = 0` and the closing one included, a guided one once.
    pub evaluations: Vec<usize>,
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
    /// Computes what depends on the model and the times alone; `None` where the budget is 1, the plain LM.
    ///
    /// # Errors
    /// [`Error::Parameter`] for guidance with a path that has no classes.
    pub fn new(model: &'m L2d<B>, settings: &Diffusion) -> Result<Option<Self>> {
        let params = settings.params;
        if params.guidance != 1.0 && model.path.config.no_class().is_none() {
            return Err(Error::parameter(
                "guidance",
                params.guidance,
                "1 with an adapter that was trained without classes",
            ));
        }
        let course = match &settings.steps {
            Steps::None => return Ok(None),
            Steps::Grid(grid) => Course::Grid(GridCourse::new(&model.path, grid.clone(), &params.estimate)),
            Steps::Adaptive { solver, reference } => {
                Course::Adaptive(AdaptiveCourse { solver: solver.clone(), reference: *reference })
            }
        };
        let table = model.path.vocabulary.table(&model.lm);
        Ok(Some(Self { model, params, mode: DecodeMode::default(), table, course }))
    }

    /// The same, laying out its evaluations as `mode` says.
    pub fn with_mode(self, mode: DecodeMode) -> Self {
        Self { mode, ..self }
    }

    /// The grid of times; `None` for an adaptive solver.
    pub fn grid(&self) -> Option<&FixedGrid> {
        match &self.course {
            Course::Grid(course) => Some(&course.grid),
            Course::Adaptive(_) => None,
        }
    }

    /// Numbers in the state of one row, `d`.
    pub fn dim(&self) -> usize {
        self.model.path.config.dim
    }

    /// The standard deviation `sigma` of `x_0`.
    pub fn sigma(&self) -> f64 {
        self.model.path.config.sigma
    }

    /// How `x1_hat` is made.
    pub(super) fn estimate(&self) -> Estimate {
        self.params.estimate
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
        let strength = self.params.guidance;
        let guided: Vec<bool> = classes.iter().map(|class| class.is_some() && strength != 1.0).collect();
        let classes: Vec<usize> = classes.iter().map(|class| class.unwrap_or(no_class)).collect();
        let on_grid = match &self.course {
            Course::Grid(course) => Some(course.conditions(&classes, guided.contains(&true))),
            Course::Adaptive(_) => None,
        };
        Ok(Conditions { on_grid, classes, guided })
    }

    /// Diffuses from `x_0` (`[rows, d]` flattened, multiplied by sigma already) to the logits at the final time.
    ///
    /// `draw(row, call, lane, logits, temperature)` draws the tokens of a sampled velocity and must be a function of what it
    /// is given: where evaluations are made at once, it is asked several times for one call, out of order, and with logits of
    /// states that are then dropped. `visit(rows, t, x)` sees the
    /// states of some rows at every grid time, or after every step of an adaptive solver; `go_on` is asked before every
    /// evaluation, and once it says no the result is `None`.
    ///
    /// # Errors
    /// Those of `draw`; [`Error::Row`] with [`Error::Logits`] where logits are no distribution, and with
    /// [`Error::Integration`] where an adaptive solver does not arrive; [`Error::Parameter`] where `x0` or
    /// `conditions` do not fit the rows.
    pub fn diffuse(
        &self,
        positions: &Positions<'_, B>,
        conditions: &Conditions<B>,
        x0: Vec<f64>,
        mut draw: impl FnMut(usize, usize, Lane, &[f32], f64) -> Result<usize>,
        mut visit: impl FnMut(Range<usize>, f64, &[f64]),
        go_on: impl Fn() -> bool,
    ) -> Result<Option<Diffused<B>>> {
        let rows = positions.hidden.dims()[0];
        let count: usize = positions.positions.iter().map(Vec::len).sum();
        let guided = &conditions.guided;
        if guided.len() != rows || count != rows || x0.len() != rows * self.dim() {
            return Err(Error::parameter("rows", rows, "the same in positions, conditions and initial state"));
        }
        for (sequence, at) in positions.positions.iter().enumerate() {
            let len = positions.cache.len_of(sequence);
            if let Some(position) = at.iter().find(|&&position| position >= len) {
                return Err(Error::parameter("position", position, "one that the main path has computed"));
            }
        }
        let (course, on_grid) = match (&self.course, &conditions.on_grid) {
            (Course::Grid(course), Some(on_grid)) => (course, on_grid),
            (Course::Adaptive(course), None) => {
                return self.diffuse_adaptively(course, positions, conditions, x0, &mut draw, &mut visit, &go_on);
            }
            _ => return Err(Error::parameter("conditions", "another diffuser's", "those this diffuser made")),
        };
        let mut visit = |t: f64, x: &[f64]| visit(0..rows, t, x);
        let lanes = conditions.lanes();
        // An expectation is no token to be guessed.
        let discrete = !matches!(self.params.estimate, Estimate::Expectation { .. });
        let most = ROWS_AT_ONCE / (rows * lanes).max(1);
        if self.mode == DecodeMode::Parallel && discrete && most > 1 {
            return self.diffuse_in_parallel(course, most, positions, conditions, x0, &mut draw, &mut visit, &go_on);
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
            let Call { temperature, at } = course.calls[call];
            let logits = match at {
                Where::End => return Ok(vec![0.0; x.len()]),
                Where::Start => repeat_rows(lm.logits(positions.hidden.clone()), lanes),
                Where::Between(time) => {
                    let x_t = repeat_rows(self.tensor(x), lanes);
                    self.model.logits(positions.cache, plan, &on_grid.between[time], hidden.clone(), x_t)
                }
            };
            let drawn = matches!(self.params.estimate, Estimate::Sampled { .. }) && temperature > COLDEST;
            if positions.guesses && !drawn {
                let logits = host_values(logits.clone());
                for (row, logits) in logits.chunks_exact(logits.len() / (rows * lanes)).step_by(lanes).enumerate() {
                    guessed(row, t, argmax(logits).map_err(|error| error.in_row(row))?);
                }
            }
            let x1 = self.clean(temperature, logits, |row, logits, temperature| match row % lanes {
                0 => {
                    let token = draw(row / lanes, call, Lane::Class, logits, temperature)?;
                    guessed(row / lanes, t, token);
                    Ok(token)
                }
                _ if guided[row / lanes] => draw(row / lanes, call, Lane::NoClass, logits, temperature),
                _ => Ok(0),
            })?; // [rows * lanes, d]
            let rows = x1.chunks_exact(d * lanes).zip(x.chunks_exact(d)).zip(guided);
            Ok(rows.flat_map(|((x1, x), &guided)| self.velocity(x1, x, t, guided)).collect())
        };
        let x = match course.integrate(x0, slope, visit) {
            Ok(x) => x,
            Err(Interruption::Stopped) => return Ok(None),
            Err(Interruption::Failed(error)) => return Err(error),
        };
        if !go_on() {
            return Ok(None);
        }
        let x_t = self.tensor(&x);
        let logits = self.model.logits(positions.cache, &single, &on_grid.closing, positions.hidden.clone(), x_t);
        let rounds = vec![course.evaluated() + 1; rows];
        let evaluations = vec![course.grid.evaluations(); rows];
        Ok(Some(Diffused {
            x,
            logits,
            evaluations,
            passes: course.passes(guided),
            rounds,
            guesses: guesses.into_inner(),
        }))
    }

    /// `x1_hat` for each row of logits: see [`Estimate::clean`].
    fn clean(
        &self,
        temperature: f64,
        logits: Tensor<B, 2>,
        mut draw: impl FnMut(usize, &[f32], f64) -> Result<usize>,
    ) -> Result<Vec<f64>> {
        let (estimate, rows) = (self.params.estimate, logits.dims()[0]);
        if !self.model.lm.is_packed() || !matches!(estimate, Estimate::Expectation { .. }) {
            return estimate.clean(temperature, logits, &self.table, draw);
        }
        // A tensor product's last bits depend on its number of rows, and with packed weights a row must not notice others.
        let by_row = (0..rows).map(|row| {
            let logits = logits.clone().narrow(0, row, 1);
            estimate.clean(temperature, logits, &self.table, |_, logits, t| draw(row, logits, t))
        });
        by_row.collect::<Result<Vec<_>>>().map(|rows| rows.concat())
    }

    /// `x1_hat` of an expectation for one row of logits, `[d]`.
    pub(super) fn expected(&self, temperature: f64, logits: &[f32]) -> Result<Vec<f64>> {
        let logits = Tensor::from_data(TensorData::new(logits.to_vec(), [1, logits.len()]), &self.model.lm.device());
        self.clean(temperature, logits, |_, _, _| unreachable!("nothing is drawn for an expectation"))
    }

    /// The velocity of one row at `(x, t)`, towards `x1` (`[lanes, d]` flattened), guided where it is. Zero from `t = 1` on.
    pub(super) fn velocity(&self, x1: &[f64], x: &[f64], t: f64, guided: bool) -> Vec<f64> {
        if t >= 1.0 { vec![0.0; x.len()] } else { self.velocity_from(x1, x, t, guided) }
    }

    /// [`Diffuser::velocity`] by its formula, whatever the time.
    pub(super) fn velocity_from(&self, x1: &[f64], x: &[f64], t: f64, guided: bool) -> Vec<f64> {
        let (velocity, d) = (self.params.velocity, self.dim());
        let class = velocity.quotient(&x1[..d], x, t);
        if guided { guide(self.params.guidance, &class, &velocity.quotient(&x1[d..2 * d], x, t)) } else { class }
    }

    /// Rows of the diffusion vocabulary, `[ids, d]` flattened.
    pub(super) fn vocabulary_rows(&self, ids: &[usize]) -> Vec<f64> {
        let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        let ids = Tensor::<B, 1, Int>::from_ints(ids.as_slice(), &self.model.lm.device());
        host_values(self.table.rows(ids)).into_iter().map(f64::from).collect()
    }

    /// States as the model takes them, `[rows, d]`.
    pub(super) fn tensor(&self, x: &[f64]) -> Tensor<B, 2> {
        let values: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let rows = values.len() / self.dim();
        Tensor::from_data(TensorData::new(values, [rows, self.dim()]), &self.model.lm.device())
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
