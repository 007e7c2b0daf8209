//! Where the decoder's random numbers come from. A seam: tests and comparisons put recorded numbers in.

use crate::error::Result;
use crate::rng::{self, Purpose};
use crate::sampler::{History, Sampler, inverse_cdf};

/// The token a random number is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The sequence's own number ([`Request::sequence`](super::Request::sequence)), not its place in a batch.
    pub sequence: u64,
    /// Tokens the sequence has generated before this one.
    pub token: u32,
}

/// Which of guidance's two velocities a draw is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// With the sequence's class; the only one where nothing is guided.
    Class,
    /// Without a class.
    NoClass,
}

/// The random numbers of a generation.
pub trait Noise {
    /// `count` standard normal numbers: the diffusion starts at `x_0 = sigma` times these.
    fn initial(&mut self, at: Place, count: usize) -> Vec<f64>;

    /// Draws from `softmax(logits / temperature)` for the velocity of slope call number `call` (counted over the token,
    /// the one at `t = 0` included).
    ///
    /// Must be a function of its arguments: a parallel decoder asks several times for one place, call and lane, out of order,
    /// and with logits of states that it then drops.
    ///
    /// # Errors
    /// Where the logits are no distribution.
    fn velocity_token(&mut self, at: Place, call: usize, lane: Lane, logits: &[f32], temperature: f64)
    -> Result<usize>;

    /// Draws the emitted token; `history` is the sequence so far.
    ///
    /// # Errors
    /// Where the logits are no distribution.
    fn emitted_token(&mut self, at: Place, sampler: &Sampler, logits: &[f32], history: History<'_>) -> Result<usize>;
}

/// Numbers that depend on a seed and the place alone (see [`rng::stream`]).
#[derive(Debug, Clone, Copy)]
pub struct SeededNoise {
    /// The seed.
    pub seed: u64,
}

impl Noise for SeededNoise {
    fn initial(&mut self, at: Place, count: usize) -> Vec<f64> {
        let mut rng = rng::stream(self.seed, at.sequence, Purpose::InitialNoise, at.token);
        rng::standard_normal(&mut rng, count)
    }

    fn velocity_token(
        &mut self,
        at: Place,
        call: usize,
        lane: Lane,
        logits: &[f32],
        temperature: f64,
    ) -> Result<usize> {
        let draw = 2 * call as u32 + u32::from(lane == Lane::NoClass);
        let mut rng = rng::stream_at(self.seed, at.sequence, Purpose::VelocityDraw, at.token, draw);
        inverse_cdf(logits, temperature, rng::uniform(&mut rng))
    }

    fn emitted_token(&mut self, at: Place, sampler: &Sampler, logits: &[f32], history: History<'_>) -> Result<usize> {
        let mut rng = rng::stream(self.seed, at.sequence, Purpose::FinalToken, at.token);
        sampler.sample(logits, history, &mut rng)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_call_and_lane_has_its_own_draw() {
        let logits = vec![0.0; 1 << 16];
        let mut noise = SeededNoise { seed: 3 };
        let at = Place { sequence: 1, token: 2 };
        let mut draw = |call, lane| noise.velocity_token(at, call, lane, &logits, 1.0).unwrap();
        let draws: Vec<usize> = (0..20).flat_map(|call| [draw(call, Lane::Class), draw(call, Lane::NoClass)]).collect();
        // Two of 40 draws from 65,536 coincide once in 84 seeds; this seed's do not.
        assert_eq!(draws.iter().collect::<HashSet<_>>().len(), 40);
        // In any order and any number, a draw is the same.
        assert_eq!(draw(7, Lane::NoClass), draws[15]);
        assert_eq!(draw(0, Lane::Class), draws[0]);
    }
}
