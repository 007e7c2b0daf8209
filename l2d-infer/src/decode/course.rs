//! A grid of times, and all that follows from it and the path alone.

use std::sync::Mutex;

use burn::tensor::backend::Backend;
use l2d_core::diffusion::{DiffusionPath, Modulation};

use super::parallel::Luck;
use crate::ode::FixedGrid;
use crate::schedule::temperature_lead;
use crate::velocity::Estimate;

/// The slope calls of a fixed grid, and what their times and every class do to the path. Made once, used for every token.
#[derive(Debug)]
pub(super) struct GridCourse<B: Backend> {
    pub(super) grid: FixedGrid,
    pub(super) calls: Vec<Call>,
    /// One row for each of `times` and each class, "no class" last, classes fastest; the closing time is the last.
    pub(super) modulation: Modulation<B>,
    times: Vec<f32>,
    classes: usize,
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

/// What some rows' classes make of every evaluation on the grid.
#[derive(Debug)]
pub(super) struct OnGrid<B: Backend> {
    /// For each time between 0 and the closing one; of twice the rows (class, no class, class, ...) where guided.
    pub(super) between: Vec<Modulation<B>>,
    pub(super) closing: Modulation<B>,
}

impl<B: Backend> GridCourse<B> {
    pub(super) fn new(path: &DiffusionPath<B>, grid: FixedGrid, estimate: &Estimate) -> Self {
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
                Call { temperature: estimate.temperature(t + lead), at }
            })
            .collect();
        times.push(grid.final_t() as f32);
        let classes = path.config.classes.len();
        let per_row: Vec<f32> = times.iter().flat_map(|&t| vec![t; classes + 1]).collect();
        let class_rows: Vec<usize> = times.iter().flat_map(|_| 0..=classes).collect();
        let modulation = path.modulation(&per_row, Some(&class_rows));
        Self { grid, calls, modulation, times, classes, luck: Mutex::default() }
    }

    /// The rows of the modulations for rows of these classes; `twice` puts "no class" behind each.
    pub(super) fn conditions(&self, classes: &[usize], twice: bool) -> OnGrid<B> {
        let doubled: Vec<usize> = classes.iter().flat_map(|&class| [class, self.classes]).collect();
        let pick = |time: usize, classes: &[usize]| {
            let row = |class: usize| time * (self.classes + 1) + class;
            match classes.first() {
                Some(&first) if classes.iter().all(|&class| class == first) => self.modulation.row(row(first)),
                _ => self.modulation.rows(&classes.iter().map(|&class| row(class)).collect::<Vec<_>>()),
            }
        };
        let closing = self.times.len() - 1;
        let between = (0..closing).map(|time| pick(time, if twice { &doubled } else { classes })).collect();
        OnGrid { between, closing: pick(closing, classes) }
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

    /// Rows of the table of modulations: a time by its place in the grid's list (the closing one where it is `None`), a row's
    /// class, and the lane.
    pub(super) fn modulation_row(&self, time: Option<usize>, class: usize, lane: usize) -> usize {
        let class = if lane == 0 { class } else { self.classes };
        time.unwrap_or(self.times.len() - 1) * (self.classes + 1) + class
    }

    /// Calls that need the diffusion path.
    pub(super) fn evaluated(&self) -> usize {
        self.calls.iter().filter(|call| matches!(call.at, Where::Between(_))).count()
    }

    /// Evaluations of the diffusion path that each row needs.
    pub(super) fn passes(&self, guided: &[bool]) -> Vec<usize> {
        guided.iter().map(|&guided| self.evaluated() * if guided { 2 } else { 1 } + 1).collect()
    }

    /// The first call from `call` on that needs an evaluation; the number of calls where none does.
    pub(super) fn costly(&self, call: usize) -> usize {
        let free = self.calls[call..].iter().take_while(|call| !matches!(call.at, Where::Between(_))).count();
        call + free
    }
}
