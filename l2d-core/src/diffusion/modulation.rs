//! What diffusion time and class do to the path: scales, shifts, gates, the final weight. All of it depends on `(t, class)`
//! alone, never on the token, and is therefore computed once per grid of times when decoding.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;
use rand_chacha::ChaCha8Rng;

use crate::cpu::WeightFormat;
use crate::lm::Linear;

/// `Linear(c -> c), SiLU, Linear(c -> out)`; the last layer starts at zero.
#[derive(Module, Debug)]
pub struct ModulationHead<B: Backend> {
    /// `c -> c`.
    pub inner: Linear<B>,
    /// `c -> out`.
    pub outer: Linear<B>,
}

impl<B: Backend> ModulationHead<B> {
    /// Xavier-uniform first layer, zero last layer.
    pub fn init(conditioning: usize, outputs: usize, rng: &mut ChaCha8Rng, device: &B::Device) -> Self {
        let mut outer = Linear::new(Tensor::zeros([conditioning, outputs], device), None);
        outer.bias = Some(Param::from_tensor(Tensor::zeros([outputs], device)));
        Self { inner: Linear::xavier(conditioning, conditioning, rng, device), outer }
    }

    /// The same head packed for the CPU's decoding kernels ([`crate::cpu`]), in f32.
    pub fn packed(self) -> Self {
        Self { inner: self.inner.packed(WeightFormat::F32), outer: self.outer.packed(WeightFormat::F32) }
    }

    /// `tau: [rows, c]` to `[rows, out]`.
    pub fn forward(&self, tau: Tensor<B, 2>) -> Tensor<B, 2> {
        self.outer.forward(silu(self.inner.forward(tau)))
    }

    /// [`ModulationHead::forward`] in `N` equal parts, `[rows, out / N]` each.
    ///
    /// Splits the last layer's weight and not its output: the gradient of a split output is `N` tensors of the whole
    /// output's size, which cost more than the products.
    pub fn forward_parts<const N: usize>(&self, tau: Tensor<B, 2>) -> [Tensor<B, 2>; N] {
        let hidden = silu(self.inner.forward(tau));
        if self.outer.is_packed() {
            let y = self.outer.forward(hidden);
            let width = y.dims()[1] / N;
            let device = y.device();
            // Through host data: parts that lie in one piece each.
            return std::array::from_fn(|part| {
                Tensor::from_data(y.clone().narrow(1, part * width, width).into_data(), &device)
            });
        }
        let (weight, bias) = (self.outer.weight.val(), self.outer.bias.as_ref().map(|bias| bias.val()));
        let width = weight.dims()[1] / N;
        std::array::from_fn(|part| {
            let y = hidden.clone().matmul(weight.clone().narrow(1, part * width, width));
            match &bias {
                Some(bias) => y + bias.clone().narrow(0, part * width, width).unsqueeze(),
                None => y,
            }
        })
    }
}

/// One block's six modulations, each `[rows, H]`, or `[1, H]` when all rows share `t` and class.
#[derive(Debug, Clone)]
pub struct BlockModulation<B: Backend> {
    /// Added to the weight of the norm before attention.
    pub attention_scale: Tensor<B, 2>,
    /// Added after that norm.
    pub attention_shift: Tensor<B, 2>,
    /// Multiplies the attention branch.
    pub attention_gate: Tensor<B, 2>,
    /// Added to the weight of the norm before the MLP.
    pub mlp_scale: Tensor<B, 2>,
    /// Added after that norm.
    pub mlp_shift: Tensor<B, 2>,
    /// Multiplies the MLP branch.
    pub mlp_gate: Tensor<B, 2>,
}

impl<B: Backend> BlockModulation<B> {
    /// What a block's head makes of `tau: [rows, c]`, in the method's order.
    pub fn new(head: &ModulationHead<B>, tau: Tensor<B, 2>) -> Self {
        let [attention_scale, attention_shift, attention_gate, mlp_scale, mlp_shift, mlp_gate] =
            head.forward_parts(tau);
        Self { attention_scale, attention_shift, attention_gate, mlp_scale, mlp_shift, mlp_gate }
    }

    fn map(&self, f: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>) -> Self {
        Self {
            attention_scale: f(self.attention_scale.clone()),
            attention_shift: f(self.attention_shift.clone()),
            attention_gate: f(self.attention_gate.clone()),
            mlp_scale: f(self.mlp_scale.clone()),
            mlp_shift: f(self.mlp_shift.clone()),
            mlp_gate: f(self.mlp_gate.clone()),
        }
    }
}

/// Everything `(t, class)` decides for a set of rows.
#[derive(Debug, Clone)]
pub struct Modulation<B: Backend> {
    /// `1 / sqrt((1 - t)^2 sigma^2 + t^2)`, the rescaling of `x_t` to unit variance; `[rows, 1]`, f32.
    pub input_scale: Tensor<B, 2>,
    /// Per block.
    pub blocks: Vec<BlockModulation<B>>,
    /// `w(t, class)`, `[rows, H]`; exactly zero where `t = 0`.
    pub final_weight: Tensor<B, 2>,
}

impl<B: Backend> Modulation<B> {
    /// Row `row` for all: `[1, _]` each. From a table over a whole grid of times this picks one time.
    pub fn row(&self, row: usize) -> Self {
        self.map(|x| x.narrow(0, row, 1))
    }

    /// The given rows, in the given order.
    pub fn rows(&self, rows: &[usize]) -> Self {
        let indices: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let indices = Tensor::<B, 1, burn::tensor::Int>::from_data(indices.as_slice(), &self.final_weight.device());
        self.map(|x| x.select(0, indices.clone()))
    }

    fn map(&self, f: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>) -> Self {
        Self {
            input_scale: f(self.input_scale.clone()),
            blocks: self.blocks.iter().map(|block| block.map(&f)).collect(),
            final_weight: f(self.final_weight.clone()),
        }
    }
}
