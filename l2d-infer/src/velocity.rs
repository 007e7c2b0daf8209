//! The velocity of the diffusion: a guess of the clean embedding from the logits, and the slope that leads there.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use l2d_core::lm::{TokenTable, host_values};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sampler::argmax;
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
    /// Those of `draw`, [`Error::Parameter`] where it names a token outside the vocabulary, and [`Error::Row`] with
    /// [`Error::Logits`] where a most likely token is wanted and the logits are no distribution.
    pub fn clean<B: Backend>(
        &self,
        temperature: f64,
        logits: Tensor<B, 2>,
        table: &TokenTable<B>,
        mut draw: impl FnMut(usize, &[f32], f64) -> Result<usize>,
    ) -> Result<Vec<f64>> {
        let [rows, vocabulary] = logits.dims();
        let device = logits.device();
        // On the host: what backends take for the largest where a logit is no number differs, and none says so.
        let most_likely = |logits: Tensor<B, 2>| -> Result<Vec<f64>> {
            let rows = host_values(logits);
            let best = rows.chunks_exact(vocabulary).enumerate();
            let best = best.map(|(row, logits)| Ok(argmax(logits).map_err(|error| error.in_row(row))? as i64));
            let best = best.collect::<Result<Vec<i64>>>()?;
            Ok(floats(table.rows(Tensor::from_ints(best.as_slice(), &device))))
        };
        if temperature <= COLDEST {
            return most_likely(logits);
        }
        match self {
            Self::Argmax => most_likely(logits),
            Self::Sampled { .. } => {
                let logits = host_values(logits);
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
                Ok(floats(table.rows(Tensor::from_ints(ids.as_slice(), &device))))
            }
            Self::Expectation { normalise, .. } => {
                // The largest logit is taken off first: divided by a small temperature the others may overflow, it may not.
                let largest = logits.clone().max_dim(1); // [rows, 1]
                let mean = table.mean(softmax((logits.clone() - largest).div_scalar(temperature), 1)); // [rows, d]
                match normalise {
                    Normalise::None => Ok(floats(mean)),
                    Normalise::Renormalise => Ok(stretch_to_unit_variance(floats(mean), rows)),
                    Normalise::ClampToNearest => {
                        if floats(mean.clone()).iter().any(|x| !x.is_finite()) {
                            most_likely(logits)?; // says which
                        }
                        // All rows of the table have the same norm, so the nearest is the one of largest inner product.
                        let nearest = table.products(mean).argmax(1).reshape([rows]);
                        Ok(floats(table.rows(nearest)))
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
        if t >= 1.0 { vec![0.0; x.len()] } else { self.quotient(x1, x, t) }
    }

    /// The formula as it stands, whatever `t`: beyond 1 it leads away from `x1`.
    pub fn quotient(self, x1: &[f64], x: &[f64], t: f64) -> Vec<f64> {
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

fn floats<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f64> {
    host_values(tensor).into_iter().map(f64::from).collect()
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

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use l2d_testkit::TestBackend;
    use proptest::prelude::*;

    use super::*;

    const VOCABULARY: usize = 7;
    const D: usize = 3;

    fn tensor(values: &[f32], width: usize) -> Tensor<TestBackend, 2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / width, width]), &Default::default())
    }

    fn refuse(_: usize, _: &[f32], _: f64) -> Result<usize> {
        panic!("nothing is drawn here")
    }

    /// Rows of norm `sqrt(d)`.
    fn sphere(values: &[f32]) -> Vec<f32> {
        let rows = values.len() / D;
        stretch_to_unit_variance(values.iter().map(|&x| f64::from(x)).collect(), rows)
            .into_iter()
            .map(|x| x as f32)
            .collect()
    }

    proptest! {
        #[test]
        fn estimates_equal_their_definitions(
            logits in prop::collection::vec(-4.0f32..4.0, 2 * VOCABULARY),
            table in prop::collection::vec(0.1f32..1.0, VOCABULARY * D),
            temperature in 0.2f64..3.0,
        ) {
            let table = sphere(&table);
            let schedule = TemperatureSchedule::Constant { temperature };
            let run = |estimate: Estimate, temperature| {
                estimate.clean(temperature, tensor(&logits, VOCABULARY), &TokenTable::new(vec![tensor(&table, D)]), refuse).unwrap()
            };
            let row = |id: usize| table[id * D..(id + 1) * D].iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let expectation = |normalise| Estimate::Expectation { schedule, normalise };
            let mean = run(expectation(Normalise::None), temperature);
            let stretched = run(expectation(Normalise::Renormalise), temperature);
            let clamped = run(expectation(Normalise::ClampToNearest), temperature);
            let best = run(Estimate::Argmax, 0.0);
            for (i, logits) in logits.chunks(VOCABULARY).enumerate() {
                let part = i * D..(i + 1) * D;
                let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (j, mean) in mean[part.clone()].iter().enumerate() {
                    let expected: f64 = (0..VOCABULARY).map(|id| weights[id] / total * row(id)[j]).sum();
                    prop_assert!((mean - expected).abs() < 1e-5);
                }
                let norm = stretched[part.clone()].iter().map(|x| x * x).sum::<f64>();
                prop_assert!((norm - D as f64).abs() < 1e-5);
                prop_assert_eq!(&best[part.clone()], &row(argmax(logits).unwrap())[..]);
                let distance = |id: usize| -> f64 {
                    row(id).iter().zip(&mean[part.clone()]).map(|(a, b)| (a - b).powi(2)).sum()
                };
                let nearest = (0..VOCABULARY).map(distance).fold(f64::INFINITY, f64::min);
                let found = (0..VOCABULARY).find(|&id| row(id) == clamped[part.clone()]).expect("a row of the table");
                prop_assert!(distance(found) < nearest + 1e-5);
            }
            // Cold enough, every estimate is the arg-max.
            prop_assert_eq!(&run(expectation(Normalise::None), COLDEST), &best);
            prop_assert_eq!(&run(Estimate::Sampled { schedule }, 0.0), &best);
        }
    }

    #[test]
    fn a_sampled_estimate_asks_for_every_row_and_checks_the_answer() {
        let table = sphere(&(0..VOCABULARY * D).map(|i| 1.0 + i as f32).collect::<Vec<_>>());
        let logits: Vec<f32> = (0..3 * VOCABULARY).map(|i| i as f32).collect();
        let estimate = Estimate::default();
        let mut asked = Vec::new();
        let found = estimate.clean(
            0.7,
            tensor(&logits, VOCABULARY),
            &TokenTable::new(vec![tensor(&table, D)]),
            |row, logits, temperature| {
                asked.push((row, logits[0], temperature));
                Ok(row + 2)
            },
        );
        assert_eq!(asked, [(0, 0.0, 0.7), (1, 7.0, 0.7), (2, 14.0, 0.7)]);
        let expected: Vec<f64> = table[2 * D..5 * D].iter().map(|&x| f64::from(x)).collect();
        assert_eq!(found.unwrap(), expected);
        let outside =
            estimate.clean(0.7, tensor(&logits, VOCABULARY), &TokenTable::new(vec![tensor(&table, D)]), |_, _, _| {
                Ok(VOCABULARY)
            });
        assert!(outside.unwrap_err().to_string().contains("7"));
    }

    #[test]
    fn logits_that_are_no_numbers_have_no_most_likely_token() {
        let table = sphere(&(0..VOCABULARY * D).map(|i| 1.0 + i as f32).collect::<Vec<_>>());
        let schedule = TemperatureSchedule::default();
        let clamped = Estimate::Expectation { schedule, normalise: Normalise::ClampToNearest };
        for (estimate, temperature) in [(Estimate::Argmax, 1.0), (Estimate::Sampled { schedule }, 0.0), (clamped, 1.0)]
        {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut logits = vec![0.5; 2 * VOCABULARY];
                logits[VOCABULARY + 3] = bad;
                let found = estimate.clean(
                    temperature,
                    tensor(&logits, VOCABULARY),
                    &TokenTable::new(vec![tensor(&table, D)]),
                    refuse,
                );
                let error = found.unwrap_err();
                assert!(matches!(error, Error::Row { row: 1, .. }), "{estimate:?} {bad}: {error}");
            }
        }
    }

    #[test]
    fn a_small_temperature_does_not_overflow() {
        let table = sphere(&(0..VOCABULARY * D).map(|i| 1.0 + i as f32).collect::<Vec<_>>());
        let estimate = Estimate::Expectation { schedule: TemperatureSchedule::default(), normalise: Normalise::None };
        let logits = [3e4, -3e4, 2.9e4, 0.0, f32::NEG_INFINITY, 1.0, 2.0];
        let found = estimate
            .clean(2e-6, tensor(&logits, VOCABULARY), &TokenTable::new(vec![tensor(&table, D)]), refuse)
            .unwrap();
        let expected: Vec<f64> = table[..D].iter().map(|&x| f64::from(x)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn velocities_and_guidance() {
        let (x1, x) = ([1.0, -2.0], [0.5, 2.0]);
        assert_eq!(VelocityForm::Constant.velocity(&x1, &x, 0.75), [2.0, -16.0]);
        assert_eq!(VelocityForm::Edm.velocity(&x1, &x, 0.75), [8.0, -64.0]);
        assert_eq!(VelocityForm::Edm.velocity(&x1, &x, 1.0), [0.0, 0.0]);
        assert_eq!(guide(1.5, &[2.0, 0.0], &[1.0, 4.0]), [2.5, -2.0]);
        assert_eq!(guide(1.0, &[2.0, 0.0], &[1.0, 4.0]), [2.0, 0.0]);
    }
}
