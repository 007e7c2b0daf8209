//! `l2d eval --likelihood`: multiple choice by log-likelihood.

use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_eval::likelihood::{ByLikelihood, LikelihoodEvaluation, LikelihoodScorer, OptionLikelihood, ScoredQuestion};
use l2d_eval::report::{Published, Report, TaskReport};
use l2d_eval::task::{LikelihoodQuestion, Profile};
use l2d_eval::tasks::by_name;
use l2d_eval::{BoxError, RunSettings, Task, Tools};
use l2d_infer::decode::{Continuations, Decoder};
use l2d_infer::sampler::SamplingParams;
use l2d_train::ranks::Ranks;
use serde_json::json;

use super::identity::Identity;
use super::kept::ASKED;
use super::shared::{asked_alike, digests};
use super::{Rows, again, check_owners, each_once, journal_of, nothing_to_ask, outputs, published, read};
use crate::args::EvalArgs;
use crate::backend::BackendKind;
use crate::error::CliError;
use crate::model::{Model, Text, on_interrupt};
use crate::progress::EvalProgress;
use crate::ranks::settle;

/// What stands before the first question is scored.
struct Ready<B: Backend> {
    published: Option<Published>,
    tasks: Vec<ByLikelihood>,
    asked: Vec<Rows>,
    model: Model<B>,
    text: Text,
    identity: Identity,
}

impl<B: Backend> Ready<B> {
    fn new(args: &EvalArgs, backend: BackendKind, device: &Device<B>) -> Result<Self, CliError> {
        if args.decode.sampling() != SamplingParams::default() {
            return Err(CliError::Usage("--likelihood draws no tokens: leave out the flags of sampling".into()));
        }
        args.scoring.profile.parse::<Profile>()?;
        if args.batch_size == 0 {
            return Err(CliError::Usage("--batch-size must be at least 1".into()));
        }
        let published = published(&args.scoring)?;
        let mut tasks = Vec::new();
        for name in &args.tasks {
            let mut task = ByLikelihood::new(by_name(name, &Tools::default())?)?;
            if let Some(shots) = args.shots {
                task.set_shots(shots)?;
            }
            tasks.push(task);
        }
        let names: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
        each_once("--tasks", &names)?;
        let asked = tasks.iter().map(|task| read(args, task)).collect::<Result<Vec<_>, _>>()?;
        let (model, text) = Model::<B>::load(&args.model, &args.decode, backend, device)?;
        let identity = Identity::of(&args.model, model.lm(), &text, B::name(device))?;
        check_owners(args, &identity, tasks.iter().map(|task| task.name()))?;
        Ok(Self { published, tasks, asked, model, text, identity })
    }

    /// The tasks with their questions.
    fn evaluations(
        &self,
        args: &EvalArgs,
        scorer: &mut ModelScorer<'_, B>,
        ranks: &dyn Ranks,
    ) -> Result<Vec<LikelihoodEvaluation<'_>>, CliError> {
        let context = self.model.lm().config.max_positions;
        let mut evaluations = Vec::with_capacity(self.tasks.len());
        for (task, Rows { rows, shots, .. }) in self.tasks.iter().zip(&self.asked) {
            let selection = args.selection();
            let evaluation = LikelihoodEvaluation::prepare(task, rows, shots, &selection, context, scorer);
            evaluations.push(evaluation.map_err(|error| nothing_to_ask(error, ranks))?);
        }
        Ok(evaluations)
    }
}

/// Scores the options of every question, and keeps what it found as it goes.
pub(super) fn run<B: Backend>(
    args: &EvalArgs,
    backend: BackendKind,
    device: &Device<B>,
    ranks: &dyn Ranks,
) -> Result<(), CliError> {
    let ready = settle(ranks, Ready::<B>::new(args, backend, device))?;
    let cancel = on_interrupt()?;
    let decoder = Decoder::plain(ready.model.lm());
    let mut scorer = ModelScorer { decoder, text: &ready.text, cancel: &cancel, threads: backend.decode_threads() };
    let evaluations = settle(ranks, ready.evaluations(args, &mut scorer, ranks))?;
    let settings = |task: &ByLikelihood| {
        let generation = json!({ "asked": { "shots": task.shots() }, "model": ready.identity.key, "likelihood": true });
        RunSettings { samples: 1, batch_size: args.batch_size, seed: args.decode.seed, generation }
    };
    let each = || ready.tasks.iter().zip(&evaluations).zip(&ready.asked);
    let asked: Vec<_> = each()
        .map(|((task, evaluation), Rows { files, .. })| evaluation.asked(&settings(task), digests(task, files)))
        .collect();
    asked_alike(
        ranks,
        &ready.tasks.iter().map(|task| task.name()).collect::<Vec<_>>(),
        &asked,
        Profile::Harness.name(),
    )?;
    for ((task, evaluation), Rows { files, .. }) in each() {
        let mut journal = journal_of(args, task.name())?;
        let settings = settings(task);
        evaluation.asked(&settings, digests(task, files)).note(&args.out.join(format!("{}{ASKED}", task.name())))?;
        let mut progress = EvalProgress::new(task.name().to_owned());
        let result = evaluation.run(&settings, &mut scorer, &mut journal, &mut progress, &cancel)?;
        progress.finish();
        let interrupted = result.interrupted;
        if !result.samples.is_empty() {
            let runs = [(settings, result)];
            let hash = Some(evaluation.prompt_hash());
            let described = TaskReport::new(task, Profile::Harness, evaluation.counts(), hash, files);
            let runs = again::reports(task, Profile::Harness, &runs);
            let report = Report::new(described, ready.identity.description.clone(), runs);
            outputs::write(&args.out, &report, ready.published.as_ref(), args.part_of.is_none())?;
        }
        if interrupted {
            return Err(CliError::Interrupted);
        }
    }
    Ok(())
}

/// Scores options with the plain LM.
struct ModelScorer<'a, B: Backend> {
    decoder: Decoder<'a, B>,
    text: &'a Text,
    cancel: &'a AtomicBool,
    /// Threads to score a batch in, at most.
    threads: usize,
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
