//! A model as the commands use it: weights, text, and how tokens are drawn.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::tensor::FloatDType;
use burn::tensor::backend::Backend;
use clap::ValueEnum;
use l2d_core::L2d;
use l2d_core::checkpoint::{Checkpoint, GenerationDefaults, load_adapter, merge_peft};
use l2d_core::cpu::{CacheFormat, WeightFormat};
use l2d_core::diffusion::{DiffusionPath, RawDiffusionConfig};
use l2d_core::lm::Lm;
use l2d_core::text::{ChatTemplate, Ending, Message, TemplateTokens, TextTokenizer};
use l2d_eval::task;
use l2d_infer::decode::{DecodeMode, Decoder, Detokenizer, DiffusionParams, TextStream};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::adapters::largest_tensor;
use crate::args::{CacheKind, DecodeArgs, ModelArgs, WeightsKind};
use crate::backend::BackendKind;
use crate::error::CliError;
use crate::generator::Guide;

/// Everything about a base model but its weights.
pub(crate) struct Text {
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// Tokens that end an answer, those of the generation settings first.
    pub(crate) stop_tokens: Vec<u32>,
    /// The special tokens as the tokenizer's config spells them.
    pub(crate) special_tokens: TemplateTokens,
    /// How the model's makers decode; of these the commands use the end tokens alone.
    pub(crate) generation: GenerationDefaults,
}

impl Text {
    /// The text side of a checkpoint.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let mut stop_tokens = checkpoint.generation.eos_token_ids.clone();
        for &token in &checkpoint.config.eos_token_ids {
            if !stop_tokens.contains(&token) {
                stop_tokens.push(token);
            }
        }
        Self {
            tokenizer: checkpoint.tokenizer.clone(),
            template: checkpoint.template.clone(),
            stop_tokens,
            special_tokens: checkpoint.special_tokens.clone(),
            generation: checkpoint.generation.clone(),
        }
    }

    /// A conversation as the prompt of the assistant's next turn; of the rest of its turn where it has begun one.
    pub(crate) fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, CliError> {
        // The template writes out every special token itself.
        Ok(self.tokenizer.encode(&self.rendered(messages)?, false)?)
    }

    /// [`Text::prompt`] as text.
    pub(crate) fn rendered(&self, messages: &[Message]) -> Result<String, CliError> {
        let ending = match messages.last() {
            Some(last) if last.role == "assistant" => Ending::ContinueFinalMessage,
            _ => Ending::GenerationPrompt,
        };
        Ok(self.template()?.render(messages, ending)?)
    }

    /// A text as it is, with the beginning-of-sequence token where the tokenizer adds one.
    pub(crate) fn raw(&self, text: &str) -> Result<Vec<u32>, CliError> {
        Ok(self.tokenizer.encode(text, true)?)
    }

    /// The chat template.
    pub(crate) fn template(&self) -> Result<&ChatTemplate, CliError> {
        self.template.as_ref().ok_or_else(|| l2d_core::Error::ChatTemplate("this model has none".into()).into())
    }
}

impl Detokenizer for Text {
    fn begin(&self) -> Box<dyn TextStream + '_> {
        self.tokenizer.begin()
    }
}

/// Loads a base LM and its text side; `packed` for the CPU's own kernels, as the file stores it, or with a PEFT adapter
/// merged in, which makes it f32.
pub(crate) fn load_base<B: Backend>(
    path: &Path,
    lora: Option<&Path>,
    device: &B::Device,
    packed: bool,
) -> Result<(Lm<B>, Text), CliError> {
    if let Some(lora) = lora {
        let (lm, text) = load_base::<B>(path, None, device, false)?;
        let lm = merge_peft(lora, lm)?.no_grad();
        return Ok((if packed { lm.packed(WeightFormat::F32) } else { lm }, text));
    }
    let checkpoint = Checkpoint::open(path)?;
    let text = Text::of(&checkpoint);
    let (config, tensors) = (&checkpoint.config, checkpoint.tensors.as_ref());
    let lm = match packed {
        true => Lm::load_packed(config, tensors, device)?,
        false => Lm::load_within(config, tensors, device, largest_tensor(device))?,
    };
    Ok((lm.no_grad(), text))
}

/// The format in which a GPU multiplies the base's matrices, where it is not f32.
fn narrow<B: Backend>(
    args: &ModelArgs,
    backend: BackendKind,
    device: &B::Device,
) -> Result<Option<FloatDType>, CliError> {
    let weights = args.weights.unwrap_or(WeightsKind::F32);
    let refuse = |reason: String| Err(CliError::Usage(format!("--weights {}: {reason}", weights.name())));
    let dtype = match weights {
        WeightsKind::F32 => return Ok(None),
        WeightsKind::F16 => FloatDType::F16,
        WeightsKind::Bf16 => FloatDType::BF16,
        WeightsKind::Stored | WeightsKind::Q8_0 | WeightsKind::Q4_1 => {
            return refuse(format!("that is for the CPU backends; {} has f32, f16 and bf16", backend.name()));
        }
    };
    match B::supports_dtype(device, dtype.into()) {
        true => Ok(Some(dtype)),
        false => refuse("this device does not compute with it (l2d doctor says with what it does)".into()),
    }
}

/// The plain LM, or the LM with its diffusion path.
pub(crate) enum Model<B: Backend> {
    /// Only one step per token makes sense.
    Plain(Box<Lm<B>>),
    /// Any number of steps.
    Joined(Box<L2d<B>>),
}

impl<B: Backend> Model<B> {
    /// Loads what the arguments name, once it is clear that `decode` makes sense for it.
    pub(crate) fn load(
        args: &ModelArgs,
        decode: &DecodeArgs,
        backend: BackendKind,
        device: &B::Device,
    ) -> Result<(Self, Text), CliError> {
        decode.check(args.adapter.is_some())?;
        if !backend.is_cpu() {
            let narrow = narrow::<B>(args, backend, device)?;
            if let Some(cache) = args.kv_cache {
                return Err(CliError::Usage(format!(
                    "--kv-cache {} is for the CPU backends; on {} keys and values are f32",
                    cache.format().name(),
                    backend.name()
                )));
            }
            let (lm, text) = load_base::<B>(&args.model, args.lora.as_deref(), device, false)?;
            // The adapter belongs to the weights before they are rounded.
            let model = Self::join(args, lm)?;
            return Ok((if let Some(dtype) = narrow { model.computed_in(dtype) } else { model }, text));
        }
        if args.lora.is_some() {
            let (lm, text) = load_base::<B>(&args.model, args.lora.as_deref(), device, false)?;
            let lm = lm.with_cache_format(args.cache_format());
            let format = args.weights.and_then(WeightsKind::format).unwrap_or(WeightFormat::F32);
            return Ok((Self::join(args, lm)?.packed(format), text));
        }
        let checkpoint = Checkpoint::open(&args.model)?;
        let text = Text::of(&checkpoint);
        let (config, tensors) = (&checkpoint.config, checkpoint.tensors.as_ref());
        let format = args.weights.and_then(WeightsKind::format);
        let Some(format) = format else {
            let lm = Lm::load_packed(config, tensors, device)?.no_grad().with_cache_format(args.cache_format());
            return Ok((Self::join(args, lm)?.packed(WeightFormat::F32), text));
        };
        // The adapter belongs to the weights before they are rounded.
        let lm = Lm::load(config, tensors, device)?.no_grad().with_cache_format(args.cache_format());
        Ok((Self::join(args, lm)?.packed(format), text))
    }

    /// Random weights in the shape of a folder's `config.json`, with a path of the paper's settings.
    pub(crate) fn random(args: &ModelArgs, backend: BackendKind, device: &B::Device) -> Result<(Self, Text), CliError> {
        let checkpoint = Checkpoint::open_untrained(&args.model)?;
        let text = Text::of(&checkpoint);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let lm = Lm::<B>::init(&checkpoint.config, &mut rng, device).materialise_head().no_grad();
        let path = DiffusionPath::init(&lm, &RawDiffusionConfig::default().check(&args.model)?, &mut rng);
        let model = Self::Joined(Box::new(L2d { lm, path }));
        if !backend.is_cpu() {
            let narrow = narrow::<B>(args, backend, device)?;
            return Ok((if let Some(dtype) = narrow { model.computed_in(dtype) } else { model }, text));
        }
        let format = args.weights.and_then(WeightsKind::format).unwrap_or(WeightFormat::F32);
        Ok((model.packed(format), text))
    }

    fn join(args: &ModelArgs, lm: Lm<B>) -> Result<Self, CliError> {
        Ok(match &args.adapter {
            None => Self::Plain(Box::new(lm)),
            Some(file) => Self::Joined(Box::new(L2d { path: load_adapter(file, &lm)?, lm })),
        })
    }

    /// The same with all weights packed; those that are keep their format.
    pub(crate) fn packed(self, format: WeightFormat) -> Self {
        match self {
            Self::Plain(lm) => Self::Plain(Box::new(lm.packed(format))),
            Self::Joined(model) => Self::Joined(Box::new(model.packed(format))),
        }
    }

    /// The same with the base's matrices multiplied in the given format.
    fn computed_in(self, dtype: FloatDType) -> Self {
        match self {
            Self::Plain(lm) => Self::Plain(Box::new(lm.computed_in(dtype))),
            Self::Joined(model) => Self::Joined(Box::new(model.computed_in(dtype))),
        }
    }

    /// The base LM.
    pub(crate) fn lm(&self) -> &Lm<B> {
        match self {
            Self::Plain(lm) => lm,
            Self::Joined(model) => &model.lm,
        }
    }

    /// How many tokens an answer may have: what was asked for, else `usual` or as many as the context has room for after
    /// the prompt. (A prompt that leaves no room is the decoder's to refuse.)
    pub(crate) fn room(&self, asked: Option<usize>, usual: usize, prompt: usize) -> usize {
        let context = self.lm().config.max_positions;
        asked.unwrap_or_else(|| usual.min(context.saturating_sub(prompt)).max(1))
    }

    /// A decoder that spends `params.evaluations` on each token, laid out as `mode` says.
    pub(crate) fn decoder(&self, params: DiffusionParams, mode: DecodeMode) -> Result<Decoder<'_, B>, CliError> {
        self.check(&params)?;
        match self {
            Self::Joined(model) => Ok(Decoder::new(model, &params.check()?)?.with_mode(mode)),
            Self::Plain(lm) => Ok(Decoder::plain(lm)),
        }
    }

    /// What [`decoder`](Self::decoder) would refuse, before its tables are computed.
    pub(crate) fn check(&self, params: &DiffusionParams) -> Result<(), CliError> {
        // An adaptive solver was refused with the other flags of the diffusion.
        if params.evaluations != 1 && matches!(self, Self::Plain(_)) {
            return Err(CliError::Usage(format!(
                "--steps {} needs a diffusion path: name its file with --adapter, or use --steps 1 for the plain LM",
                params.evaluations
            )));
        }
        params.check()?;
        Ok(())
    }

    /// The guidance class of that name, as its place in the adapter's list.
    pub(crate) fn class(&self, name: Option<&str>) -> Result<Option<usize>, CliError> {
        let (Some(name), Self::Joined(model)) = (name, self) else { return Ok(None) };
        let classes = &model.path.config.classes;
        if classes.is_empty() {
            return Err(CliError::Usage(format!("--class {name}: this adapter was trained without guidance classes")));
        }
        let found = classes.iter().position(|class| class == name);
        let missing = || CliError::Usage(format!("--class {name}: this adapter's classes are {}", classes.join(", ")));
        found.map(Some).ok_or_else(missing)
    }

    /// What guides an evaluation: the class asked for; with a strength alone, the class of each task.
    pub(crate) fn guide(&self, decode: &DecodeArgs) -> Result<Guide, CliError> {
        if decode.class.is_some() || decode.guidance.is_empty() {
            return Ok(Guide::All(self.class(decode.class.as_deref())?));
        }
        let mut places = Vec::new();
        for name in [task::class::MATH, task::class::CODING, task::class::GENERAL] {
            places.extend(self.class(Some(name))?.map(|place| (name, place)));
        }
        Ok(Guide::ByTask(places))
    }

    /// Steps when none are asked for: the paper's 15 with a diffusion path, 1 without.
    pub(crate) fn default_steps(&self) -> usize {
        match self {
            Self::Plain(_) => 1,
            Self::Joined(_) => 15,
        }
    }
}

impl ModelArgs {
    /// How keys and values are cached.
    pub(crate) fn cache_format(&self) -> CacheFormat {
        self.kv_cache.map_or(CacheFormat::default(), CacheKind::format)
    }
}

impl CacheKind {
    fn format(self) -> CacheFormat {
        match self {
            Self::F32 => CacheFormat::F32,
            Self::F16 => CacheFormat::F16,
        }
    }
}

impl WeightsKind {
    /// The format that weights are rounded to; `None` where they stay as they are stored.
    fn format(self) -> Option<WeightFormat> {
        match self {
            Self::Stored => None,
            Self::F32 => Some(WeightFormat::F32),
            Self::Bf16 => Some(WeightFormat::Bf16),
            Self::F16 => Some(WeightFormat::F16),
            Self::Q8_0 => Some(WeightFormat::Q8_0),
            Self::Q4_1 => Some(WeightFormat::Q4_1),
        }
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }
}

/// A flag that the first Ctrl-C raises; the second ends the process at once.
pub(crate) fn on_interrupt() -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after the current step (Ctrl-C again to stop at once)");
    })
    .map_err(|e| CliError::Usage(format!("cannot listen for Ctrl-C: {e}")))?;
    Ok(flag)
}
