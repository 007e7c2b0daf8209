//! How hot the guess of the clean embedding is drawn while the diffusion goes on.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ode::{FixedGrid, Solver};

/// A temperature as a function of diffusion time. Zero means arg-max.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TemperatureSchedule {
    /// The same at all times.
    Constant {
        /// The temperature; 0 is the arg-max.
        temperature: f64,
    },
    /// `(1 - u/end)^power` while `u < end`, 0 (arg-max) from there on.
    Polynomial {
        /// The exponent, above 0.
        power: f64,
        /// The time from which the arg-max is taken, in `(0, 1]`.
        end: f64,
    },
}

/// How far two ways to compute one time may be apart.
const ROUNDING: f64 = 1e-6;

impl Default for TemperatureSchedule {
    /// Untempered, as the paper samples.
    fn default() -> Self {
        Self::Constant { temperature: 1.0 }
    }
}

impl TemperatureSchedule {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the number out of range.
    pub fn check(self) -> Result<Self> {
        match self {
            Self::Constant { temperature } if !(temperature.is_finite() && temperature >= 0.0) => {
                Err(Error::parameter("velocity temperature", temperature, "a finite number, 0 (arg-max) or above"))
            }
            Self::Polynomial { power, .. } if !(power.is_finite() && power > 0.0) => {
                Err(Error::parameter("power of the cooling", power, "a finite number above 0"))
            }
            Self::Polynomial { end, .. } if !(end > 0.0 && end <= 1.0) => {
                Err(Error::parameter("end of the cooling", end, "a time in (0, 1]"))
            }
            checked => Ok(checked),
        }
    }

    /// The temperature at time `u`.
    pub fn at(&self, u: f64) -> f64 {
        match *self {
            Self::Constant { temperature } => temperature,
            // Times come from grids in f32: what is within their rounding of the end is the end, which a small power would
            // otherwise make hot again.
            Self::Polynomial { power, end } if u < end - ROUNDING => (1.0 - u / end).powf(power),
            Self::Polynomial { .. } => 0.0,
        }
    }
}

/// How far ahead of `t` a schedule is read on this grid: half a step for midpoint, a whole one for the others. With a
/// schedule that ends at `T` the last velocity is then an arg-max, never an average of two tokens (METHOD, section 7).
///
/// The length is that of the last step, whose end is the time that matters.
pub fn temperature_lead(grid: &FixedGrid) -> f64 {
    match grid.solver() {
        Solver::Midpoint => grid.last_step() / 2.0,
        Solver::Euler | Solver::Heun2 | Solver::Heun3 | Solver::Rk4 | Solver::Rk4Classic => grid.last_step(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::velocity::COLDEST;

    #[test]
    fn the_last_velocity_of_a_schedule_that_ends_at_t_is_an_argmax() {
        let cases = Solver::ALL.into_iter().flat_map(|solver| [1.0, 0.1].map(|power| (solver, power)));
        for ((solver, power), end) in cases.flat_map(|case| [1.0, 0.9, 0.3].map(|end| (case, end))) {
            for points in 2..40 {
                let grid = FixedGrid::new(solver, points, end).unwrap();
                let schedule = TemperatureSchedule::Polynomial { power, end };
                let last = *grid.slope_times().last().unwrap();
                if matches!(solver, Solver::Euler | Solver::Midpoint) {
                    let coldest = schedule.at(last + temperature_lead(&grid));
                    assert!(coldest <= COLDEST, "{solver} {points}: {coldest}");
                }
                let first = schedule.at(temperature_lead(&grid));
                assert!((0.0..1.0).contains(&first));
            }
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let polynomial = |power, end| TemperatureSchedule::Polynomial { power, end }.check();
        assert!(polynomial(2.0, 0.8).is_ok());
        assert!(polynomial(0.0, 0.8).unwrap_err().to_string().contains("power"));
        assert!(polynomial(1.0, 0.0).unwrap_err().to_string().contains("end"));
        assert!(polynomial(1.0, f64::NAN).is_err());
        assert!(TemperatureSchedule::Constant { temperature: -0.5 }.check().is_err());
        assert!(TemperatureSchedule::Constant { temperature: f64::INFINITY }.check().is_err());
        assert!(TemperatureSchedule::Constant { temperature: 0.0 }.check().is_ok());
    }
}
