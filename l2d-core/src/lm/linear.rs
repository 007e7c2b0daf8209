//! A linear layer and its low-rank adaptation.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use super::dropout::Dropout;
use super::model::dense_bytes;
use super::weights::host_values;
use crate::cpu::{DecodeOps, LowRank, PackedFormat, PackedMatrix, WeightFormat};
use crate::init;

/// `y = x W + b`, with `W` stored `[in, out]` and contiguous: the layout in which every backend multiplies few rows
/// fastest. For decoding on a CPU the weight may be packed instead (see [`Linear::packed`]).
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[in, out]`; empty where the weight is packed.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Low-rank adaptation of this layer, when the base LM itself is finetuned with LoRA.
    pub lora: Option<Lora<B>>,
    /// The weight in the layout of the CPU's decoding kernels, in the place of the dense one. Has no gradient.
    #[module(skip)]
    packed: Option<PackedMatrix>,
    /// Whether the input is rounded to the weight's format, instead of the weight being widened to the input's.
    #[module(skip)]
    rounds_input: bool,
}

impl<B: Backend> Linear<B> {
    /// A layer with the given weights, `weight: [in, out]`, `bias: [out]`.
    pub fn new(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Self {
        Self {
            weight: Param::from_tensor(weight),
            bias: bias.map(Param::from_tensor),
            lora: None,
            packed: None,
            rounds_input: false,
        }
    }

    /// Xavier-uniform weights and zero biases.
    pub fn xavier(inputs: usize, outputs: usize, rng: &mut ChaCha8Rng, device: &B::Device) -> Self {
        Self::new(init::xavier_uniform(inputs, outputs, rng, device), Some(Tensor::zeros([outputs], device)))
    }

    /// A layer with a packed weight, `bias: [out]`.
    pub fn from_packed(weight: PackedMatrix, bias: Option<Tensor<B, 1>>, device: &B::Device) -> Self {
        Self { packed: Some(weight), ..Self::new(Tensor::zeros([0, 0], device), bias) }
    }

    /// The same layer with its weight packed, the dense one dropped. A packed layer stays as it is.
    pub fn packed(self, format: WeightFormat) -> Self {
        let lora = self.lora.map(Lora::packed);
        if self.packed.is_some() {
            return Self { lora, ..self };
        }
        let dense = self.weight.val();
        let (device, [inputs, outputs]) = (dense.device(), dense.dims());
        let packed = PackedMatrix::from_columns(&host_values(dense), inputs, outputs, format);
        Self { lora, bias: self.bias, ..Self::from_packed(packed, None, &device) }
    }

    /// The same layer with its weight kept in the given format; it computes in the format of its input.
    pub fn kept_as(self, dtype: FloatDType) -> Self {
        let (id, weight, mapper) = self.weight.consume();
        Self { weight: Param::from_mapped_value(id, weight.cast(dtype), mapper), ..self }
    }

    /// The same layer with its weight kept in the given format and multiplied in it: inputs are rounded to it, and what comes out is
    /// widened again. Half the bytes to read; sums are as wide as the backend makes them (f32 on tensor cores).
    pub fn computed_in(self, dtype: FloatDType) -> Self {
        Self { rounds_input: true, ..self.kept_as(dtype) }
    }

    /// The weight as a dense tensor, `[in, out]`, in f32 at least; unpacked where it is packed.
    pub fn dense(&self) -> Tensor<B, 2> {
        match &self.packed {
            None => {
                let weight = self.weight.val();
                if matches!(weight.dtype(), DType::F16 | DType::BF16) { weight.cast(FloatDType::F32) } else { weight }
            }
            Some(packed) => {
                let values = TensorData::new(packed.dense(), self.shape());
                Tensor::from_data(values, &self.weight.val().device())
            }
        }
    }

    /// The packed weight `[in, out]`; `None` where it is dense.
    pub fn packed_weight(&self) -> Option<&PackedMatrix> {
        self.packed.as_ref()
    }

    /// The first rows of the weight, at most `count`: `[count, out]` flattened.
    pub(crate) fn first_rows(&self, count: usize) -> Vec<f32> {
        let count = count.min(self.shape()[0]);
        match &self.packed {
            None => host_values(self.weight.val().narrow(0, 0, count)),
            Some(packed) => packed.first_rows(count),
        }
    }

    /// `x: [rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.forward_adapted(x, self.lora.as_ref())
    }

    /// [`Linear::forward`] with `lora` in the place of the layer's own.
    pub(crate) fn forward_adapted(&self, x: Tensor<B, 2>, lora: Option<&Lora<B>>) -> Tensor<B, 2> {
        let Some(weight) = &self.packed else {
            let base = self.without_lora(x.clone());
            return match lora {
                Some(lora) => base + lora.forward(x),
                None => base,
            };
        };
        let low_rank = lora.map(|lora| lora.low_rank().expect("packed with its layer"));
        B::packed_linear(x, weight, low_rank, self.bias.as_ref().map(|bias| bias.val()))
    }

    fn without_lora(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let weight = self.weight.val();
        if self.rounds_input {
            let y = x.clone().cast(weight.dtype()).matmul(weight).cast(x.dtype());
            return match &self.bias {
                Some(bias) => y + bias.val().unsqueeze(),
                None => y,
            };
        }
        // A frozen weight may be kept in fewer bits than are computed with.
        let weight = if weight.dtype() == x.dtype() { weight } else { weight.cast(x.dtype()) };
        let y = x.matmul(weight);
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }

    /// Whether the CPU's decoding kernels compute it.
    pub(crate) fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    pub(crate) fn packed_format(&self) -> Option<PackedFormat> {
        self.packed.as_ref().map(PackedMatrix::format)
    }

    pub(crate) fn weight_bytes(&self) -> usize {
        self.packed.as_ref().map_or_else(|| dense_bytes(&self.weight.val()), PackedMatrix::bytes)
    }

    /// `[in, out]`.
    pub fn shape(&self) -> [usize; 2] {
        match &self.packed {
            Some(packed) => [packed.inputs(), packed.outputs()],
            None => self.weight.shape().dims(),
        }
    }
}

/// Low-rank adaptation: adds `(alpha / r) (x A) B` to a frozen layer's output. Contributes nothing while `B = 0`.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// `[in, r]`.
    pub a: Param<Tensor<B, 2>>,
    /// `[r, out]`.
    pub b: Param<Tensor<B, 2>>,
    /// `alpha / r`.
    pub scale: f64,
    /// `A` and `B` in the layout of the CPU's decoding kernels, beside the dense ones.
    #[module(skip)]
    packed: Option<(PackedMatrix, PackedMatrix)>,
    /// What of the input is dropped, in a step of training. Not heeded by the CPU's decoding kernels.
    #[module(skip)]
    pub dropout: Option<Dropout>,
}

impl<B: Backend> Lora<B> {
    /// `A` from N(0, 1/r) (standard deviation `1/r`, as the reference does), `B = 0`.
    pub fn init(
        inputs: usize,
        outputs: usize,
        rank: usize,
        alpha: f64,
        rng: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Self {
        Self {
            a: Param::from_tensor(init::normal([inputs, rank], 1.0 / rank as f64, rng, device)),
            b: Param::from_tensor(Tensor::zeros([rank, outputs], device)),
            scale: alpha / rank as f64,
            packed: None,
            dropout: None,
        }
    }

    /// A correction with the given factors, `a: [in, r]` and `b: [r, out]`.
    pub fn new(a: Tensor<B, 2>, b: Tensor<B, 2>, scale: f64) -> Self {
        Self { a: Param::from_tensor(a), b: Param::from_tensor(b), scale, packed: None, dropout: None }
    }

    /// The same correction, packed as well.
    pub fn packed(self) -> Self {
        let pack = |factor: &Param<Tensor<B, 2>>| {
            let dense = factor.val();
            let [inputs, outputs] = dense.dims();
            PackedMatrix::from_columns(&host_values(dense), inputs, outputs, WeightFormat::F32)
        };
        let packed = self.packed.unwrap_or_else(|| (pack(&self.a), pack(&self.b)));
        Self { packed: Some(packed), ..self }
    }

    fn low_rank(&self) -> Option<LowRank<'_>> {
        self.packed.as_ref().map(|(a, b)| LowRank { a, b, scale: self.scale as f32 })
    }

    /// The correction alone: `x: [rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = match &self.dropout {
            Some(dropout) => dropout.apply(x),
            None => x,
        };
        // Scaling the narrow middle costs rows * r instead of rows * out.
        (x.matmul(self.a.val()) * self.scale).matmul(self.b.val())
    }

    /// The dense correction `(alpha / r) A B`, `[in, out]`, for merging into a weight.
    pub fn delta(&self) -> Tensor<B, 2> {
        (self.a.val() * self.scale).matmul(self.b.val())
    }
}
