//! `l2d train`: finetune a diffusion path, or the LM itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::Device;
use burn::tensor::backend::Backend;
use l2d_core::checkpoint::{Checkpoint, StoredDtype, save_adapter, write_atomically};
use l2d_core::diffusion::DiffusionPath;
use l2d_core::lm::Lm;
use l2d_core::parameters::trainable;
use l2d_core::text::{Ending, Message};
use l2d_train::data::{Dataset, DatasetStats, Example, Template, Turn, read_conversations};
use l2d_train::objective::{L2dObjective, LmObjective, add_lora};
use l2d_train::{L2dTask, LmTask, ObjectiveKind, Outcome, RunDir, Storage, Task, TrainConfig, Trained, train};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::args::{ObjectiveArg, TrainArgs};
use crate::commands::losses;
use crate::error::CliError;
use crate::export::export_model;
use crate::model::{Text, load_base, on_interrupt};
use crate::progress::TrainProgress;

/// Runs the command.
pub(crate) fn run<B: Backend>(args: &TrainArgs) -> Result<(), CliError> {
    let config = settings(args)?;
    config.check()?;
    if args.from_scratch && config.objective != ObjectiveKind::Full {
        return Err(CliError::Usage("--from-scratch trains all weights: add --objective full".into()));
    }
    if args.resume && !args.out.exists() {
        return Err(CliError::Usage(format!("--resume: there is no folder {}", args.out.display())));
    }
    let device = Device::<B>::default();
    let dir = RunDir::create(&args.out)?;
    let cancel = on_interrupt()?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let (lm, text) = if args.from_scratch {
        let checkpoint = Checkpoint::open_untrained(&args.model)?;
        let text = Text::of(&checkpoint);
        (Lm::<B>::init(&checkpoint.config, &mut rng, &device), text)
    } else {
        load_base::<B>(&args.model, &device)?
    };
    let (examples, validation) = data(args, &config, &text, lm.config.max_positions)?;
    let storage = Storage { dir, resume: args.resume, notes: notes(args) };
    // A folder in use keeps the settings it was started with; `train` refuses others.
    if storage.dir.checkpoints()?.is_empty() {
        let resolved = toml::to_string_pretty(&config).map_err(|e| CliError::Usage(format!("settings: {e}")))?;
        write_atomically(&args.out.join("config.toml"), |out| out.write_all(resolved.as_bytes()))?;
    }

    match config.objective {
        ObjectiveKind::L2d => {
            let diffusion = config.diffusion.clone().check(&args.out.join("config.toml"))?;
            let counts = diffusion.parameter_counts(&lm.config);
            eprintln!("trainable parameters: {} (base: {}, frozen)", counts.total(), lm.config.num_parameters());
            let path = DiffusionPath::init(&lm, &diffusion, &mut rng);
            let mut objective = L2dObjective::<Autodiff<B>>::new(lm);
            objective.timesteps = config.timesteps;
            objective.class_dropout = config.class_dropout;
            objective.head_chunk = config.head_chunk;
            let task = L2dTask::new(objective);
            let path = trainable(AutodiffModule::from_inner(path));
            let trained = go::<B, _>(&task, path, &examples, &validation, &config, &storage, &device, &cancel)?;
            let file = args.out.join("adapter.safetensors");
            let best = best_or_last(&task, &trained)?;
            save_adapter(&file, &best.valid(), task.base(), &notes(args), stored(args))?;
            finish(&trained, &args.out, &file)
        }
        ObjectiveKind::Full | ObjectiveKind::Lora => {
            let lm: Lm<Autodiff<B>> = AutodiffModule::from_inner(lm);
            let lm = if config.objective == ObjectiveKind::Full {
                // One table that receives both gradients, if the model is tied.
                let lm = if lm.config.tie_word_embeddings { Lm { head: None, ..lm } } else { lm };
                trainable(lm)
            } else {
                add_lora(lm, config.lora_rank, config.lora_alpha, &mut rng)
            };
            let task = LmTask { objective: LmObjective { head_chunk: config.head_chunk } };
            let trained = go::<B, _>(&task, lm, &examples, &validation, &config, &storage, &device, &cancel)?;
            let folder = args.out.join("model");
            let best = best_or_last::<B, _>(&task, &trained)?;
            export_model(&folder, &best.valid(), &text, stored(args))?;
            finish(&trained, &args.out, &folder)
        }
    }
}

/// The number format of what the run leaves behind; its checkpoints are always exact.
fn stored(args: &TrainArgs) -> StoredDtype {
    if args.f16 { StoredDtype::F16 } else { StoredDtype::F32 }
}

fn go<B: Backend, T: Task<Autodiff<B>>>(
    task: &T,
    model: T::Model,
    examples: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    storage: &Storage,
    device: &Device<B>,
    cancel: &AtomicBool,
) -> Result<Trained<T::Model>, CliError> {
    let mut progress = TrainProgress::new(config.total_steps(examples.len()));
    let trained = train(task, model, examples, validation, config, Some(storage), device, cancel, &mut progress)?;
    if trained.steps == 0 {
        eprintln!("stopped before the first update: nothing was trained, nothing is written");
        return Err(CliError::Interrupted);
    }
    Ok(trained)
}

/// The weights with the lowest validation loss, or the last ones where nothing was validated.
fn best_or_last<B: Backend, T: Task<Autodiff<B>>>(task: &T, trained: &Trained<T::Model>) -> Result<T::Model, CliError> {
    Ok(match &trained.best_checkpoint {
        Some(folder) => task.load(trained.model.clone(), folder)?,
        None => trained.model.clone(),
    })
}

fn finish<M>(trained: &Trained<M>, run: &Path, written: &Path) -> Result<(), CliError> {
    if let Some(loss) = trained.best_validation {
        eprintln!("lowest validation loss: {loss:.4}");
    }
    losses::plot(run)?;
    eprintln!("wrote {}", written.display());
    match trained.outcome {
        Outcome::Finished => Ok(()),
        Outcome::Interrupted => {
            eprintln!("stopped after {} updates; go on with the same command and --resume", trained.steps);
            Err(CliError::Interrupted)
        }
    }
}

/// The settings: defaults, then the TOML file, then --set, then flags.
fn settings(args: &TrainArgs) -> Result<TrainConfig, CliError> {
    let mut table = toml::Table::new();
    if let Some(path) = &args.config {
        let text = std::fs::read_to_string(path).map_err(|e| CliError::io(path, e))?;
        table = text.parse().map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))?;
    }
    for entry in &args.set {
        set(&mut table, entry)?;
    }
    let source = args.config.as_ref().map_or("the settings".to_string(), |path| path.display().to_string());
    let mut config: TrainConfig =
        table.try_into().map_err(|e: toml::de::Error| CliError::Usage(format!("{source}: {}", e.message())))?;
    if let Some(objective) = args.objective {
        config.objective = match objective {
            ObjectiveArg::L2d => ObjectiveKind::L2d,
            ObjectiveArg::Full => ObjectiveKind::Full,
            ObjectiveArg::Lora => ObjectiveKind::Lora,
        };
    }
    if let Some(epochs) = args.epochs {
        (config.epochs, config.steps) = (epochs, None);
    }
    config.steps = args.steps.or(config.steps);
    config.micro_batch_size = args.micro_batch_size.or(config.micro_batch_size);
    config.batch_size = args.batch_size.unwrap_or(config.batch_size);
    config.learning_rate = args.learning_rate.unwrap_or(config.learning_rate);
    config.max_tokens = args.max_tokens.unwrap_or(config.max_tokens);
    config.seed = args.seed.unwrap_or(config.seed);
    Ok(config)
}

/// Puts `a.b=value` into a table; the value is TOML, or a string where it is none.
fn set(table: &mut toml::Table, entry: &str) -> Result<(), CliError> {
    let bad = |reason: &str| CliError::Usage(format!("--set {entry}: {reason}"));
    let (key, value) = entry.split_once('=').ok_or_else(|| bad("expected KEY=VALUE"))?;
    let value = format!("x = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("x"))
        .unwrap_or_else(|| toml::Value::String(value.to_string()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().ok_or_else(|| bad("an empty key"))?;
    let mut place = table;
    for part in parts {
        place = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| bad("a part of the key is no table"))?;
    }
    place.insert(last.to_string(), value);
    Ok(())
}

/// Reads, renders, and holds back validation examples.
fn data(
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
pub(crate) fn split(examples: Vec<Example>, config: &TrainConfig) -> (Vec<Example>, Vec<Example>) {
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

fn notes(args: &TrainArgs) -> BTreeMap<String, String> {
    let name = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    BTreeMap::from([
        ("base_name".to_string(), name(&args.model)),
        ("data".to_string(), args.data.iter().map(|path| name(path)).collect::<Vec<_>>().join(", ")),
        ("l2d_version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
    ])
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
    fn dotted_keys_reach_nested_tables_and_plain_words_are_strings() {
        let mut table = toml::Table::new();
        set(&mut table, "diffusion.dim=64").expect("set");
        set(&mut table, "timesteps.distribution=cosmap").expect("set");
        set(&mut table, "diffusion.variant={kind=\"full\"}").expect("set");
        let config: TrainConfig = table.try_into().expect("valid");
        assert_eq!(config.diffusion.dim, 64);
        assert_eq!(config.timesteps.distribution, l2d_core::corruption::TimestepDistribution::Cosmap);
        assert!(set(&mut toml::Table::new(), "novalue").is_err());
    }

    #[test]
    fn a_variant_may_be_set_in_part_and_takes_no_other_kinds_settings() {
        use l2d_core::diffusion::Variant;
        let variant = |entries: &[&str]| {
            let mut table = toml::Table::new();
            for entry in entries {
                set(&mut table, entry).expect("set");
            }
            table.try_into::<TrainConfig>().map(|config| config.diffusion.variant).map_err(|e| e.to_string())
        };
        assert_eq!(variant(&["diffusion.variant.rank=16"]), Ok(Variant::Lora { rank: 16, alpha: 32.0 }));
        assert_eq!(variant(&["diffusion.variant.kind=scratch"]), Ok(Variant::Scratch));
        let both = variant(&["diffusion.variant={kind=\"full\", rank=3}"]).expect_err("refused");
        assert!(both.contains("`lora` alone"), "{both}");
        assert!(variant(&["diffusion.variant.size=3"]).expect_err("refused").contains("size"));
    }

    #[test]
    fn every_setting_is_documented() {
        fn keys(prefix: &str, table: &toml::Table, found: &mut Vec<String>) {
            for (key, value) in table {
                let key = format!("{prefix}{key}");
                match value {
                    toml::Value::Table(inner) => keys(&format!("{key}."), inner, found),
                    _ => found.push(key),
                }
            }
        }
        // Settings that are absent by default have no key in the table: give them one.
        let mut config = TrainConfig { steps: Some(1), micro_batch_size: Some(1), ..TrainConfig::default() };
        config.columns.class = Some("class".into());
        config.diffusion.translation_hidden = Some(1);
        let mut found = Vec::new();
        keys("", &toml::Table::try_from(&config).expect("a table"), &mut found);
        let page = include_str!("../../../docs/training.md");
        let missing: Vec<_> = found.iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
        assert!(found.len() > 35 && missing.is_empty(), "{missing:?} of {}", found.len());
    }

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
