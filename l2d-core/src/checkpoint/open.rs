//! A whole base model on disk: weights, architecture, tokenizer, chat template, generation defaults.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{GgufSource, SafetensorsSource, TensorSource};
use crate::config::{LmConfig, OneOrMany};
use crate::error::{Error, Result};
use crate::text::{ChatTemplate, TemplateTokens, TextTokenizer};

/// A base LM ready to be loaded.
pub struct Checkpoint {
    /// The architecture.
    pub config: LmConfig,
    /// The weights.
    pub tensors: Box<dyn TensorSource>,
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    /// The chat template, if the model has one.
    pub template: Option<ChatTemplate>,
    /// The special tokens as the tokenizer's config spells them.
    pub special_tokens: TemplateTokens,
    /// How the model's makers decode.
    pub generation: GenerationDefaults,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Padding token. Positions are masked by length, never by this id.
    pub pad_token_id: Option<u32>,
}

/// `generation_config.json`, as far as it concerns decoding one sequence. `None` = the file says nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// Every token that ends an answer.
    #[serde(rename = "eos_token_id")]
    pub eos_token_ids: Vec<u32>,
    /// `false` = greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus mass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Number of candidates kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Divisor of the logits of tokens seen before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawGeneration {
    eos_token_id: Option<OneOrMany>,
    pad_token_id: Option<OneOrMany>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    repetition_penalty: Option<f64>,
}

/// `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawTokenizerConfig {
    bos_token: Option<RawToken>,
    eos_token: Option<RawToken>,
    pad_token: Option<RawToken>,
    unk_token: Option<RawToken>,
    chat_template: Option<RawTemplate>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawToken {
    Text(String),
    Added { content: String },
}

impl RawToken {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl RawTemplate {
    /// The only one, or the one named `default`.
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(text) => Some(text),
            Self::Named(list) => list.into_iter().find(|named| named.name == "default").map(|named| named.template),
        }
    }
}

/// A checkpoint compiled into the binary: the texts of a Hugging Face folder's files and its one weight file.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedCheckpoint {
    /// Stands for the path in errors.
    pub name: &'static str,
    /// `config.json`.
    pub config: &'static str,
    /// `model.safetensors`.
    pub weights: &'static [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'static str,
    /// `tokenizer_config.json`.
    pub tokenizer_config: &'static str,
    /// `generation_config.json`.
    pub generation_config: Option<&'static str>,
}

/// The weights of a model that has none yet.
struct NoTensors(PathBuf);

impl TensorSource for NoTensors {
    fn path(&self) -> &Path {
        &self.0
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn shape(&self, _name: &str) -> Option<Vec<usize>> {
        None
    }

    fn dtype(&self, _name: &str) -> Option<String> {
        None
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        Err(Error::MissingTensor { path: self.0.clone(), name: name.to_string() })
    }
}

/// What lies at a path.
enum Located {
    HuggingFace(PathBuf),
    Gguf(PathBuf),
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a GGUF file, or a folder that holds one GGUF file and no `config.json`. Weights are
    /// mapped, not read.
    pub fn open(path: &Path) -> Result<Self> {
        match locate(path)? {
            Located::Gguf(file) => Self::from_gguf(GgufSource::open(&file)?),
            Located::HuggingFace(folder) => {
                let (config, tensors) = open_folder(&folder)?;
                Texts::read(&folder)?.assemble(config, tensors)
            }
        }
    }

    /// A Hugging Face folder without weights, for a model that is to be trained from scratch: [`Checkpoint::tensors`] is
    /// empty.
    pub fn open_untrained(folder: &Path) -> Result<Self> {
        let config_path = folder.join("config.json");
        let text = std::fs::read_to_string(&config_path).map_err(|e| Error::io(&config_path, e))?;
        let config = LmConfig::from_json(&text, &config_path)?;
        Texts::read(folder)?.assemble(config, Box::new(NoTensors(folder.to_path_buf())))
    }

    /// A checkpoint whose files are in memory.
    pub fn embedded(files: &EmbeddedCheckpoint) -> Result<Self> {
        let path = Path::new(files.name);
        let config = LmConfig::from_json(files.config, path)?;
        let tensors = Box::new(SafetensorsSource::from_bytes(files.weights, path)?);
        let generation = files.generation_config.map(|text| parse_json(text, path)).transpose()?;
        let texts = Texts {
            tokenizer: TextTokenizer::from_json(files.tokenizer)?,
            tokenizer_config: parse_json(files.tokenizer_config, path)?,
            template: None,
            generation: generation.unwrap_or_default(),
        };
        texts.assemble(config, tensors)
    }

    /// A checkpoint from an opened GGUF file.
    pub fn from_gguf(source: GgufSource) -> Result<Self> {
        let config = source.config().clone();
        let tokenizer = TextTokenizer::from_bpe(&source.vocabulary()?)?;
        let pad_token_id = source.pad_token_id()?;
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
        let tokens = TemplateTokens {
            bos: spelling(config.bos_token_id),
            eos: spelling(config.eos_token_ids.first().copied()),
            pad: spelling(pad_token_id),
            unk: None,
        };
        let template = source.chat_template()?.map(|text| ChatTemplate::new(text, tokens.clone())).transpose()?;
        let generation =
            GenerationDefaults { eos_token_ids: config.eos_token_ids.clone(), ..GenerationDefaults::default() };
        let bos_token_id = config.bos_token_id;
        let special_tokens = tokens;
        let tensors = Box::new(source);
        Self { config, tensors, tokenizer, template, special_tokens, generation, bos_token_id, pad_token_id }.check()
    }

    /// The tokenizer, the template and the embedding table must fit each other.
    fn check(self) -> Result<Self> {
        let (tokens, rows) = (self.tokenizer.vocab_size(), self.config.vocab_size);
        if tokens > rows {
            return Err(Error::Tokenizer(format!(
                "{}: the tokenizer has {tokens} tokens, the model's embedding table {rows} rows; they belong to \
                 different models",
                self.tensors.path().display()
            )));
        }
        if let Some(template) = &self.template {
            template.check_tokens(&self.tokenizer)?;
        }
        Ok(self)
    }
}

/// The architecture and the weights alone, for a checkpoint without a tokenizer. Accepts what [`Checkpoint::open`] does.
pub fn open_weights(path: &Path) -> Result<(LmConfig, Box<dyn TensorSource>)> {
    match locate(path)? {
        Located::HuggingFace(folder) => open_folder(&folder),
        Located::Gguf(file) => {
            let source = GgufSource::open(&file)?;
            Ok((source.config().clone(), Box::new(source)))
        }
    }
}

fn open_folder(folder: &Path) -> Result<(LmConfig, Box<dyn TensorSource>)> {
    let config_path = folder.join("config.json");
    let text = std::fs::read_to_string(&config_path).map_err(|e| Error::io(&config_path, e))?;
    let config = LmConfig::from_json(&text, &config_path)?;
    Ok((config, Box::new(SafetensorsSource::open(folder)?)))
}

fn locate(path: &Path) -> Result<Located> {
    let at = |e| Error::io(path, e);
    if !std::fs::metadata(path).map_err(at)?.is_dir() {
        let mut magic = Vec::new();
        std::fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic)).map_err(at)?;
        if magic == b"GGUF" {
            return Ok(Located::Gguf(path.to_path_buf()));
        }
        let reason = "its magic is not `GGUF`; for safetensors give the folder that also holds config.json";
        return Err(Error::format(path, "gguf", reason));
    }
    if path.join("config.json").exists() {
        return Ok(Located::HuggingFace(path.to_path_buf()));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(at)? {
        let file = entry.map_err(at)?.path();
        if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            files.push(file);
        }
    }
    match files.as_slice() {
        [] => {
            let reason = "the folder has neither this nor a .gguf file";
            Err(Error::io(path.join("config.json"), io::Error::new(io::ErrorKind::NotFound, reason)))
        }
        [file] => Ok(Located::Gguf(file.clone())),
        several => {
            let reason = format!("the folder holds {} .gguf files and no config.json; name one of them", several.len());
            Err(Error::io(path, io::Error::new(io::ErrorKind::InvalidInput, reason)))
        }
    }
}

/// What goes with the weights.
struct Texts {
    tokenizer: TextTokenizer,
    tokenizer_config: RawTokenizerConfig,
    /// `chat_template.jinja`, which wins over the one in `tokenizer_config.json`.
    template: Option<String>,
    generation: RawGeneration,
}

impl Texts {
    fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            tokenizer: TextTokenizer::from_file(&folder.join("tokenizer.json"))?,
            tokenizer_config: read_optional_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default(),
            template: read_optional(&folder.join("chat_template.jinja"))?,
            generation: read_optional_json(&folder.join("generation_config.json"))?.unwrap_or_default(),
        })
    }

    fn assemble(self, config: LmConfig, tensors: Box<dyn TensorSource>) -> Result<Checkpoint> {
        let Self { tokenizer, tokenizer_config, template, generation } = self;
        let tokens = TemplateTokens {
            bos: tokenizer_config.bos_token.map(RawToken::into_text),
            eos: tokenizer_config.eos_token.map(RawToken::into_text),
            pad: tokenizer_config.pad_token.map(RawToken::into_text),
            unk: tokenizer_config.unk_token.map(RawToken::into_text),
        };
        let id = |token: &Option<String>| token.as_deref().and_then(|token| tokenizer.token_to_id(token));
        let pad_token_id = id(&tokens.pad);
        let pad_token_id = pad_token_id.or(generation.pad_token_id.and_then(|ids| ids.into_vec().first().copied()));
        let bos_token_id = id(&tokens.bos).or(config.bos_token_id);

        // The tokenizer's own end token counts as well: makers often name the end of a turn in only one place.
        let mut eos_token_ids = match generation.eos_token_id {
            Some(ids) => ids.into_vec(),
            None => config.eos_token_ids.clone(),
        };
        eos_token_ids.extend(id(&tokens.eos));
        let mut seen = std::collections::HashSet::new();
        eos_token_ids.retain(|&id| seen.insert(id));

        let template = template.or(tokenizer_config.chat_template.and_then(RawTemplate::into_default));
        let template = template.map(|source| ChatTemplate::new(&source, tokens.clone())).transpose()?;
        let generation = GenerationDefaults {
            eos_token_ids,
            do_sample: generation.do_sample,
            temperature: generation.temperature,
            top_p: generation.top_p,
            top_k: generation.top_k,
            repetition_penalty: generation.repetition_penalty,
        };
        let special_tokens = tokens;
        Checkpoint { config, tensors, tokenizer, template, special_tokens, generation, bos_token_id, pad_token_id }
            .check()
    }
}

fn read_optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

fn read_optional_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    read_optional(path)?.map(|text| parse_json(&text, path)).transpose()
}

fn parse_json<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::format(path, "json", e.to_string()))
}
