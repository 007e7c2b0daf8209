//! Before and behind the blocks: from targets and noise to the path's first hidden state, from times to the conditioning,
//! and from the last hidden state to the loss (METHOD sections 2 to 5).

use l2d_core::cpu::dense::add_column_sums;
use l2d_core::diffusion::{DiffusionConfig, time_features};

use super::buffers::Buffers;
use super::layers::{Gradients, Parameters, TwoLayers, linear};

/// Names of the path's parts.
const VOCABULARY: &str = "vocabulary.projection";
const TRANSLATION: &str = "translation";
const TIMESTEP: &str = "timestep";
const FINAL_WEIGHT: &str = "final_weight";
const CLASSES: &str = "classes";

/// The random draws and targets, one of each a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) targets: &'a [u32],
    pub(super) timesteps: &'a [f32],
    /// Standard normal, `[rows, d]`.
    pub(super) noise: &'a [f32],
    /// Class of each row; `None` where the path knows none.
    pub(super) classes: Option<&'a [usize]>,
}

/// `x_t` on its way into the path.
#[derive(Debug)]
pub(super) struct Encoder {
    /// `e_y`, `[rows, H]`.
    embeddings: Vec<f32>,
    /// `W_v e_y + b_v`, `[rows, d]`.
    projected: Vec<f32>,
    /// `x_t` of unit variance, `[rows, d]`.
    scaled: Vec<f32>,
    /// The translation before its activation.
    translation: Vec<f32>,
}

fn translation(config: &DiffusionConfig, hidden: usize) -> TwoLayers {
    TwoLayers { inputs: config.dim, inner: config.translation_hidden, outputs: hidden }
}

/// `1 / sqrt((1 - t)^2 sigma^2 + t^2)`.
fn input_scale(config: &DiffusionConfig, t: f32) -> f32 {
    let sigma = config.sigma as f32;
    1.0 / ((1.0 - t) * (1.0 - t) * sigma * sigma + t * t).sqrt()
}

impl Encoder {
    /// The path's first hidden state `[rows, H]` from the targets' input embeddings `[rows, H]`, and what its way back needs.
    pub(super) fn forward(
        embeddings: Vec<f32>,
        parameters: &Parameters,
        config: &DiffusionConfig,
        inputs: Inputs<'_>,
        buffers: &mut Buffers,
    ) -> (Self, Vec<f32>) {
        let (rows, dim) = (inputs.targets.len(), config.dim);
        let hidden = embeddings.len() / rows;
        let mut projected = buffers.take(rows * dim);
        linear(&mut projected, &embeddings, parameters, VOCABULARY, dim, buffers);
        let mut scaled = buffers.take(rows * dim);
        let rows = scaled.chunks_exact_mut(dim).zip(projected.chunks_exact(dim)).zip(inputs.noise.chunks_exact(dim));
        for (((x, z), noise), &t) in rows.zip(inputs.timesteps) {
            let (radius, scale) = (radius_over_norm(z), input_scale(config, t));
            let sigma = config.sigma as f32;
            for ((x, z), noise) in x.iter_mut().zip(z).zip(noise) {
                *x = (z * radius * t + noise * sigma * (1.0 - t)) * scale;
            }
        }
        let (before, z) = translation(config, hidden).forward(parameters, TRANSLATION, &scaled, buffers);
        (Self { embeddings, projected, scaled, translation: before }, z)
    }

    /// Adds the gradients of translation and diffusion vocabulary, from that of the first hidden state.
    pub(super) fn backward(
        self,
        parameters: &Parameters,
        gradients: &mut Gradients,
        config: &DiffusionConfig,
        inputs: Inputs<'_>,
        dz: &[f32],
        buffers: &mut Buffers,
    ) {
        let (dim, hidden) = (config.dim, dz.len() / inputs.targets.len());
        let mut dscaled = buffers.zeros(self.scaled.len());
        let sides = (&self.scaled[..], &self.translation[..], dz);
        translation(config, hidden).backward(parameters, gradients, TRANSLATION, sides, Some(&mut dscaled), buffers);
        // `x_1 = sqrt(d) z / |z|`: only what is perpendicular to z comes through.
        for ((d, z), &t) in dscaled.chunks_exact_mut(dim).zip(self.projected.chunks_exact(dim)).zip(inputs.timesteps) {
            let (radius, factor) = (radius_over_norm(z), input_scale(config, t) * t);
            let along: f32 = d.iter().zip(z).map(|(d, z)| d * z).sum::<f32>() / z.iter().map(|z| z * z).sum::<f32>();
            for (d, z) in d.iter_mut().zip(z) {
                *d = (*d - z * along) * radius * factor;
            }
        }
        gradients.add_linear(VOCABULARY, &self.embeddings, &dscaled, hidden, dim, true);
        let Self { embeddings, projected, scaled, translation } = self;
        [embeddings, projected, scaled, translation, dscaled].into_iter().for_each(|buffer| buffers.give(buffer));
    }
}

/// `sqrt(d) / max(|z|, 1e-12)`.
fn radius_over_norm(z: &[f32]) -> f32 {
    let norm = z.iter().map(|z| z * z).sum::<f32>().sqrt().max(1e-12);
    (z.len() as f32).sqrt() / norm
}

/// `tau(t, class)` and the path's final weight, for all rows.
#[derive(Debug)]
pub(super) struct Conditioning {
    features: Vec<f32>,
    timestep: Vec<f32>,
    /// `[rows, c]`.
    pub(super) tau: Vec<f32>,
    final_head: Vec<f32>,
    /// `w(t, class)`, `[rows, H]`.
    pub(super) final_weight: Vec<f32>,
    /// The same at `t = 0`: one row, or one for each class.
    zero: Zero,
}

#[derive(Debug)]
struct Zero {
    features: Vec<f32>,
    timestep: Vec<f32>,
    tau: Vec<f32>,
    final_head: Vec<f32>,
}

impl Conditioning {
    pub(super) fn forward(
        parameters: &Parameters,
        config: &DiffusionConfig,
        hidden: usize,
        inputs: Inputs<'_>,
        buffers: &mut Buffers,
    ) -> Self {
        let c = config.conditioning;
        let (embedding, head) = (timestep(config), final_head(config, hidden));
        let features = time_features(inputs.timesteps, config.time_features);
        let (timestep, mut tau) = embedding.forward(parameters, TIMESTEP, &features, buffers);
        let table = parameters.find("", CLASSES);
        if let (Some(table), Some(classes)) = (table, inputs.classes) {
            for (tau, &class) in tau.chunks_exact_mut(c).zip(classes) {
                tau.iter_mut().zip(&table[class * c..][..c]).for_each(|(tau, e)| *tau += e);
            }
        }
        let (final_before, mut final_weight) = head.forward(parameters, FINAL_WEIGHT, &tau, buffers);

        let zero_features = time_features(&[0.0], config.time_features);
        let (zero_timestep, at_zero) = embedding.forward(parameters, TIMESTEP, &zero_features, buffers);
        let zero_tau = match table {
            None => at_zero,
            Some(table) => table.iter().enumerate().map(|(i, e)| e + at_zero[i % c]).collect(),
        };
        let (zero_head, offsets) = head.forward(parameters, FINAL_WEIGHT, &zero_tau, buffers);
        for (row, weight) in final_weight.chunks_exact_mut(hidden).enumerate() {
            if inputs.timesteps[row] == 0.0 {
                // Exactly zero, however the two products rounded.
                weight.fill(0.0);
                continue;
            }
            let class = inputs.classes.map_or(0, |classes| classes[row]);
            weight.iter_mut().zip(&offsets[class * hidden..][..hidden]).for_each(|(w, offset)| *w -= offset);
        }
        buffers.give(offsets);
        let zero = Zero { features: zero_features, timestep: zero_timestep, tau: zero_tau, final_head: zero_head };
        Self { features, timestep, tau, final_head: final_before, final_weight, zero }
    }

    /// Adds the gradients of the final weight's head, the time embedding and the classes, from `dweight = dL/dw` and `dtau`,
    /// what the blocks' heads passed down.
    pub(super) fn backward(
        self,
        parameters: &Parameters,
        gradients: &mut Gradients,
        config: &DiffusionConfig,
        inputs: Inputs<'_>,
        mut dweight: Vec<f32>,
        mut dtau: Vec<f32>,
        buffers: &mut Buffers,
    ) {
        let c = config.conditioning;
        let hidden = dweight.len() / inputs.timesteps.len();
        let (embedding, head) = (timestep(config), final_head(config, hidden));
        for (row, d) in dweight.chunks_exact_mut(hidden).enumerate() {
            if inputs.timesteps[row] == 0.0 {
                d.fill(0.0);
            }
        }
        let sides = (&self.tau[..], &self.final_head[..], &dweight[..]);
        head.backward(parameters, gradients, FINAL_WEIGHT, sides, Some(&mut dtau), buffers);

        // What is subtracted: `- g(tau(0, class))` of each row.
        let zero = self.zero;
        let mut doffsets = vec![0.0; zero.tau.len() / c * hidden];
        for (row, d) in dweight.chunks_exact(hidden).enumerate() {
            let class = inputs.classes.map_or(0, |classes| classes[row]);
            doffsets[class * hidden..][..hidden].iter_mut().zip(d).for_each(|(sum, d)| *sum -= d);
        }
        let mut dzero = vec![0.0; zero.tau.len()];
        let sides = (&zero.tau[..], &zero.final_head[..], &doffsets[..]);
        head.backward(parameters, gradients, FINAL_WEIGHT, sides, Some(&mut dzero), buffers);

        if let Some(classes) = inputs.classes {
            let table = gradients.of("", CLASSES, zero.tau.len());
            table.iter_mut().zip(&dzero).for_each(|(sum, d)| *sum += d);
            for (d, &class) in dtau.chunks_exact(c).zip(classes) {
                table[class * c..][..c].iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
            }
        }
        let mut dzero_row = vec![0.0; c];
        add_column_sums(&mut dzero_row, &dzero);
        let sides = (&zero.features[..], &zero.timestep[..], &dzero_row[..]);
        embedding.backward(parameters, gradients, TIMESTEP, sides, None, buffers);
        let sides = (&self.features[..], &self.timestep[..], &dtau[..]);
        embedding.backward(parameters, gradients, TIMESTEP, sides, None, buffers);
        let Self { timestep, tau, final_head, final_weight, .. } = self;
        [timestep, tau, final_head, final_weight, dweight, dtau].into_iter().for_each(|buffer| buffers.give(buffer));
    }
}

fn timestep(config: &DiffusionConfig) -> TwoLayers {
    let c = config.conditioning;
    TwoLayers { inputs: config.time_features, inner: c, outputs: c }
}

fn final_head(config: &DiffusionConfig, hidden: usize) -> TwoLayers {
    TwoLayers { inputs: config.conditioning, inner: config.conditioning, outputs: hidden }
}
