//! The learning rate over a run.

use serde::{Deserialize, Serialize};

/// How the learning rate rises at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// In proportion to the step.
    #[default]
    Linear,
    /// `ln(n + 1) / ln(warm-up steps)` for the n-th update: DeepSpeed's default, which the reference implementation used.
    Logarithmic,
}

/// How it falls afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Linearly to the lowest rate at the end of the run.
    #[default]
    Linear,
    /// Half a cosine to the lowest rate at the end of the run.
    Cosine,
    /// Not at all.
    Constant,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// The rate at both ends.
    pub floor: f64,
    /// Updates until the peak.
    pub warmup_steps: u64,
    /// Updates in all.
    pub total_steps: u64,
    /// Rise.
    pub warmup: Warmup,
    /// Fall.
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of the update after `done` updates. The first one is already above the floor, so that no batch is
    /// wasted.
    pub fn rate(&self, done: u64) -> f64 {
        self.at(if done < self.warmup_steps { done + 1 } else { done })
    }

    /// The curve itself at point `k`: the floor at 0, the peak at `warmup_steps`, the floor again at `total_steps`.
    /// (A logarithmic warm-up is at `ln(k + 1) / ln(warmup_steps)` of its height, as DeepSpeed has it.)
    pub fn at(&self, k: u64) -> f64 {
        let warmup = self.warmup_steps as f64;
        let height = if k < self.warmup_steps {
            match self.warmup {
                Warmup::Linear => k as f64 / warmup,
                Warmup::Logarithmic => (((k + 1) as f64).ln() / warmup.ln()).min(1.0),
            }
        } else {
            let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
            let progress = ((k - self.warmup_steps) as f64 / span).min(1.0);
            match self.decay {
                Decay::Linear => 1.0 - progress,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Constant => 1.0,
            }
        };
        self.floor + (self.peak - self.floor) * height
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(warmup: Warmup, decay: Decay) -> Schedule {
        Schedule { peak: 2.0, floor: 0.0, warmup_steps: 10, total_steps: 110, warmup, decay }
    }

    #[test]
    fn linear_rises_to_the_peak_and_falls_to_the_floor() {
        let s = schedule(Warmup::Linear, Decay::Linear);
        assert_eq!(s.rate(0), 0.2);
        assert_eq!(s.rate(9), 2.0);
        assert_eq!(s.rate(10), 2.0);
        assert!((s.rate(60) - 1.0).abs() < 1e-12);
        assert!((s.rate(109) - 0.02).abs() < 1e-12);
        assert_eq!(s.rate(1000), 0.0);
        assert_eq!(Schedule { floor: 0.5, ..s }.rate(1000), 0.5);
    }

    #[test]
    fn cosine_passes_half_way_and_constant_stays() {
        assert!((schedule(Warmup::Linear, Decay::Cosine).rate(60) - 1.0).abs() < 1e-12);
        assert_eq!(schedule(Warmup::Linear, Decay::Constant).rate(60), 2.0);
    }
}
