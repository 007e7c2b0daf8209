//! Which examples are trained on, and which are held back.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::dataset::Example;
use super::mix::MixedOrder;
use super::source::{ExampleSource, Order};
use super::sources::SourceConfig;
use super::store::TokenStore;
use crate::error::Result;

/// Numbers of training and validation examples. The latter are those of every n-th conversation, so that they are spread
/// over the files, and whole conversations: a held-out reply is nowhere the context of a trained one. `conversations[i]` is
/// the conversation of example `i`; those of one lie together. About `fraction` of all is held back, at most `most`.
pub fn split(conversations: &[u32], fraction: f64, most: usize) -> (Vec<u32>, Vec<u32>) {
    let groups = conversations.chunk_by(|a, b| a == b).count();
    let per_conversation = conversations.len() as f64 / groups as f64;
    let wanted = (groups as f64 * fraction).round();
    let wanted = wanted.min(most as f64 / per_conversation).ceil() as usize;
    // One conversation at least is to be learnt from.
    let wanted = wanted.min(groups.saturating_sub(1));
    if wanted == 0 {
        return ((0..conversations.len() as u32).collect(), Vec::new());
    }
    let every = groups / wanted;
    let (mut training, mut validation) = (Vec::with_capacity(conversations.len()), Vec::new());
    let (mut held_out, mut first) = (0, 0);
    for (i, conversation) in conversations.chunk_by(|a, b| a == b).enumerate() {
        let examples = first..first + conversation.len() as u32;
        first = examples.end;
        let room = validation.len() + conversation.len() <= most;
        if i % every == every - 1 && held_out < wanted && room {
            held_out += 1;
            validation.extend(examples);
        } else {
            training.extend(examples);
        }
    }
    (training, validation)
}

/// Some of the examples of a store, to train on.
#[derive(Debug, Clone)]
pub struct Subset {
    store: Arc<TokenStore>,
    numbers: Vec<u32>,
    /// Which of the numbers are of which source, and its weight; empty where sources have none.
    parts: Vec<(Range<usize>, f64)>,
}

impl Subset {
    /// Those examples of a store, ascending. Weighted sources each get their share.
    pub fn new(store: Arc<TokenStore>, numbers: Vec<u32>, sources: &[SourceConfig]) -> Self {
        let mut parts = Vec::new();
        let mut first = 0;
        for of_source in
            numbers.chunk_by(|&a, &b| store.entries()[a as usize].source == store.entries()[b as usize].source)
        {
            let source = store.entries()[of_source[0] as usize].source as usize;
            let range = first..first + of_source.len();
            first = range.end;
            parts.extend(sources[source].weight.map(|weight| (range, weight)));
        }
        Self { store, numbers, parts }
    }
}

impl ExampleSource for Subset {
    fn len(&self) -> usize {
        self.numbers.len()
    }

    fn get(&self, index: usize) -> Result<Cow<'_, Example>> {
        self.store.get(self.numbers[index] as usize).map(Cow::Owned)
    }

    fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.store.fingerprint());
        for number in &self.numbers {
            hash.update(number.to_le_bytes());
        }
        for (range, weight) in &self.parts {
            hash.update((range.len() as u64).to_le_bytes());
            hash.update(weight.to_le_bytes());
        }
        hash.finalize().into()
    }

    fn order(&self, seed: u64) -> Order {
        if self.parts.is_empty() {
            Order::Plain(super::BatchOrder::new(seed, self.len()))
        } else {
            Order::Mixed(MixedOrder::new(seed, &self.parts))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_examples_are_spread_and_counted() {
        let conversations: Vec<u32> = (0..100).collect();
        let (training, validation) = split(&conversations, 0.1, 256);
        assert_eq!((training.len(), validation.len()), (90, 10));
        assert_eq!(validation[0], 9);
        assert!(split(&conversations, 0.0, 256).1.is_empty());
        assert_eq!(split(&[], 0.1, 256), (vec![], vec![]));
    }

    #[test]
    fn no_conversation_is_on_both_sides() {
        let conversations: Vec<u32> = (0..90).map(|i| i / 3).collect();
        let of = |numbers: &[u32]| numbers.iter().map(|&n| conversations[n as usize]).collect::<Vec<_>>();
        let (training, validation) = split(&conversations, 0.1, 256);
        assert_eq!(of(&validation), [9, 9, 9, 19, 19, 19, 29, 29, 29]);
        assert!(of(&training).iter().all(|learnt| !of(&validation).contains(learnt)));
        assert_eq!(training.len() + validation.len(), 90);
        assert_eq!(split(&conversations, 0.1, 4).1.len(), 3);
        assert!(split(&[0; 4], 0.1, 256).1.is_empty());
    }
}
