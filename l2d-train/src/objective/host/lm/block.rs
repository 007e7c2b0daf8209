//! One block of the LM whose own weights, or low-rank corrections of them, are trained: forward and backward.

use l2d_core::config::LmConfig;
use l2d_core::cpu::dense::{
    Heads, Sequence, add, add_norm_weight_gradient, attend, attend_backward_all, norm, norm_backward, rotate, swiglu,
    swiglu_backward,
};
use l2d_core::lm::Dropout;

use super::super::buffers::Buffers;
use super::super::frozen::Angles;
use super::super::layers::{Adapted, Gradients, Parameters};

/// What all blocks of a step share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) config: &'a LmConfig,
    pub(super) heads: Heads,
    pub(super) angles: &'a Angles,
    pub(super) sequences: &'a [Sequence],
    pub(super) parameters: &'a Parameters,
    /// What the tokens' corrections drop.
    pub(super) dropout: Option<&'a Dropout>,
}

/// A block's norms and layers.
#[derive(Debug)]
pub(super) struct LmBlock<'a> {
    pub(super) step: Step<'a>,
    /// Weight and name of the norm before attention, and of that before the MLP.
    pub(super) norms: [(&'a [f32], &'a str); 2],
    /// Query, key, value, output, gate, up, down.
    pub(super) layers: [Adapted<'a>; 7],
    /// Norms are trained.
    pub(super) full: bool,
}

/// What a block's way back needs of its way there; all `[tokens, _]`.
#[derive(Debug)]
pub(super) struct Tape {
    x: Vec<f32>,
    /// After attention.
    middle: Vec<f32>,
    /// Rotated.
    queries: Vec<f32>,
    /// Rotated.
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
    log_sums: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `(alpha / r) x A` of each layer.
    narrow: [Vec<f32>; 7],
}

impl Tape {
    pub(super) fn give_to(self, buffers: &mut Buffers) {
        let Self { x, middle, queries, keys, values, mixed, log_sums, gate, up, narrow } = self;
        let all = [x, middle, queries, keys, values, mixed, log_sums, gate, up];
        all.into_iter().chain(narrow).for_each(|buffer| buffers.give(buffer));
    }

    /// The block's input alone, the rest given back.
    pub(super) fn into_input(mut self, buffers: &mut Buffers) -> Vec<f32> {
        let x = std::mem::take(&mut self.x);
        self.give_to(buffers);
        x
    }
}

impl LmBlock<'_> {
    /// `x: [tokens, H]` to the block's output.
    pub(super) fn forward(&self, x: Vec<f32>, buffers: &mut Buffers) -> (Vec<f32>, Tape) {
        let Step { config, heads, angles, sequences, parameters, .. } = self.step;
        let eps = config.rms_norm_eps;
        let [query, key, value, output, gate, up, down] = &self.layers;
        let mut u = buffers.take(x.len());
        norm(&mut u, &x, self.norms[0].0, eps, None);
        let (mut queries, narrow_query) = query.forward(parameters, &u, buffers);
        let (mut keys, narrow_key) = key.forward(parameters, &u, buffers);
        let (values, narrow_value) = value.forward(parameters, &u, buffers);
        rotate(&mut queries, &angles.cos, &angles.sin, angles.half, false);
        rotate(&mut keys, &angles.cos, &angles.sin, angles.half, false);
        let mut mixed = buffers.take(queries.len());
        let log_sums = attend(&mut mixed, &queries, &keys, &values, heads, sequences);
        let (mut middle, narrow_output) = output.forward(parameters, &mixed, buffers);
        add(&mut middle, &x);

        norm(&mut u, &middle, self.norms[1].0, eps, None);
        let (gate, narrow_gate) = gate.forward(parameters, &u, buffers);
        let (up, narrow_up) = up.forward(parameters, &u, buffers);
        let mut inner = buffers.take(gate.len());
        swiglu(&mut inner, &gate, &up);
        let (mut out, narrow_down) = down.forward(parameters, &inner, buffers);
        add(&mut out, &middle);
        [u, inner].into_iter().for_each(|buffer| buffers.give(buffer));
        let narrow = [narrow_query, narrow_key, narrow_value, narrow_output, narrow_gate, narrow_up, narrow_down];
        (out, Tape { x, middle, queries, keys, values, mixed, log_sums, gate, up, narrow })
    }

    /// From `dx`, the gradient of the block's output, to that of its input, in place. Adds the parameters' gradients.
    pub(super) fn backward(&self, dx: &mut [f32], tape: Tape, gradients: &mut Gradients, buffers: &mut Buffers) {
        let Step { config, heads, angles, sequences, parameters, .. } = self.step;
        let eps = config.rms_norm_eps;
        let [query, key, value, output, gate, up, down] = &self.layers;
        let Tape { x, middle, queries, keys, values, mixed, log_sums, gate: g, up: p, narrow } = tape;
        let [narrow_query, narrow_key, narrow_value, narrow_output, narrow_gate, narrow_up, narrow_down] = &narrow;

        // The MLP.
        let (mut inner, mut dinner) = (buffers.take(g.len()), buffers.take(g.len()));
        swiglu(&mut inner, &g, &p);
        down.backward(parameters, gradients, (&inner, narrow_down, dx), &mut dinner, false, buffers);
        let (mut dgate, mut dup) = (g, p);
        swiglu_backward(&mut dgate, &mut dup, &dinner);
        let (mut u, mut du) = (buffers.take(x.len()), buffers.take(x.len()));
        let inverse = norm(&mut u, &middle, self.norms[1].0, eps, None);
        gate.backward(parameters, gradients, (&u, narrow_gate, &dgate), &mut du, false, buffers);
        up.backward(parameters, gradients, (&u, narrow_up, &dup), &mut du, true, buffers);
        self.norm_backward(1, dx, &du, &middle, &inverse, gradients);
        [inner, dinner, dgate, dup].into_iter().for_each(|buffer| buffers.give(buffer));

        // Attention.
        let (mut dmixed, mut dqueries) = (buffers.take(mixed.len()), buffers.take(queries.len()));
        let (mut dkeys, mut dvalues) = (buffers.zeros(keys.len()), buffers.zeros(values.len()));
        output.backward(parameters, gradients, (&mixed, narrow_output, dx), &mut dmixed, false, buffers);
        let inputs = [&queries[..], &keys, &values];
        let outputs = [&mut dqueries[..], &mut dkeys, &mut dvalues];
        attend_backward_all(outputs, &dmixed, &mixed, &log_sums, inputs, heads, sequences);
        rotate(&mut dqueries, &angles.cos, &angles.sin, angles.half, true);
        rotate(&mut dkeys, &angles.cos, &angles.sin, angles.half, true);
        let inverse = norm(&mut u, &x, self.norms[0].0, eps, None);
        query.backward(parameters, gradients, (&u, narrow_query, &dqueries), &mut du, false, buffers);
        key.backward(parameters, gradients, (&u, narrow_key, &dkeys), &mut du, true, buffers);
        value.backward(parameters, gradients, (&u, narrow_value, &dvalues), &mut du, true, buffers);
        self.norm_backward(0, dx, &du, &x, &inverse, gradients);
        let all = [u, du, dmixed, dqueries, dkeys, dvalues, x, middle, queries, keys, values, mixed, log_sums];
        all.into_iter().chain(narrow).for_each(|buffer| buffers.give(buffer));
    }

    fn norm_backward(
        &self,
        which: usize,
        dx: &mut [f32],
        du: &[f32],
        x: &[f32],
        inverse: &[f32],
        gradients: &mut Gradients,
    ) {
        let (weight, name) = self.norms[which];
        if self.full {
            add_norm_weight_gradient(gradients.of(name, "weight", weight.len()), du, x, inverse);
        }
        norm_backward(dx, &mut [], du, x, inverse, weight, None);
    }
}
