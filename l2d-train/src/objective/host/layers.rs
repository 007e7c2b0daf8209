//! The layers of the diffusion path on the host: frozen, trained and adapted, forward and backward.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use l2d_core::cpu::dense::{
    Products, Right, View, add_column_sums, multiply, multiply_right, multiply_right_biased, silu, silu_backward,
};
use l2d_core::diffusion::Variant;
use l2d_core::lm::{Dropout, HostTensor};
use l2d_core::parameters::{parameters, trained_parameters};

use crate::optimiser::NamedGradients;

use super::buffers::Buffers;

/// `prefix.name`, or whichever of the two is not empty.
fn joined(prefix: &str, name: &str) -> String {
    let dot = if prefix.is_empty() || name.is_empty() { "" } else { "." };
    format!("{prefix}{dot}{name}")
}

/// Trained parameters by name, as they are in this step, and how they are multiplied.
#[derive(Debug)]
pub(super) struct Parameters {
    tensors: BTreeMap<String, HostTensor>,
    products: Products,
}

impl Parameters {
    pub(super) fn of<B: Backend, M: Module<B>>(module: &M, products: Products) -> Self {
        let tensors = parameters(module).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Self { tensors, products }
    }

    /// Those of the module's parameters that are trained.
    pub(super) fn trained<B: Backend, M: Module<B>>(module: &M, products: Products) -> Self {
        let tensors = trained_parameters(module).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Self { tensors, products }
    }

    /// Values of the parameter `prefix.name`.
    ///
    /// # Panics
    /// If the module has none.
    pub(super) fn get(&self, prefix: &str, name: &str) -> &[f32] {
        self.find(prefix, name).unwrap_or_else(|| panic!("the path has a parameter {prefix}.{name}"))
    }

    pub(super) fn find(&self, prefix: &str, name: &str) -> Option<&[f32]> {
        let name = joined(prefix, name);
        self.tensors.get(&name).map(|tensor| &tensor.values[..])
    }
}

/// Gradients of the trained parameters, by name.
#[derive(Debug, Default)]
pub(super) struct Gradients(BTreeMap<String, Vec<f32>>);

impl Gradients {
    /// The gradient of `prefix.name`, zeros at first.
    pub(super) fn of(&mut self, prefix: &str, name: &str, len: usize) -> &mut [f32] {
        let name = joined(prefix, name);
        self.0.entry(name).or_insert_with(|| vec![0.0; len])
    }

    /// Adds the product of `a: [rows, _]` on its side with `b: [rows, _]`.
    pub(super) fn add_product(&mut self, prefix: &str, name: &str, a: View<'_>, b: View<'_>) {
        let name = joined(prefix, name);
        let known = self.0.contains_key(&name);
        let sum = self.0.entry(name).or_insert_with(|| vec![0.0; a.width() * b.width()]);
        // What is not there need not be read.
        multiply(sum, a.t(), b, 1.0, known);
    }

    pub(super) fn into_named<B: Backend>(self, device: &B::Device) -> NamedGradients<B> {
        NamedGradients::from_named(self.0.into_iter().map(|(name, values)| {
            let count = values.len();
            (name, Tensor::from_data(TensorData::new(values, [count]), device))
        }))
    }

    /// Adds what a layer `y = x W + b` called `prefix` learns from `dy`.
    pub(super) fn add_linear(
        &mut self,
        prefix: &str,
        x: &[f32],
        dy: &[f32],
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) {
        self.add_product(prefix, "weight", View::new(x, inputs), View::new(dy, outputs));
        if bias {
            add_column_sums(self.of(prefix, "bias", outputs), dy);
        }
    }
}

/// `Linear, SiLU, Linear`: translation, time embedding and all heads of the modulation.
#[derive(Debug, Clone, Copy)]
pub(super) struct TwoLayers {
    pub(super) inputs: usize,
    pub(super) inner: usize,
    pub(super) outputs: usize,
}

impl TwoLayers {
    /// `x: [rows, inputs]` to the first layer's result `[rows, inner]`, kept for the way back, and `[rows, outputs]`.
    pub(super) fn forward(
        self,
        parameters: &Parameters,
        prefix: &str,
        x: &[f32],
        buffers: &mut Buffers,
    ) -> (Vec<f32>, Vec<f32>) {
        let rows = x.len() / self.inputs;
        let layer = |name: &str| format!("{prefix}.{name}");
        let mut before = buffers.take(rows * self.inner);
        linear(&mut before, x, parameters, &layer("inner"), self.inner, buffers);
        let mut active = buffers.take(before.len());
        silu(&mut active, &before);
        let mut y = buffers.take(rows * self.outputs);
        linear(&mut y, &active, parameters, &layer("outer"), self.outputs, buffers);
        buffers.give(active);
        (before, y)
    }

    /// Adds the layers' gradients; adds `dL/dx` to `dx` where it is wanted.
    pub(super) fn backward(
        self,
        parameters: &Parameters,
        gradients: &mut Gradients,
        prefix: &str,
        (x, before, dy): (&[f32], &[f32], &[f32]),
        dx: Option<&mut [f32]>,
        buffers: &mut Buffers,
    ) {
        let layer = |name: &str| format!("{prefix}.{name}");
        let mut active = buffers.take(before.len());
        silu(&mut active, before);
        gradients.add_linear(&layer("outer"), &active, dy, self.inner, self.outputs, true);
        let mut d = active;
        let outer = layer("outer");
        linear_backward(&mut d, dy, parameters, &outer, self.outputs, false, buffers);
        silu_backward(&mut d, before);
        gradients.add_linear(&layer("inner"), x, &d, self.inputs, self.inner, true);
        if let Some(dx) = dx {
            linear_backward(dx, &d, parameters, &layer("inner"), self.inner, true, buffers);
        }
        buffers.give(d);
    }
}

/// `y = x W + b` of a trained layer.
pub(super) fn linear(
    y: &mut [f32],
    x: &[f32],
    parameters: &Parameters,
    prefix: &str,
    outputs: usize,
    buffers: &mut Buffers,
) {
    buffers.right.pack(View::new(parameters.get(prefix, "weight"), outputs), parameters.products);
    match parameters.find(prefix, "bias") {
        Some(bias) => multiply_right_biased(y, x, &buffers.right, bias),
        None => multiply_right(y, x, &buffers.right, 1.0, false),
    }
}

/// `dx = dy W^T` of a trained layer, added where `accumulate`.
fn linear_backward(
    dx: &mut [f32],
    dy: &[f32],
    parameters: &Parameters,
    prefix: &str,
    outputs: usize,
    accumulate: bool,
    buffers: &mut Buffers,
) {
    buffers.right.pack(View::new(parameters.get(prefix, "weight"), outputs).t(), parameters.products);
    multiply_right(dx, dy, &buffers.right, 1.0, accumulate);
}

/// A frozen layer's bias, and its weight as it stands in memory for the moment: for one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen<'a> {
    pub(super) weight: &'a Right,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Frozen<'_> {
    /// `x: [rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, x: &[f32], buffers: &mut Buffers) -> Vec<f32> {
        let mut y = buffers.take(x.len() / self.inputs * self.outputs);
        match self.bias {
            Some(bias) => multiply_right_biased(&mut y, x, self.weight, bias),
            None => multiply_right(&mut y, x, self.weight, 1.0, false),
        }
        y
    }
}

/// The path's version of a frozen layer (METHOD section 6): `base(x) + (alpha / r) (x A) B`, or a layer of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Adapted<'a> {
    pub(super) base: Frozen<'a>,
    pub(super) variant: Variant,
    pub(super) prefix: &'a str,
    /// What a correction drops of its input, as the layer at a place of a block.
    pub(super) dropout: Option<(&'a Dropout, usize, usize)>,
}

impl Adapted<'_> {
    /// What each input of the correction is multiplied with, `[rows, in]`; `None` where nothing is dropped.
    fn factors(&self) -> Option<Vec<f32>> {
        self.dropout.map(|(dropout, block, place)| dropout.of_layer(block, place).factors(self.base.inputs))
    }

    /// `x: [rows, in]` to `[rows, out]`; and `(alpha / r) x A`, `[rows, r]`, empty where the layer is the path's own.
    pub(super) fn forward(&self, parameters: &Parameters, x: &[f32], buffers: &mut Buffers) -> (Vec<f32>, Vec<f32>) {
        let Frozen { inputs, outputs, .. } = self.base;
        match self.variant {
            Variant::Lora { rank, alpha } => {
                let mut y = self.base.forward(x, buffers);
                let mut narrow = buffers.take(x.len() / inputs * rank);
                let scale = (alpha / rank as f64) as f32;
                let (a, b) = (parameters.get(self.prefix, "a"), parameters.get(self.prefix, "b"));
                buffers.right.pack(View::new(a, rank), parameters.products);
                let left = self.factors().map(|factors| products(factors, x));
                multiply_right(&mut narrow, left.as_deref().unwrap_or(x), &buffers.right, scale, false);
                buffers.right.pack(View::new(b, outputs), parameters.products);
                multiply_right(&mut y, &narrow, &buffers.right, 1.0, true);
                (y, narrow)
            }
            Variant::Full | Variant::Scratch => {
                let mut y = buffers.take(x.len() / inputs * outputs);
                linear(&mut y, x, parameters, self.prefix, outputs, buffers);
                (y, Vec::new())
            }
        }
    }

    /// Adds the layer's gradients and writes (or, where `accumulate`, adds) `dL/dx` to `dx`.
    pub(super) fn backward(
        &self,
        parameters: &Parameters,
        gradients: &mut Gradients,
        (x, narrow, dy): (&[f32], &[f32], &[f32]),
        dx: &mut [f32],
        accumulate: bool,
        buffers: &mut Buffers,
    ) {
        let Frozen { inputs, outputs, weight, bias } = self.base;
        match self.variant {
            Variant::Lora { rank, alpha } => {
                let scale = (alpha / rank as f64) as f32;
                let (a, b) = (parameters.get(self.prefix, "a"), parameters.get(self.prefix, "b"));
                multiply_right(dx, dy, weight, 1.0, accumulate);
                gradients.add_product(self.prefix, "b", View::new(narrow, rank), View::new(dy, outputs));
                let mut dnarrow = buffers.take(narrow.len());
                buffers.right.pack(View::new(b, outputs).t(), parameters.products);
                multiply_right(&mut dnarrow, dy, &buffers.right, scale, false);
                buffers.right.pack(View::new(a, rank).t(), parameters.products);
                match self.factors() {
                    None => {
                        gradients.add_product(self.prefix, "a", View::new(x, inputs), View::new(&dnarrow, rank));
                        multiply_right(dx, &dnarrow, &buffers.right, 1.0, true);
                    }
                    Some(factors) => {
                        let mut dleft = buffers.take(dx.len());
                        multiply_right(&mut dleft, &dnarrow, &buffers.right, 1.0, false);
                        let kept = dleft.iter().zip(&factors);
                        dx.iter_mut().zip(kept).for_each(|(sum, (d, factor))| *sum += d * factor);
                        buffers.give(dleft);
                        let left = products(factors, x);
                        gradients.add_product(self.prefix, "a", View::new(&left, inputs), View::new(&dnarrow, rank));
                    }
                }
                buffers.give(dnarrow);
            }
            Variant::Full | Variant::Scratch => {
                linear_backward(dx, dy, parameters, self.prefix, outputs, accumulate, buffers);
                gradients.add_linear(self.prefix, x, dy, inputs, outputs, bias.is_some());
            }
        }
    }
}

/// Number by number, in the first.
fn products(mut factors: Vec<f32>, x: &[f32]) -> Vec<f32> {
    factors.iter_mut().zip(x).for_each(|(factor, x)| *factor *= x);
    factors
}
