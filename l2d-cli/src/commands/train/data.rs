//! From what the command line names to training and validation examples.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use l2d_core::text::{Ending, Message, SegmentEncoder};
use l2d_train::TrainConfig;
use l2d_train::data::{
    CacheUse, DataSettings, Example, SourceConfig, Subset, Template, TokenStore, Turn, prepare, split,
};
use sha2::{Digest, Sha256};

use crate::error::CliError;
use crate::model::Text;
use crate::progress::ReadProgress;

/// Names the folder for what is kept between runs; overrides the platform's own.
const CACHE_VARIABLE: &str = "L2D_CACHE";

/// The sources of a run: those of the settings, of which the ones without a path are in the folder of `--data`; or, where the
/// settings have none, the paths of `--data` themselves.
pub(crate) fn sources(data: &[PathBuf], config: &TrainConfig) -> Result<Vec<SourceConfig>, CliError> {
    let usage = |text: &str| Err(CliError::Usage(text.into()));
    if config.sources.is_empty() {
        if data.is_empty() {
            return usage("--data: which files or folders? (Or name them in the settings, as [[sources]])");
        }
        return Ok(data.iter().map(SourceConfig::of).collect());
    }
    let mut sources = config.sources.clone();
    let all_named = sources.iter().all(|source| source.path.is_some());
    match (all_named, data) {
        (true, []) => {}
        // The settings a run has written down name what its command line named.
        (true, data) if sources.iter().map(|source| source.path.as_ref()).eq(data.iter().map(Some)) => {}
        (true, _) => return usage("--data: the settings' sources all name their paths, and others than these"),
        (false, [folder]) => {
            for source in &mut sources {
                source.path.get_or_insert_with(|| folder.clone());
            }
        }
        (false, _) => return usage("--data: give the one folder that the settings' sources without a path are in"),
    }
    Ok(sources)
}

/// The folder of tokenised data.
pub(crate) fn cache_folder(asked: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(folder) = asked {
        return Ok(folder.to_path_buf());
    }
    let root = match std::env::var_os(CACHE_VARIABLE).filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => dirs::cache_dir().map(|folder| folder.join("l2d")).ok_or_else(|| {
            CliError::Usage("this user has no folder for caches; name one with --data-cache or L2D_CACHE".into())
        })?,
    };
    Ok(root.join("tokens"))
}

/// Tokenises what the settings' sources name, or finds it tokenised, and says, if `aloud`, what became of the rows.
pub(crate) fn open(
    config: &TrainConfig,
    text: &Text,
    context: usize,
    cache: &Path,
    cancel: &AtomicBool,
    aloud: bool,
) -> Result<TokenStore, CliError> {
    let limit = config.max_tokens.min(context);
    let classes = config.classes_of_rows();
    let settings = DataSettings {
        sources: &config.sources,
        columns: &config.columns,
        classes: &classes,
        max_tokens: limit,
        bad_rows: config.bad_rows,
        cache,
        threads: l2d_core::cpu::num_threads(),
    };
    text.template()?;
    if !aloud {
        return Ok(prepare(&settings, text, cancel, &mut ())?.0);
    }
    let mut progress = ReadProgress::new();
    let outcome = prepare(&settings, text, cancel, &mut progress);
    let seconds = progress.finish();
    let (store, cache_use) = outcome?;
    let stats = store.stats();
    let how = match cache_use {
        CacheUse::Made => format!("tokenised in {seconds:.1} s"),
        CacheUse::Found => format!("found tokenised in {}", cache.display()),
        CacheUse::Remade { damage } => {
            format!("what was tokenised in {} was damaged ({damage}); made again in {seconds:.1} s", cache.display())
        }
    };
    eprintln!(
        "{} rows: {} examples with {} tokens, {} of them labelled; dropped: {} (limit: {limit} tokens{}); {how}",
        stats.rows,
        stats.examples,
        stats.tokens,
        stats.labels,
        stats.dropped_in_words(),
        if context < config.max_tokens { ", the model's context" } else { "" },
    );
    Ok(store)
}

/// Training examples, on the disk, and validation examples, in memory.
pub(crate) fn data(store: TokenStore, config: &TrainConfig) -> Result<(Subset, Vec<Example>), CliError> {
    let conversations: Vec<u32> = store.entries().iter().map(|entry| entry.conversation).collect();
    let (training, validation) = split(&conversations, config.validation_fraction, config.validation_examples);
    let store = Arc::new(store);
    let validation = validation.iter().map(|&n| store.get(n as usize)).collect::<Result<Vec<_>, _>>()?;
    Ok((Subset::new(store, training, &config.sources), validation))
}

impl Template for Text {
    fn render(&self, context: &[Turn], response: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        reply(self, &mut self.tokenizer.segments(), context, response)
    }

    fn render_all(&self, turns: &[Turn], replies: &[usize]) -> Result<Vec<(Vec<u32>, Vec<u32>)>, String> {
        let mut segments = self.tokenizer.segments();
        replies.iter().map(|&i| reply(self, &mut segments, &turns[..i], &turns[i].content)).collect()
    }

    fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        // A tokenizer that cannot be written out is none that `prepare` would get to use: it was read from such a file.
        hash.update(self.tokenizer.to_json().unwrap_or_default());
        hash.update(self.template.as_ref().map_or("", |template| template.source()));
        hash.update(format!("{:?} {:?}", self.special_tokens, self.stop_tokens));
        hash.finalize().into()
    }
}

/// The prompt is tokenised exactly as at inference. The reply is what the template puts after it, up to and with its
/// end-of-turn token; what follows that (a newline, in ChatML) belongs to the next turn.
fn reply(
    text: &Text,
    segments: &mut SegmentEncoder<'_>,
    context: &[Turn],
    response: &str,
) -> Result<(Vec<u32>, Vec<u32>), String> {
    let template = text.template().map_err(|e| e.to_string())?;
    let mut messages: Vec<Message> = context.iter().map(|turn| Message::new(&turn.role, &turn.content)).collect();
    let prompt = template.render(&messages, Ending::GenerationPrompt).map_err(|e| e.to_string())?;
    messages.push(Message::assistant(response));
    let whole = template.render(&messages, Ending::Closed).map_err(|e| e.to_string())?;
    let reply =
        whole.strip_prefix(&prompt).ok_or("the template renders a reply that does not begin with its prompt")?;
    let prompt = segments.encode(&prompt).map_err(|e| e.to_string())?;
    let mut reply = segments.encode(reply).map_err(|e| e.to_string())?;
    match reply.iter().rposition(|token| text.stop_tokens.contains(token)) {
        Some(end) => reply.truncate(end + 1),
        None => return Err("the template does not end a reply with one of the model's end tokens".into()),
    }
    Ok((prompt, reply))
}
