//! From data files to training and validation examples.

use l2d_core::text::{Ending, Message};
use l2d_train::TrainConfig;
use l2d_train::data::{Dataset, DatasetStats, Example, Template, Turn, read_conversations};

use crate::args::TrainArgs;
use crate::error::CliError;
use crate::model::Text;

/// Reads, renders, and holds back validation examples.
pub(crate) fn data(
    args: &TrainArgs,
    config: &TrainConfig,
    text: &Text,
    context: usize,
) -> Result<(Vec<Example>, Vec<Example>), CliError> {
    let rows = read_conversations(&args.data, &config.columns)?;
    let limit = config.max_tokens.min(context);
    let dataset = Dataset::build(&rows, text, &config.diffusion.classes, limit)?;
    let DatasetStats { conversations, examples, too_long, without_response, labels, .. } = dataset.stats;
    eprintln!(
        "{conversations} conversations: {examples} examples with {labels} labelled tokens; dropped {too_long} longer than {limit} \
         tokens{}; {without_response} without a reply",
        if context < config.max_tokens { " (the model's context)" } else { "" },
    );
    Ok(split(dataset.examples, config))
}

/// Training and validation examples. The latter are those of every n-th conversation, so that they are spread over the
/// files, and whole conversations: a held-out reply is nowhere the context of a trained one.
fn split(examples: Vec<Example>, config: &TrainConfig) -> (Vec<Example>, Vec<Example>) {
    let conversations = examples.chunk_by(|a, b| a.conversation == b.conversation).count();
    let per_conversation = examples.len() as f64 / conversations as f64;
    let wanted = (conversations as f64 * config.validation_fraction).round();
    let wanted = wanted.min(config.validation_examples as f64 / per_conversation).ceil() as usize;
    // One conversation at least is to be learnt from.
    let wanted = wanted.min(conversations - 1);
    if wanted == 0 {
        return (examples, Vec::new());
    }
    let every = conversations / wanted;
    let (mut training, mut validation) = (Vec::with_capacity(examples.len()), Vec::new());
    let mut held_out = 0;
    for (i, conversation) in examples.chunk_by(|a, b| a.conversation == b.conversation).enumerate() {
        let room = validation.len() + conversation.len() <= config.validation_examples;
        if i % every == every - 1 && held_out < wanted && room {
            held_out += 1;
            validation.extend_from_slice(conversation);
        } else {
            training.extend_from_slice(conversation);
        }
    }
    (training, validation)
}

impl Template for Text {
    /// The prompt is tokenised exactly as at inference. The reply is what the template puts after it, up to and with its
    /// end-of-turn token; what follows that (a newline, in ChatML) belongs to the next turn.
    fn render(&self, context: &[Turn], response: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        let template = self.template().map_err(|e| e.to_string())?;
        let mut messages: Vec<Message> = context.iter().map(|turn| Message::new(&turn.role, &turn.content)).collect();
        let prompt = template.render(&messages, Ending::GenerationPrompt).map_err(|e| e.to_string())?;
        messages.push(Message::assistant(response));
        let whole = template.render(&messages, Ending::Closed).map_err(|e| e.to_string())?;
        let reply =
            whole.strip_prefix(&prompt).ok_or("the template renders a reply that does not begin with its prompt")?;
        let prompt = self.tokenizer.encode(&prompt, false).map_err(|e| e.to_string())?;
        let mut reply = self.tokenizer.encode(reply, false).map_err(|e| e.to_string())?;
        match reply.iter().rposition(|token| self.stop_tokens.contains(token)) {
            Some(end) => reply.truncate(end + 1),
            None => return Err("the template does not end a reply with one of the model's end tokens".into()),
        }
        Ok((prompt, reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_examples_are_spread_and_counted() {
        let example = |i| Example { tokens: vec![i, i], prompt: 1, class: None, conversation: i as usize };
        let examples: Vec<Example> = (0..100).map(example).collect();
        let config = TrainConfig { validation_fraction: 0.1, ..TrainConfig::default() };
        let (training, validation) = split(examples.clone(), &config);
        assert_eq!((training.len(), validation.len()), (90, 10));
        assert_eq!(validation[0].tokens[0], 9);
        let none = TrainConfig { validation_fraction: 0.0, ..config };
        assert!(split(examples, &none).1.is_empty());
    }

    #[test]
    fn no_conversation_is_on_both_sides() {
        let example = |i| Example { tokens: vec![i, i], prompt: 1, class: None, conversation: i as usize / 3 };
        let examples: Vec<Example> = (0..90).map(example).collect();
        let config = TrainConfig { validation_fraction: 0.1, ..TrainConfig::default() };
        let (training, validation) = split(examples, &config);
        assert_eq!(validation.len(), 9);
        assert!(validation.iter().all(|held| training.iter().all(|learnt| learnt.conversation != held.conversation)));
        assert_eq!(
            validation.iter().map(|held| held.conversation).collect::<Vec<_>>(),
            [9, 9, 9, 19, 19, 19, 29, 29, 29]
        );
        assert_eq!(training.len() + validation.len(), 90);
        let few = TrainConfig { validation_examples: 4, ..config.clone() };
        assert_eq!(split((0..90).map(example).collect(), &few).1.len(), 3);
        let single = (0..4).map(|i| Example { conversation: 0, ..example(i) }).collect();
        assert!(split(single, &config).1.is_empty());
    }
}
