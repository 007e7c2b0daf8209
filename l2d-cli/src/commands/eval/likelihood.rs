//! `l2d eval --likelihood`: multiple choice by log-likelihood.

use std::sync::atomic::AtomicBool;

use burn::tensor::backend::Backend;
use l2d_eval::BoxError;
use l2d_eval::likelihood::{LikelihoodScorer, OptionLikelihood, ScoredQuestion};
use l2d_eval::task::LikelihoodQuestion;
use l2d_infer::decode::{Continuations, Decoder};

use crate::model::Text;

/// Scores options with the plain LM.
pub(super) struct ModelScorer<'a, B: Backend> {
    pub(super) decoder: Decoder<'a, B>,
    pub(super) text: &'a Text,
    pub(super) cancel: &'a AtomicBool,
    /// Threads to score a batch in, at most.
    pub(super) threads: usize,
}

impl<B: Backend> ModelScorer<'_, B> {
    /// Context and options as tokens. As in lm-evaluation-harness (0.4.13, `_encode_pair`) spaces at the context's end belong to the
    /// option, the tokenizer adds what special tokens it adds by itself (Llama's beginning of a text), and an option's tokens are
    /// those of context and option together, less as many as the context alone has.
    fn tokens(&self, question: &LikelihoodQuestion) -> Result<Vec<Continuations>, BoxError> {
        let bare = question.context.trim_end();
        let spaces = &question.context[bare.len()..];
        let context = self.text.tokenizer.encode(bare, true)?;
        let mut groups: Vec<Continuations> = Vec::new();
        for option in &question.continuations {
            let whole = self.text.tokenizer.encode(&format!("{bare}{spaces}{option}"), true)?;
            let (context, option) = whole.split_at(context.len().min(whole.len()));
            // Almost always all options share one context.
            match groups.last_mut().filter(|group| group.context == context) {
                Some(group) => group.options.push(option.to_vec()),
                None => groups.push(Continuations { context: context.to_vec(), options: vec![option.to_vec()] }),
            }
        }
        Ok(groups)
    }

    fn score_some(&self, questions: &[&LikelihoodQuestion]) -> Result<Vec<ScoredQuestion>, BoxError> {
        let mut scored = Vec::with_capacity(questions.len());
        for question in questions {
            let groups = self.tokens(question)?;
            let Some(likelihoods) = self.decoder.likelihoods(&groups, Some(self.cancel))? else { break };
            let options = likelihoods.into_iter().flatten();
            let options = options
                .map(|option| OptionLikelihood { log_probability: option.log_probability, tokens: option.tokens });
            let context_tokens = groups.first().map_or(0, |group| group.context.len());
            scored.push(ScoredQuestion { options: options.collect(), context_tokens });
        }
        Ok(scored)
    }
}

impl<B: Backend> LikelihoodScorer for ModelScorer<'_, B> {
    fn length(&mut self, question: &LikelihoodQuestion) -> Result<usize, BoxError> {
        let groups = self.tokens(question)?;
        let lengths = groups.iter().flat_map(|group| group.options.iter().map(|o| group.context.len() + o.len()));
        // The last token is predicted and does not go in.
        Ok(lengths.max().unwrap_or(0).saturating_sub(1))
    }

    fn score(&mut self, questions: &[&LikelihoodQuestion]) -> Result<Vec<ScoredQuestion>, BoxError> {
        let threads = self.threads.min(questions.len()).max(1);
        if threads == 1 {
            return self.score_some(questions);
        }
        let share = questions.len().div_ceil(threads);
        let this = &*self;
        let parts: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> =
                questions.chunks(share).map(|part| (part.len(), scope.spawn(move || this.score_some(part)))).collect();
            running.into_iter().map(|(asked, thread)| (asked, thread.join())).collect()
        });
        let mut all = Vec::with_capacity(questions.len());
        for (asked, part) in parts {
            let part = part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let whole = part.len() == asked;
            all.extend(part);
            // Called off: what comes after a gap is not these questions'.
            if !whole {
                break;
            }
        }
        Ok(all)
    }
}
