//! From a target to a noisy diffusion token, and which times are trained (METHOD section 2).

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// `x_t = t x_1 + (1 - t) x_0` for rows of targets `x_1` and scaled noise `x_0`, `[rows, d]` each, and times `[rows, 1]`.
pub fn corrupt<B: Backend>(target: Tensor<B, 2>, noise: Tensor<B, 2>, t: Tensor<B, 2>) -> Tensor<B, 2> {
    target * t.clone() + noise * (t * -1.0 + 1.0)
}

/// The distribution of training times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepDistribution {
    /// `t ~ U(0, 1)`.
    #[default]
    Uniform,
    /// `t = 1 - 1 / (tan(pi u / 2) + 1)`, `u ~ U(0, 1)`: denser in the middle.
    Cosmap,
}

/// How training times are drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimestepSampling {
    /// The distribution.
    pub distribution: TimestepDistribution,
    /// Minimum noise `m` in [0, 1): times are scaled by `1 - m`.
    pub minimum_noise: f64,
}

impl TimestepSampling {
    /// One time in [0, 1]: 1 where the last of the numbers below it rounds up.
    pub fn sample(&self, rng: &mut impl Rng) -> f32 {
        self.time(rng.random())
    }

    /// The time that a uniform number `u` in [0, 1] stands for.
    pub fn time(&self, u: f64) -> f32 {
        let t = match self.distribution {
            TimestepDistribution::Uniform => u,
            TimestepDistribution::Cosmap => 1.0 - 1.0 / ((std::f64::consts::FRAC_PI_2 * u).tan() + 1.0),
        };
        (t * (1.0 - self.minimum_noise)) as f32
    }
}
