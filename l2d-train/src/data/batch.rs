//! Which examples come when, and how they lie in a batch.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::dataset::Example;
use crate::objective::Labelled;

/// The order of examples over epochs: a shuffle that depends on the seed and the epoch alone, so that any place in it can be
/// found again from the number of examples seen.
#[derive(Debug, Clone)]
pub struct BatchOrder {
    seed: u64,
    examples: usize,
    epoch: u64,
    order: Vec<usize>,
}

impl BatchOrder {
    /// An order of `examples` examples.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(seed: u64, examples: usize) -> Self {
        assert!(examples > 0, "an order of no examples");
        let mut order = Self { seed, examples, epoch: 0, order: Vec::new() };
        order.shuffle(0);
        order
    }

    /// The `count` examples after the first `seen`, running on into the next epoch at the end of one.
    pub fn take(&mut self, seen: u64, count: usize) -> Vec<usize> {
        (seen..seen + count as u64)
            .map(|n| {
                let (epoch, index) = (n / self.examples as u64, (n % self.examples as u64) as usize);
                if epoch != self.epoch {
                    self.shuffle(epoch);
                }
                self.order[index]
            })
            .collect()
    }

    fn shuffle(&mut self, epoch: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(epoch);
        self.epoch = epoch;
        self.order = (0..self.examples).collect();
        self.order.shuffle(&mut rng);
    }
}

/// A micro-batch: rows padded on the right to the longest. The last token of an example is only ever a target, so it is left
/// out.
#[derive(Debug, Clone)]
pub struct Batch {
    tokens: Vec<Vec<u32>>,
    labels: Vec<Vec<(usize, u32)>>,
    classes: Option<Vec<usize>>,
}

impl Batch {
    /// Lays out some examples. Padding repeats a row's last token: nothing labelled ever sees it. Where classes are
    /// trained, `no_class` is given, and examples without a class get it.
    pub fn new(examples: &[&Example], no_class: Option<usize>) -> Self {
        let width = examples.iter().map(|example| example.tokens.len() - 1).max().unwrap_or(0);
        let tokens = examples
            .iter()
            .map(|example| {
                let mut row = example.tokens[..example.tokens.len() - 1].to_vec();
                let last = row.last().copied().unwrap_or(0);
                row.resize(width, last);
                row
            })
            .collect();
        let labels = examples.iter().map(|example| example.labels().collect()).collect();
        let classes =
            no_class.map(|no_class| examples.iter().map(|example| example.class.unwrap_or(no_class)).collect());
        Self { tokens, labels, classes }
    }

    /// The same with rows padded further, to a multiple of `multiple` positions: of few widths, a backend that compiles a
    /// kernel for each shape compiles few. Nothing labelled ever sees the padding.
    pub fn padded_to(mut self, multiple: usize) -> Self {
        let width = self.tokens.first().map_or(0, Vec::len).next_multiple_of(multiple);
        for row in &mut self.tokens {
            let last = row.last().copied().unwrap_or(0);
            row.resize(width, last);
        }
        self
    }

    /// The form the objectives take.
    pub fn labelled(&self) -> Labelled<'_> {
        Labelled { tokens: &self.tokens, labels: &self.labels, classes: self.classes.as_deref() }
    }
}

/// Splits a batch's examples into micro-batches of at most `size`, longest first, so that rows of like length lie together
/// and the hungriest micro-batch comes first. Returns indices into `examples`.
pub fn micro_batches(examples: &[&Example], size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(examples[i].tokens.len()));
    order.chunks(size).map(<[usize]>::to_vec).collect()
}
