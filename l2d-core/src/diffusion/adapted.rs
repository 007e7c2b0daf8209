//! The diffusion path's own version of one of the base's linear layers.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;

use super::config::Variant;
use crate::cpu::WeightFormat;
use crate::init;
use crate::lm::{Linear, Lora};

/// A low-rank correction of the base's layer, or a layer of its own.
// Five of these per block, all of one kind: the padding of the smaller kind is bytes beside its megabytes of weights.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum AdaptedLinear<B: Backend> {
    /// `base(x) + (alpha / r) (x A) B`.
    Lora(Lora<B>),
    /// Its own weight (and bias, where the base has one).
    Own(Linear<B>),
}

impl<B: Backend> AdaptedLinear<B> {
    /// A fresh version of `base`.
    pub fn init(base: &Linear<B>, variant: Variant, rng: &mut ChaCha8Rng) -> Self {
        let [inputs, outputs] = base.shape();
        let device = base.weight.val().device(); // of the empty tensor too, where the base is packed
        match variant {
            Variant::Lora { rank, alpha } => Self::Lora(Lora::init(inputs, outputs, rank, alpha, rng, &device)),
            Variant::Full => Self::Own(Linear::new(base.dense(), base.bias.as_ref().map(|bias| bias.val()))),
            Variant::Scratch => Self::Own(Linear::new(
                init::xavier_uniform(inputs, outputs, rng, &device),
                base.bias.as_ref().map(|_| Tensor::zeros([outputs], &device)),
            )),
        }
    }

    /// The same layer with its weights packed for the CPU's decoding kernels.
    pub fn packed(self) -> Self {
        match self {
            Self::Lora(lora) => Self::Lora(lora.packed()),
            Self::Own(own) => Self::Own(own.packed(WeightFormat::F32)),
        }
    }

    /// `x: [rows, in]` to `[rows, out]`; `base` is the frozen layer this one is a version of.
    pub fn forward(&self, x: Tensor<B, 2>, base: &Linear<B>) -> Tensor<B, 2> {
        match self {
            // A base that is itself adapted keeps its own correction.
            Self::Lora(lora) if base.lora.is_none() => base.forward_adapted(x, Some(lora)),
            Self::Lora(lora) => base.forward(x.clone()) + lora.forward(x),
            Self::Own(own) => own.forward(x),
        }
    }
}
