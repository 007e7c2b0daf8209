//! One block of the diffusion path (METHOD section 6) on the host, forward and backward.

use l2d_core::config::LmConfig;
use l2d_core::cpu::dense::{
    Heads, Modulated, Sequence, attend, attend_backward, gate_branch, gate_branch_backward, norm, norm_backward,
    rotate, swiglu, swiglu_backward,
};
use l2d_core::diffusion::Variant;
use l2d_core::lm::Dropout;

use super::buffers::Buffers;
use super::frozen::{Angles, FrozenBlock};
use super::layers::{Adapted, Gradients, Parameters, TwoLayers};

/// What all blocks of a step share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) config: &'a LmConfig,
    pub(super) variant: Variant,
    pub(super) conditioning: usize,
    pub(super) heads: Heads,
    /// Of the diffusion tokens.
    pub(super) angles: &'a Angles,
    /// Their rows, and where the keys and values of their sequences are.
    pub(super) sequences: &'a [Sequence],
    /// `tau(t, class)`, `[rows, c]`.
    pub(super) tau: &'a [f32],
    /// What the rows' corrections drop.
    pub(super) dropout: Option<&'a Dropout>,
}

/// What a block's way back needs of its way there; all `[rows, _]`.
#[derive(Debug)]
pub(super) struct Tape {
    z: Vec<f32>,
    /// After attention.
    middle: Vec<f32>,
    /// The modulation, and its head before the activation.
    modulation: Vec<f32>,
    head: Vec<f32>,
    /// Rotated.
    queries: Vec<f32>,
    mixed: Vec<f32>,
    /// One number a row and query head, see [`attend`].
    log_sums: Vec<f32>,
    attention: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    mlp: Vec<f32>,
    /// `(alpha / r) x A` of query, output, gate, up, down.
    narrow: [Vec<f32>; 5],
}

impl Tape {
    pub(super) fn give_to(self, buffers: &mut Buffers) {
        let Self { z, middle, modulation, head, queries, mixed, log_sums, attention, gate, up, mlp, narrow } = self;
        let all = [z, middle, modulation, head, queries, mixed, log_sums, attention, gate, up, mlp];
        all.into_iter().chain(narrow).for_each(|buffer| buffers.give(buffer));
    }

    /// The block's input alone, the rest given back.
    pub(super) fn into_input(mut self, buffers: &mut Buffers) -> Vec<f32> {
        let z = std::mem::take(&mut self.z);
        self.give_to(buffers);
        z
    }
}

/// The block beside a frozen one, the parameters of which are called `prefix...`.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostBlock<'a> {
    pub(super) step: Step<'a>,
    pub(super) base: FrozenBlock<'a>,
    pub(super) parameters: &'a Parameters,
    pub(super) names: &'a Names,
}

/// Names of a block's layers.
#[derive(Debug)]
pub(super) struct Names {
    /// Which block.
    layer: usize,
    pub(super) modulation: String,
    pub(super) query: String,
    pub(super) output: String,
    pub(super) gate: String,
    pub(super) up: String,
    pub(super) down: String,
}

impl Names {
    pub(super) fn of(layer: usize) -> Self {
        let name = |part: &str| format!("blocks.{layer}.{part}");
        Self {
            layer,
            modulation: name("modulation"),
            query: name("query"),
            output: name("output"),
            gate: name("gate"),
            up: name("up"),
            down: name("down"),
        }
    }
}

/// Places of the six modulations in a row, in units of the hidden size.
const SCALE_A: usize = 0;
const SHIFT_A: usize = 1;
const GATE_A: usize = 2;
const SCALE_M: usize = 3;
const SHIFT_M: usize = 4;
const GATE_M: usize = 5;

impl<'a> HostBlock<'a> {
    fn hidden(&self) -> usize {
        self.step.config.hidden_size
    }

    fn head(&self) -> TwoLayers {
        let c = self.step.conditioning;
        TwoLayers { inputs: c, inner: c, outputs: 6 * self.hidden() }
    }

    /// Query, output, gate, up, down.
    fn layers(&self) -> [Adapted<'a>; 5] {
        let FrozenBlock { query, output, gate, up, down, .. } = self.base;
        let Names { query: q, output: o, gate: g, up: u, down: d, layer, .. } = self.names;
        let layers = [(query, q), (output, o), (gate, g), (up, u), (down, d)];
        std::array::from_fn(|place| Adapted {
            base: layers[place].0,
            variant: self.step.variant,
            prefix: layers[place].1,
            dropout: self.step.dropout.map(|dropout| (dropout, *layer, place)),
        })
    }

    fn modulated<'m>(&self, values: &'m [f32], scale: usize, shift: usize) -> Modulated<'m> {
        let hidden = self.hidden();
        Modulated { values, stride: 6 * hidden, scale: scale * hidden, shift: shift * hidden }
    }

    /// `z: [rows, H]` to the block's output, with the main path's `keys` and `values` of this layer.
    pub(super) fn forward(&self, z: Vec<f32>, keys: &[f32], values: &[f32], buffers: &mut Buffers) -> (Vec<f32>, Tape) {
        let (hidden, eps, heads) = (self.hidden(), self.step.config.rms_norm_eps, self.step.heads);
        let stride = 6 * hidden;
        let [query, output, gate, up, down] = self.layers();
        let parameters = self.parameters;
        let (head, modulation) = self.head().forward(parameters, &self.names.modulation, self.step.tau, buffers);

        let mut u = buffers.take(z.len());
        norm(&mut u, &z, self.base.attention_norm, eps, Some(self.modulated(&modulation, SCALE_A, SHIFT_A)));
        let (mut queries, narrow_query) = query.forward(parameters, &u, buffers);
        let angles = self.step.angles;
        rotate(&mut queries, &angles.cos, &angles.sin, angles.half, false);
        let mut mixed = buffers.take(queries.len());
        let log_sums = attend(&mut mixed, &queries, keys, values, heads, self.step.sequences);
        let (attention, narrow_output) = output.forward(parameters, &mixed, buffers);
        let mut middle = buffers.take(z.len());
        gate_branch(&mut middle, &z, &attention, &modulation, stride, GATE_A * hidden);

        norm(&mut u, &middle, self.base.mlp_norm, eps, Some(self.modulated(&modulation, SCALE_M, SHIFT_M)));
        let (gate, narrow_gate) = gate.forward(parameters, &u, buffers);
        let (up, narrow_up) = up.forward(parameters, &u, buffers);
        let mut inner = buffers.take(gate.len());
        swiglu(&mut inner, &gate, &up);
        let (mlp, narrow_down) = down.forward(parameters, &inner, buffers);
        let mut out = u;
        gate_branch(&mut out, &middle, &mlp, &modulation, stride, GATE_M * hidden);
        buffers.give(inner);

        let narrow = [narrow_query, narrow_output, narrow_gate, narrow_up, narrow_down];
        let tape = Tape { z, middle, modulation, head, queries, mixed, log_sums, attention, gate, up, mlp, narrow };
        (out, tape)
    }

    /// From `dz`, the gradient of the block's output, to that of its input, in place. Adds the parameters' gradients, and
    /// `dL/dtau` to `dtau`.
    pub(super) fn backward(
        &self,
        dz: &mut [f32],
        dtau: &mut [f32],
        tape: Tape,
        (keys, values): (&[f32], &[f32]),
        gradients: &mut Gradients,
        buffers: &mut Buffers,
    ) {
        let (hidden, eps) = (self.hidden(), self.step.config.rms_norm_eps);
        let stride = 6 * hidden;
        let [query, output, gate, up, down] = self.layers();
        let parameters = self.parameters;
        let Tape { z, middle, modulation, head, queries, mixed, log_sums, attention, gate: g, up: p, mlp, narrow } =
            tape;
        let [narrow_query, narrow_output, narrow_gate, narrow_up, narrow_down] = &narrow;
        let mut dmodulation = buffers.take(modulation.len());

        // The MLP.
        let mut d = mlp;
        gate_branch_backward(&mut d, &mut dmodulation, dz, &modulation, stride, GATE_M * hidden);
        let (mut inner, mut dinner) = (buffers.take(g.len()), buffers.take(g.len()));
        swiglu(&mut inner, &g, &p);
        down.backward(parameters, gradients, (&inner, narrow_down, &d), &mut dinner, false, buffers);
        let (mut dgate, mut dup) = (g, p);
        swiglu_backward(&mut dgate, &mut dup, &dinner);
        let (mut u, mut du) = (d, buffers.take(z.len()));
        let modulated = self.modulated(&modulation, SCALE_M, SHIFT_M);
        let inverse = norm(&mut u, &middle, self.base.mlp_norm, eps, Some(modulated));
        gate.backward(parameters, gradients, (&u, narrow_gate, &dgate), &mut du, false, buffers);
        up.backward(parameters, gradients, (&u, narrow_up, &dup), &mut du, true, buffers);
        norm_backward(dz, &mut dmodulation, &du, &middle, &inverse, self.base.mlp_norm, Some(modulated));
        [inner, dinner, dgate, dup].into_iter().for_each(|buffer| buffers.give(buffer));

        // Attention.
        let mut d = attention;
        gate_branch_backward(&mut d, &mut dmodulation, dz, &modulation, stride, GATE_A * hidden);
        let (mut dmixed, mut dqueries) = (buffers.take(mixed.len()), buffers.take(queries.len()));
        output.backward(parameters, gradients, (&mixed, narrow_output, &d), &mut dmixed, false, buffers);
        let (heads, sequences) = (self.step.heads, self.step.sequences);
        attend_backward(&mut dqueries, &dmixed, &mixed, &log_sums, &queries, keys, values, heads, sequences);
        let angles = self.step.angles;
        rotate(&mut dqueries, &angles.cos, &angles.sin, angles.half, true);
        let modulated = self.modulated(&modulation, SCALE_A, SHIFT_A);
        let inverse = norm(&mut u, &z, self.base.attention_norm, eps, Some(modulated));
        query.backward(parameters, gradients, (&u, narrow_query, &dqueries), &mut du, false, buffers);
        norm_backward(dz, &mut dmodulation, &du, &z, &inverse, self.base.attention_norm, Some(modulated));
        [d, dmixed, dqueries, u, du, middle, z, queries, mixed, log_sums, modulation]
            .into_iter()
            .for_each(|buffer| buffers.give(buffer));
        narrow.into_iter().for_each(|buffer| buffers.give(buffer));

        let sides = (self.step.tau, &head[..], &dmodulation[..]);
        self.head().backward(parameters, gradients, &self.names.modulation, sides, Some(dtau), buffers);
        [head, dmodulation].into_iter().for_each(|buffer| buffers.give(buffer));
    }
}
