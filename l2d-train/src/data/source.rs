//! Where the loop takes its examples from.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::batch::BatchOrder;
use super::dataset::Example;
use super::mix::MixedOrder;
use crate::error::Result;

/// Examples that can be asked for by number: a list in memory, or a file of tokens on the disk. The order in which a run sees
/// them follows from a seed and from how many it has seen, so that a resumed run goes on exactly where it was.
pub trait ExampleSource {
    /// Examples in one epoch.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The example of that number.
    ///
    /// # Errors
    /// It cannot be read from the disk.
    ///
    /// # Panics
    /// When `index` is not below the number of examples.
    fn get(&self, index: usize) -> Result<Cow<'_, Example>>;

    /// What recognises these examples and their shares: two sources with the same one train the same run.
    fn fingerprint(&self) -> [u8; 32];

    /// The order in which a run with that seed sees them.
    fn order(&self, seed: u64) -> Order {
        Order::Plain(BatchOrder::new(seed, self.len()))
    }
}

/// An order of examples over epochs.
#[derive(Debug, Clone)]
pub enum Order {
    /// All of them, shuffled anew in each epoch.
    Plain(BatchOrder),
    /// Several sources in given shares.
    Mixed(MixedOrder),
}

impl Order {
    /// The `count` examples after the first `seen`.
    pub fn take(&mut self, seen: u64, count: usize) -> Vec<usize> {
        match self {
            Self::Plain(order) => order.take(seen, count),
            Self::Mixed(order) => order.take(seen, count),
        }
    }
}

impl ExampleSource for Vec<Example> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn get(&self, index: usize) -> Result<Cow<'_, Example>> {
        Ok(Cow::Borrowed(&self[index]))
    }

    fn fingerprint(&self) -> [u8; 32] {
        fingerprint(self)
    }
}

impl ExampleSource for &[Example] {
    fn len(&self) -> usize {
        <[Example]>::len(self)
    }

    fn get(&self, index: usize) -> Result<Cow<'_, Example>> {
        Ok(Cow::Borrowed(&self[index]))
    }

    fn fingerprint(&self) -> [u8; 32] {
        fingerprint(self)
    }
}

fn fingerprint(examples: &[Example]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for example in examples {
        hash.update((example.tokens.len() as u64).to_le_bytes());
        hash.update((example.prompt as u64).to_le_bytes());
        hash.update(example.class.map_or(u64::MAX, |class| class as u64).to_le_bytes());
        for token in &example.tokens {
            hash.update(token.to_le_bytes());
        }
    }
    hash.finalize().into()
}
