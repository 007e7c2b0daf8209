//! Host randomness. Every draw is a function of (seed, sequence, purpose, token) alone: which other sequences share the
//! batch, which backend computes and in what order things happen cannot change it.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream of random numbers is for. Streams of different purposes never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// `x_0`, the state the diffusion of a token starts from.
    InitialNoise,
    /// The guesses of the clean embedding on the way.
    VelocityDraw,
    /// The token emitted at the end.
    FinalToken,
    /// Which finished hypothesis of a search is shown.
    SearchChoice,
}

/// Log2 of the 32-bit words of a ChaCha stream set aside for one token; the period of 2^68 words holds 2^28 tokens.
const TOKEN_BITS: u32 = 40;

/// Log2 of the words set aside for one draw of a token, more than any vocabulary has entries.
const DRAW_BITS: u32 = 22;

/// Keeps these streams apart from those other crates may derive from the same user seed.
const DOMAIN: &[u8; 16] = b"l2d-infer tokens";

/// The generator for one token of one sequence and one purpose.
///
/// `token` counts the tokens the sequence has generated before this one.
pub fn stream(seed: u64, sequence: u64, purpose: Purpose, token: u32) -> ChaCha8Rng {
    stream_at(seed, sequence, purpose, token, 0)
}

/// The generator for draw `draw` of a token: draws do not depend on how many numbers the earlier ones took, nor on
/// whether they were made.
pub fn stream_at(seed: u64, sequence: u64, purpose: Purpose, token: u32, draw: u32) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&sequence.to_le_bytes());
    key[16..].copy_from_slice(DOMAIN);
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(match purpose {
        Purpose::InitialNoise => 0,
        Purpose::VelocityDraw => 1,
        Purpose::FinalToken => 2,
        Purpose::SearchChoice => 3,
    });
    rng.set_word_pos((u128::from(token) << TOKEN_BITS) + (u128::from(draw) << DRAW_BITS));
    rng
}

/// A uniform number in `[0, 1)`: the 53 high bits of one draw.
pub fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (-53f64).exp2()
}

/// `count` standard normal numbers, by Box and Muller's transform. The logarithm and the cosine are libm's, not the
/// platform's, so that a seed means the same numbers everywhere.
pub fn standard_normal(rng: &mut impl Rng, count: usize) -> Vec<f64> {
    let mut numbers = Vec::with_capacity(count + 1);
    while numbers.len() < count {
        let radius = (-2.0 * libm::log(1.0 - uniform(rng))).sqrt();
        let angle = std::f64::consts::TAU * uniform(rng);
        numbers.push(radius * libm::cos(angle));
        numbers.push(radius * libm::sin(angle));
    }
    numbers.truncate(count);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_depends_on_all_four_coordinates_and_nothing_else() {
        let first = |seed, sequence, purpose, token| stream(seed, sequence, purpose, token).next_u64();
        let here = first(1, 2, Purpose::VelocityDraw, 3);
        assert_eq!(here, first(1, 2, Purpose::VelocityDraw, 3));
        let others = [
            first(2, 2, Purpose::VelocityDraw, 3),
            first(1, 1, Purpose::VelocityDraw, 3),
            first(1, 2, Purpose::InitialNoise, 3),
            first(1, 2, Purpose::FinalToken, 3),
            first(1, 2, Purpose::VelocityDraw, 4),
            first(1, 2, Purpose::VelocityDraw, (1 << 28) - 1),
            stream_at(1, 2, Purpose::VelocityDraw, 3, 1).next_u64(),
        ];
        assert!(others.iter().all(|&other| other != here));
    }

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        let mut rng = stream(42, 7, Purpose::InitialNoise, 5);
        let numbers = standard_normal(&mut rng, 3);
        assert_eq!(numbers, PINNED, "a changed stream silently changes every recorded generation");
    }

    const PINNED: [f64; 3] = [0.29279822340422273, 0.3756891933727915, 0.18431560153287418];

    #[test]
    fn normal_numbers_have_normal_moments() {
        let numbers = standard_normal(&mut stream(0, 0, Purpose::InitialNoise, 0), 200_000);
        let count = numbers.len() as f64;
        let moment = |p: i32| numbers.iter().map(|x| x.powi(p)).sum::<f64>() / count;
        // Bounds of about five standard errors: sqrt(1, 2, 15, 96 / n).
        assert!(moment(1).abs() < 0.0112);
        assert!((moment(2) - 1.0).abs() < 0.016);
        assert!(moment(3).abs() < 0.044);
        assert!((moment(4) - 3.0).abs() < 0.11);
        assert!(numbers.iter().all(|x| x.is_finite()));
    }
}
