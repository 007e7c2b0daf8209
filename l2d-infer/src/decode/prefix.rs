//! Prompts that were computed lately. A prompt that begins like one of them starts from there: the examples before every
//! question of a task, several samples of one prompt, the turns of a conversation.

use burn::tensor::backend::Backend;
use l2d_core::lm::KvCache;

/// Prompts remembered. Two, so that two threads that decode different tasks do not forget each other's.
const REMEMBERED: usize = 2;

/// The latest prompts with their keys and values, the newest last.
#[derive(Debug)]
pub(super) struct Prefixes<B: Backend>(Vec<(Vec<u32>, KvCache<B>)>);

impl<B: Backend> Default for Prefixes<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: Backend> Prefixes<B> {
    /// A cache of one sequence that holds the longest known beginning of `tokens`, the last token always left out: its
    /// hidden state is wanted and was not kept.
    pub(super) fn longest(&self, tokens: &[u32]) -> Option<KvCache<B>> {
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        let (shared, cache) =
            self.0.iter().map(|(known, cache)| (shared(known, usable), cache)).max_by_key(|(shared, _)| *shared)?;
        (shared > 0).then(|| {
            let mut fork = cache.clone();
            fork.truncate(shared);
            fork
        })
    }

    /// Remembers a prompt; `cache` holds it as its one sequence.
    pub(super) fn remember(&mut self, tokens: &[u32], cache: &KvCache<B>) {
        // One that the new prompt goes on from tells nothing more.
        self.0.retain(|(known, _)| shared(known, tokens) < known.len());
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push((tokens.to_vec(), cache.clone()));
    }
}

/// How many tokens two texts begin with in common.
fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
