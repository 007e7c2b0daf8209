//! The velocity of the diffusion: a guess of the clean embedding from the logits, and the slope that leads there.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::schedule::TemperatureSchedule;

/// How `x1_hat`, the guess of the clean embedding, is made from the logits (METHOD, section 7). `V` is the diffusion
/// vocabulary, one row of norm `sqrt(d)` a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Estimate {
    /// `V[y]` of a token `y ~ softmax(logits / temperature)`: the paper's choice.
    Sampled {
        /// The temperature over time.
        #[serde(default)]
        schedule: TemperatureSchedule,
    },
    /// `V[y]` of the most likely token: the default of the paper's released settings.
    Argmax,
    /// `sum_y p_y V[y]` with `p = softmax(logits / temperature)`.
    Expectation {
        /// The temperature over time.
        #[serde(default)]
        schedule: TemperatureSchedule,
        /// What is done to the mean, which is shorter than any row of `V`.
        #[serde(default)]
        normalise: Normalise,
    },
}

impl Default for Estimate {
    fn default() -> Self {
        Self::Sampled { schedule: TemperatureSchedule::default() }
    }
}

/// What is done to an expectation over the diffusion vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// Nothing.
    #[default]
    None,
    /// It is stretched to the norm of the rows, `sqrt(d)`.
    Renormalise,
    /// It is replaced by the nearest row.
    ClampToNearest,
}

/// How fast the state moves towards the guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VelocityForm {
    /// `(x1_hat - x) / (1 - t)`: straight lines, the velocity of rectified flow.
    #[default]
    Constant,
    /// `(x1_hat - x) / (1 - t)^2`, as the reference's `edm` option.
    Edm,
}

impl Estimate {
    /// Checks the ranges of the schedule.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub fn check(self) -> Result<Self> {
        match self {
            Self::Sampled { schedule } | Self::Expectation { schedule, .. } => schedule.check().map(|_| self),
            Self::Argmax => Ok(self),
        }
    }

    /// The temperature at time `u`; 0 is the arg-max.
    pub fn temperature(&self, u: f64) -> f64 {
        match self {
            Self::Sampled { schedule } | Self::Expectation { schedule, .. } => schedule.at(u),
            Self::Argmax => 0.0,
        }
    }

    /// `x1_hat` for each row of logits, flattened `[rows, d]`.
    ///
    /// `logits`: `[rows, vocabulary]`; `table`: the diffusion vocabulary, `[vocabulary, d]`. `draw(row, logits,
    /// temperature)` draws a token where the estimate is sampled and the temperature is above [`COLDEST`]; at or below it
    /// every estimate is the arg-max.
    ///
    /// # Errors
    /// Those of `draw`, and [`Error::Parameter`] where it names a token outside the vocabulary.
    pub fn clean<B: Backend>(
        &self,
        temperature: f64,
        logits: Tensor<B, 2>,
        table: &Tensor<B, 2>,
        mut draw: impl FnMut(usize, &[f32], f64) -> Result<usize>,
    ) -> Result<Vec<f64>> {
        let [rows, vocabulary] = logits.dims();
        let device = logits.device();
        if temperature <= COLDEST {
            return Ok(floats(rows_of(table, logits.argmax(1).reshape([rows]))));
        }
        match self {
            Self::Argmax => Ok(floats(rows_of(table, logits.argmax(1).reshape([rows])))),
            Self::Sampled { .. } => {
                let logits: Vec<f32> = host(logits);
                let ids = logits
                    .chunks_exact(vocabulary)
                    .enumerate()
                    .map(|(row, logits)| {
                        let id = draw(row, logits, temperature)?;
                        if id >= vocabulary {
                            return Err(Error::parameter("drawn token", id, "in the vocabulary"));
                        }
                        Ok(id as i64)
                    })
                    .collect::<Result<Vec<i64>>>()?;
                Ok(floats(rows_of(table, Tensor::from_ints(ids.as_slice(), &device))))
            }
            Self::Expectation { normalise, .. } => {
                // The largest logit is taken off first: divided by a small temperature the others may overflow, it may not.
                let largest = logits.clone().max_dim(1); // [rows, 1]
                let mean = softmax((logits - largest).div_scalar(temperature), 1).matmul(table.clone()); // [rows, d]
                match normalise {
                    Normalise::None => Ok(floats(mean)),
                    Normalise::Renormalise => Ok(stretch_to_unit_variance(floats(mean), rows)),
                    Normalise::ClampToNearest => {
                        // All rows of the table have the same norm, so the nearest is the one of largest inner product.
                        let nearest = mean.matmul(table.clone().transpose()).argmax(1).reshape([rows]);
                        Ok(floats(rows_of(table, nearest)))
                    }
                }
            }
        }
    }
}

/// At this temperature and below, logits in f32 that differ at all differ by more than the softmax can show: the arg-max
/// is taken instead.
pub const COLDEST: f64 = 1e-6;

impl VelocityForm {
    /// The velocity at `(x, t)`; zero from `t = 1` on, where the state has arrived and the quotient is undefined.
    pub fn velocity(self, x1: &[f64], x: &[f64], t: f64) -> Vec<f64> {
        if t >= 1.0 {
            return vec![0.0; x.len()];
        }
        let remaining = match self {
            Self::Constant => 1.0 - t,
            Self::Edm => (1.0 - t) * (1.0 - t),
        };
        x1.iter().zip(x).map(|(x1, x)| (x1 - x) / remaining).collect()
    }
}

/// Classifier-free guidance: `strength * v(class) + (1 - strength) * v(no class)`.
pub fn guide(strength: f64, class: &[f64], none: &[f64]) -> Vec<f64> {
    class.iter().zip(none).map(|(class, none)| strength * class + (1.0 - strength) * none).collect()
}

/// Rows `ids` of the table, `[rows, d]`.
fn rows_of<B: Backend>(table: &Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    table.clone().select(0, ids)
}

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn floats<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Each of `rows` rows scaled to norm `sqrt(d)`; a row of zeros stays.
fn stretch_to_unit_variance(mut values: Vec<f64>, rows: usize) -> Vec<f64> {
    let d = values.len() / rows.max(1);
    for row in values.chunks_exact_mut(d.max(1)) {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x *= (d as f64).sqrt() / norm);
    }
    values
}
