//! Between a checkpoint's named tensors and [`Lm`]: loading (strict), export, and random initialisation.

use std::collections::BTreeSet;

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use super::block::Block;
use super::linear::Linear;
use super::mlp::Mlp;
use super::model::Lm;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::token_table::{VocabularyShards, rows_of_a_part};
use crate::checkpoint::TensorSource;
use crate::config::LmConfig;
use crate::cpu::{CacheFormat, PackedMatrix, WeightFormat};
use crate::error::{Error, Result};
use crate::init;

/// A tensor on the host in Hugging Face's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint; `[out, in]` for a linear layer.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";
/// Written by old exporters; derived from the config, so neither needed nor an error.
const DERIVED_SUFFIX: &str = ".rotary_emb.inv_freq";

impl<B: Backend> Lm<B> {
    /// Builds the model from a checkpoint, one tensor at a time.
    ///
    /// # Errors
    /// A tensor is missing, has another shape than the config implies, cannot be read, or has no place in the model.
    pub fn load(config: &LmConfig, source: &dyn TensorSource, device: &B::Device) -> Result<Self> {
        Self::load_with(config, source, device, false, None)
    }

    /// [`Lm::load`] for a device whose largest tensor has so many bytes: an embedding and a head of more are held in parts.
    ///
    /// # Errors
    /// As [`Lm::load`]; [`Error::DeviceLimit`] for any other tensor of more.
    pub fn load_within(
        config: &LmConfig,
        source: &dyn TensorSource,
        device: &B::Device,
        largest: Option<usize>,
    ) -> Result<Self> {
        Self::load_with(config, source, device, false, largest)
    }

    /// [`Lm::load`] with weights packed for the CPU's decoding kernels ([`crate::cpu`]) in the format in which the checkpoint
    /// stores them, so that nothing is rounded: 16-bit floats and GGUF's blocks (see [`BlockKind`](crate::cpu::BlockKind)) as
    /// they are, anything else in f32. Embeddings and norms are f32.
    ///
    /// # Errors
    /// As [`Lm::load`].
    pub fn load_packed(config: &LmConfig, source: &dyn TensorSource, device: &B::Device) -> Result<Self> {
        // The layers are packed already; this does the norms.
        Ok(Self::load_with(config, source, device, true, None)?.packed(WeightFormat::F32))
    }

    fn load_with(
        config: &LmConfig,
        source: &dyn TensorSource,
        device: &B::Device,
        packed: bool,
        largest: Option<usize>,
    ) -> Result<Self> {
        let mut loader = Loader {
            source,
            packed,
            largest,
            used: BTreeSet::new(),
            device: device.clone(),
            _backend: std::marker::PhantomData::<B>,
        };
        let (hidden, query, kv) = (config.hidden_size, config.query_size(), config.kv_size());
        let blocks = (0..config.num_layers)
            .map(|i| {
                let attention = format!("model.layers.{i}.self_attn");
                let mlp = format!("model.layers.{i}.mlp");
                let bias = config.qkv_bias;
                Ok(Block {
                    attention_norm: loader.norm(&format!("model.layers.{i}.input_layernorm.weight"), config)?,
                    query: loader.linear(&format!("{attention}.q_proj"), hidden, query, bias)?,
                    key: loader.linear(&format!("{attention}.k_proj"), hidden, kv, bias)?,
                    value: loader.linear(&format!("{attention}.v_proj"), hidden, kv, bias)?,
                    output: loader.linear(&format!("{attention}.o_proj"), query, hidden, false)?,
                    mlp_norm: loader.norm(&format!("model.layers.{i}.post_attention_layernorm.weight"), config)?,
                    mlp: Mlp {
                        gate: loader.linear(&format!("{mlp}.gate_proj"), hidden, config.intermediate_size, false)?,
                        up: loader.linear(&format!("{mlp}.up_proj"), hidden, config.intermediate_size, false)?,
                        down: loader.linear(&format!("{mlp}.down_proj"), config.intermediate_size, hidden, false)?,
                    },
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let final_norm = loader.norm(FINAL_NORM, config)?;
        if let Some(rows) = rows_of_a_part(config.vocab_size, hidden, largest) {
            let shards = loader.shards(config, rows)?;
            loader.finish()?;
            return Ok(Self {
                // Says where and in which format the model is.
                embedding: Param::from_tensor(Tensor::zeros([1, hidden], device)),
                blocks,
                final_norm,
                head: None,
                shards: Some(shards),
                config: config.clone(),
                rope: Rope::new(config),
                cache_format: CacheFormat::default(),
            });
        }
        // A tied head is a second copy in the fast layout: a transposed view is many times slower on the CPU.
        let head = if config.tie_word_embeddings {
            loader.used.insert(HEAD.to_string());
            loader.linear(EMBEDDING.trim_end_matches(".weight"), hidden, config.vocab_size, false)?
        } else {
            loader.linear(HEAD.trim_end_matches(".weight"), hidden, config.vocab_size, false)?
        };
        let embedding = loader.read(EMBEDDING, &[config.vocab_size, hidden])?;
        let embedding = Tensor::from_data(TensorData::new(embedding, [config.vocab_size, hidden]), device);
        loader.finish()?;
        Ok(Self {
            embedding: Param::from_tensor(embedding),
            blocks,
            final_norm,
            head: Some(head),
            shards: None,
            config: config.clone(),
            rope: Rope::new(config),
            cache_format: CacheFormat::default(),
        })
    }

    /// A model to train from scratch: N(0, 0.02) weights, those that write into the residual stream divided by
    /// `sqrt(2 L)` (GPT-2's rule), norms at one, biases at zero. A tied model is left without a separate head, so that
    /// the embedding receives both gradients; see [`Lm::materialise_head`].
    pub fn init(config: &LmConfig, rng: &mut ChaCha8Rng, device: &B::Device) -> Self {
        const STD: f64 = 0.02;
        let (hidden, query, kv) = (config.hidden_size, config.query_size(), config.kv_size());
        let residual_std = STD / (2.0 * config.num_layers as f64).sqrt();
        let mut linear = |inputs, outputs, bias: bool, std| {
            Linear::new(
                init::normal([inputs, outputs], std, rng, device),
                bias.then(|| Tensor::zeros([outputs], device)),
            )
        };
        let norm = || RmsNorm::new(Tensor::ones([hidden], device), config.rms_norm_eps);
        let blocks = (0..config.num_layers)
            .map(|_| Block {
                attention_norm: norm(),
                query: linear(hidden, query, config.qkv_bias, STD),
                key: linear(hidden, kv, config.qkv_bias, STD),
                value: linear(hidden, kv, config.qkv_bias, STD),
                output: linear(query, hidden, false, residual_std),
                mlp_norm: norm(),
                mlp: Mlp {
                    gate: linear(hidden, config.intermediate_size, false, STD),
                    up: linear(hidden, config.intermediate_size, false, STD),
                    down: linear(config.intermediate_size, hidden, false, residual_std),
                },
            })
            .collect();
        let head = (!config.tie_word_embeddings).then(|| linear(hidden, config.vocab_size, false, STD));
        Self {
            embedding: Param::from_tensor(init::normal([config.vocab_size, hidden], STD, rng, device)),
            blocks,
            final_norm: norm(),
            head,
            shards: None,
            config: config.clone(),
            rope: Rope::new(config),
            cache_format: CacheFormat::default(),
        }
    }

    /// Gives a tied model its own copy of the head in the fast layout; for inference.
    pub fn materialise_head(mut self) -> Self {
        if self.head.is_none() && self.shards.is_none() {
            let [vocab, hidden] = self.embedding.shape().dims();
            let table = host_values(self.embedding.val());
            let values = TensorData::new(transposed(&table, vocab, hidden), [hidden, vocab]);
            let head = Tensor::<B, 2>::from_data(values, (&self.device(), self.dtype()));
            self.head = Some(Linear::new(head, None));
        }
        self
    }

    /// All weights in Hugging Face's names and layouts, a tied head left out, any LoRA merged in.
    pub fn export(&self) -> Vec<HostTensor> {
        let mut all = Vec::new();
        self.export_each(&mut |tensor| all.push(tensor));
        all
    }

    /// [`Lm::export`], one tensor in memory at a time.
    pub fn export_each(&self, visit: &mut dyn FnMut(HostTensor)) {
        let matrix = |name: String, linear: &Linear<B>| {
            let [inputs, outputs] = linear.shape();
            let weight = match &linear.lora {
                Some(lora) => linear.dense() + lora.delta(),
                None => linear.dense(),
            };
            let values = transposed(&host_values(weight), inputs, outputs);
            HostTensor { name: format!("{name}.weight"), shape: vec![outputs, inputs], values }
        };
        let vector = |name: String, tensor: Tensor<B, 1>| HostTensor {
            name,
            shape: tensor.dims().to_vec(),
            values: host_values(tensor),
        };
        let shape = vec![self.config.vocab_size, self.config.hidden_size];
        let values = match &self.shards {
            Some(shards) => shards.embedding.iter().flat_map(|part| host_values(part.val())).collect(),
            None => host_values(self.embedding.val()),
        };
        visit(HostTensor { name: EMBEDDING.into(), shape: shape.clone(), values });
        for (i, block) in self.blocks.iter().enumerate() {
            let prefix = format!("model.layers.{i}");
            visit(vector(format!("{prefix}.input_layernorm.weight"), block.attention_norm.weight.val()));
            visit(vector(format!("{prefix}.post_attention_layernorm.weight"), block.mlp_norm.weight.val()));
            let layers = [
                ("self_attn.q_proj", &block.query),
                ("self_attn.k_proj", &block.key),
                ("self_attn.v_proj", &block.value),
                ("self_attn.o_proj", &block.output),
                ("mlp.gate_proj", &block.mlp.gate),
                ("mlp.up_proj", &block.mlp.up),
                ("mlp.down_proj", &block.mlp.down),
            ];
            for (name, linear) in layers {
                visit(matrix(format!("{prefix}.{name}"), linear));
                if let Some(bias) = &linear.bias {
                    visit(vector(format!("{prefix}.{name}.bias"), bias.val()));
                }
            }
        }
        visit(vector(FINAL_NORM.into(), self.final_norm.weight.val()));
        if let Some(head) = self.head.as_ref().filter(|_| !self.config.tie_word_embeddings) {
            visit(matrix("lm_head".into(), head));
        }
        if let Some(shards) = self.shards.as_ref().filter(|_| !self.config.tie_word_embeddings) {
            let part = |part: &Param<Tensor<B, 2>>| {
                let [inputs, outputs] = part.shape().dims();
                transposed(&host_values(part.val()), inputs, outputs)
            };
            let values = shards.head.iter().flat_map(part).collect();
            visit(HostTensor { name: "lm_head.weight".into(), shape, values });
        }
    }
}

/// Reads tensors, checks their shapes and remembers which were used.
struct Loader<'a, B: Backend> {
    source: &'a dyn TensorSource,
    /// Whether linear layers are packed.
    packed: bool,
    /// Bytes of the device's largest tensor.
    largest: Option<usize>,
    used: BTreeSet<String>,
    device: B::Device,
    _backend: std::marker::PhantomData<B>,
}

impl<B: Backend> Loader<'_, B> {
    fn read(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        self.check(name, expected)?;
        self.source.read_f32(name)
    }

    /// Whether the tensor is there in the expected shape; it counts as used from here on.
    fn check(&mut self, name: &str, expected: &[usize]) -> Result<()> {
        let path = || self.source.path().to_path_buf();
        let found =
            self.source.shape(name).ok_or_else(|| Error::MissingTensor { path: path(), name: name.to_string() })?;
        if found != expected {
            return Err(Error::Shape { path: path(), name: name.to_string(), expected: expected.to_vec(), found });
        }
        self.used.insert(name.to_string());
        let bytes = expected.iter().product::<usize>() * size_of::<f32>();
        match self.largest {
            // The vocabulary's are cut into parts.
            Some(limit) if bytes > limit && ![EMBEDDING, HEAD].contains(&name) => {
                Err(Error::DeviceLimit { path: path(), name: name.to_string(), bytes, limit })
            }
            _ => Ok(()),
        }
    }

    /// Embedding and head in parts of so many rows of the vocabulary.
    fn shards(&mut self, config: &LmConfig, rows: usize) -> Result<VocabularyShards<B>> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let table = self.read(EMBEDDING, &[vocab, hidden])?;
        let upload = |values: Vec<f32>, shape: [usize; 2], device: &B::Device| {
            Param::from_tensor(Tensor::<B, 2>::from_data(TensorData::new(values, shape), device))
        };
        let parts = |table: &[f32]| -> Vec<Vec<f32>> { table.chunks(rows * hidden).map(<[f32]>::to_vec).collect() };
        let embedding = parts(&table).into_iter().map(|part| {
            let count = part.len() / hidden;
            upload(part, [count, hidden], &self.device)
        });
        let embedding = embedding.collect();
        let table = if config.tie_word_embeddings {
            self.used.insert(HEAD.to_string());
            table
        } else {
            self.read(HEAD, &[vocab, hidden])?
        };
        let head = parts(&table).into_iter().map(|part| {
            let count = part.len() / hidden;
            upload(transposed(&part, count, hidden), [hidden, count], &self.device)
        });
        Ok(VocabularyShards { embedding, head: head.collect() })
    }

    /// The weights of a layer as they are stored, or in f32.
    fn pack(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<PackedMatrix> {
        self.check(name, &[outputs, inputs])?;
        if let Some(packed) =
            self.source.read_blocks(name)?.and_then(|blocks| PackedMatrix::from_blocks(&blocks, outputs, inputs))
        {
            return Ok(packed);
        }
        let format = match self.source.dtype(name).as_deref() {
            Some("BF16") => WeightFormat::Bf16,
            Some("F16") => WeightFormat::F16,
            _ => WeightFormat::F32,
        };
        Ok(PackedMatrix::from_rows(&self.source.read_f32(name)?, outputs, inputs, format))
    }

    fn norm(&mut self, name: &str, config: &LmConfig) -> Result<RmsNorm<B>> {
        Ok(RmsNorm::new(self.vector(name, config.hidden_size)?, config.rms_norm_eps))
    }

    fn vector(&mut self, name: &str, size: usize) -> Result<Tensor<B, 1>> {
        let values = self.read(name, &[size])?;
        Ok(Tensor::from_data(TensorData::new(values, [size]), &self.device))
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear<B>> {
        let (weight, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
        if self.packed {
            let packed = self.pack(&weight, inputs, outputs)?;
            let bias = if bias { Some(self.vector(&bias_name, outputs)?) } else { None };
            return Ok(Linear::from_packed(packed, bias, &self.device));
        }
        let stored = self.read(&weight, &[outputs, inputs])?;
        let values = transposed(&stored, outputs, inputs);
        drop(stored);
        let weight = Tensor::from_data(TensorData::new(values, [inputs, outputs]), &self.device);
        let bias = if bias { Some(self.vector(&bias_name, outputs)?) } else { None };
        Ok(Linear::new(weight, bias))
    }

    /// Every tensor of the checkpoint must have found its place.
    fn finish(self) -> Result<()> {
        let extra: Vec<String> = self
            .source
            .names()
            .into_iter()
            .filter(|name| !self.used.contains(name) && !name.ends_with(DERIVED_SUFFIX))
            .collect();
        match extra.first() {
            None => Ok(()),
            Some(name) => Err(Error::ExtraTensor {
                path: self.source.path().to_path_buf(),
                name: name.clone(),
                count: extra.len(),
            }),
        }
    }
}

/// The transpose of a row-major `[rows, columns]` matrix, blocked so that both sides stay in cache.
pub(crate) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for row0 in (0..rows).step_by(TILE) {
        for column0 in (0..columns).step_by(TILE) {
            for row in row0..(row0 + TILE).min(rows) {
                for column in column0..(column0 + TILE).min(columns) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

/// A tensor's values on the host as f32, row-major.
pub fn host_values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    data.into_vec().expect("converted to f32 just above")
}
