//! Several sources in given shares.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::batch::BatchOrder;

/// Examples of several sources, each with a share of every epoch. A source goes through all its examples, shuffled, before
/// it repeats one: one with a large share begins again within an epoch, one with a small share goes on in the next. Any place
/// can be found again from the number of examples seen.
#[derive(Debug, Clone)]
pub struct MixedOrder {
    seed: u64,
    parts: Vec<Part>,
    /// Which part each place of an epoch belongs to.
    places: Vec<u32>,
    epoch: u64,
    /// For each part, how many places before `counted_to` of this epoch are its own.
    counted: Vec<u64>,
    counted_to: usize,
}

#[derive(Debug, Clone)]
struct Part {
    first: usize,
    /// Places in one epoch.
    share: usize,
    order: BatchOrder,
}

impl MixedOrder {
    /// An order over parts of a list of examples, each with its weight. An epoch has as many places as the parts have
    /// examples; they are shared out by weight, every part getting at least one.
    ///
    /// # Panics
    /// When there is no part, a part is empty, or a weight is not a positive number.
    pub fn new(seed: u64, parts: &[(Range<usize>, f64)]) -> Self {
        assert!(!parts.is_empty(), "a mixture of nothing");
        let total: f64 = parts.iter().map(|(_, weight)| weight).sum();
        assert!(parts.iter().all(|(_, weight)| *weight > 0.0) && total.is_finite(), "weights must be positive numbers");
        let places: usize = parts.iter().map(|(range, _)| range.len()).sum();
        let parts: Vec<Part> = parts
            .iter()
            .zip(0u64..)
            .map(|((range, weight), number)| Part {
                first: range.start,
                share: ((places as f64 * weight / total).round() as usize).max(1),
                // Neighbouring seeds give unrelated streams.
                order: BatchOrder::new(seed.wrapping_add(number + 1), range.len()),
            })
            .collect();
        let mut order = Self { seed, counted: vec![0; parts.len()], parts, places: vec![], epoch: 0, counted_to: 0 };
        order.shuffle(0);
        order
    }

    /// Places in one epoch: the number of examples, up to rounding.
    pub fn epoch_len(&self) -> usize {
        self.places.len()
    }

    /// The `count` examples after the first `seen`.
    pub fn take(&mut self, seen: u64, count: usize) -> Vec<usize> {
        (seen..seen + count as u64).map(|n| self.at(n)).collect()
    }

    fn at(&mut self, n: u64) -> usize {
        let (epoch, place) = (n / self.places.len() as u64, (n % self.places.len() as u64) as usize);
        if epoch != self.epoch {
            self.shuffle(epoch);
        }
        if place < self.counted_to {
            self.counted.fill(0);
            self.counted_to = 0;
        }
        for &part in &self.places[self.counted_to..place] {
            self.counted[part as usize] += 1;
        }
        self.counted_to = place;
        let chosen = self.places[place] as usize;
        let part = &mut self.parts[chosen];
        let drawn = epoch * part.share as u64 + self.counted[chosen];
        part.first + part.order.take(drawn, 1)[0]
    }

    fn shuffle(&mut self, epoch: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch);
        self.epoch = epoch;
        self.places.clear();
        for (part, number) in self.parts.iter().zip(0u32..) {
            self.places.extend(std::iter::repeat_n(number, part.share));
        }
        self.places.shuffle(&mut rng);
        self.counted.fill(0);
        self.counted_to = 0;
    }
}
