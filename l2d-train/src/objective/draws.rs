//! What the objectives are given: labelled batches, and the random draws of the L2D objective.

use l2d_core::corruption::TimestepSampling;
use l2d_core::diffusion::DiffusionConfig;
use l2d_core::lm::Dropout;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// A batch as the objectives want it: right-padded rows and what each labelled position must predict.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    /// `[batch][positions]`, equally long; positions after a sequence's end hold any valid id.
    pub tokens: &'a [Vec<u32>],
    /// For each sequence the labelled `(position, target)` pairs: position `k` predicts token `k + 1`.
    pub labels: &'a [Vec<(usize, u32)>],
    /// Guidance class of each sequence, if classes are trained.
    pub classes: Option<&'a [usize]>,
}

/// The random draws of a batch: one or several for each labelled position, equally many each and side by side, in the order
/// of [`Labelled::labels`].
#[derive(Debug, Clone)]
pub struct Draws {
    /// Diffusion times.
    pub timesteps: Vec<f32>,
    /// Standard normal noise, `[draws, d]` row-major; the base noise is `sigma` times this.
    pub noise: Vec<f32>,
    /// Class of each draw after dropout; `None` without classes.
    pub classes: Option<Vec<usize>>,
    /// What each draw's corrections drop of their inputs; `None` where nothing is dropped.
    pub dropout: Option<DropoutDraws>,
}

/// Dropout in front of the low-rank corrections of a step: a probability, and a seed for each draw (L2D) or each sequence
/// (the LM itself).
#[derive(Debug, Clone)]
pub struct DropoutDraws {
    /// Of each input to be dropped, in [0, 1).
    pub probability: f64,
    /// In the order of the draws, or of the sequences.
    pub seeds: Vec<u64>,
}

impl DropoutDraws {
    /// For finetuning the LM itself: a seed for each sequence, from its own generator.
    pub fn of_sequences(probability: f64, rngs: &mut [ChaCha8Rng]) -> Option<Self> {
        (probability > 0.0).then(|| Self { probability, seeds: rngs.iter_mut().map(|rng| rng.random()).collect() })
    }

    /// The seeds of sequence `b`'s first tokens.
    pub(super) fn of_tokens(&self, b: usize, count: usize) -> impl Iterator<Item = u64> {
        let seed = self.seeds[b];
        (0..count).map(move |position| Dropout::row_seed(seed, position))
    }

    /// The same dropout over rows with the given seeds.
    pub(super) fn of_rows(&self, seeds: Vec<u64>) -> Dropout {
        Dropout::new(self.probability, seeds)
    }
}

impl Draws {
    /// Draws at each labelled position.
    ///
    /// # Panics
    /// When there are not equally many for each of the batch's labels, or the batch has none.
    pub(super) fn per_position(&self, batch: &Labelled<'_>) -> usize {
        let labels: usize = batch.labels.iter().map(Vec::len).sum();
        let draws = self.timesteps.len();
        assert!(labels > 0 && draws > 0 && draws.is_multiple_of(labels), "{draws} draws for {labels} labels");
        draws / labels
    }
}

/// How the L2D objective draws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawSettings {
    /// How times are drawn.
    pub timesteps: TimestepSampling,
    /// Probability that a class is replaced by "no class", for each draw.
    pub class_dropout: f64,
    /// Times and noises at each labelled position, which share one pass of the main path.
    pub per_position: usize,
    /// Probability that an input of a low-rank correction is dropped, in [0, 1).
    pub lora_dropout: f64,
}

impl Default for DrawSettings {
    /// Uniform times, class dropout 0.2, one draw at each position, no other dropout.
    fn default() -> Self {
        Self { timesteps: TimestepSampling::default(), class_dropout: 0.2, per_position: 1, lora_dropout: 0.0 }
    }
}

impl DrawSettings {
    /// Draws times, noise and class dropout for a batch, each sequence from its own generator: what a sequence draws does
    /// not depend on how a batch is cut into micro-batches.
    ///
    /// # Panics
    /// When there are not as many generators as sequences.
    pub fn draw(&self, config: &DiffusionConfig, batch: &Labelled<'_>, rngs: &mut [ChaCha8Rng]) -> Draws {
        assert_eq!(rngs.len(), batch.labels.len(), "one generator per sequence");
        let mut draws =
            Draws { timesteps: vec![], noise: vec![], classes: config.no_class().map(|_| vec![]), dropout: None };
        let mut seeds = Vec::new();
        for (b, (labels, rng)) in batch.labels.iter().zip(rngs).enumerate() {
            let count = labels.len() * self.per_position;
            draws.timesteps.extend((0..count).map(|_| self.timesteps.sample(rng)));
            draws.noise.extend((0..count * config.dim).map(|_| -> f32 { StandardNormal.sample(rng) }));
            if let (Some(classes), Some(no_class)) = (&mut draws.classes, config.no_class()) {
                let class = batch.classes.map_or(no_class, |classes| classes[b]);
                let dropped = || if rng.random::<f64>() < self.class_dropout { no_class } else { class };
                classes.extend(std::iter::repeat_with(dropped).take(count));
            }
            // Last, so that the other draws do not depend on it.
            if self.lora_dropout > 0.0 {
                let seed = rng.random();
                seeds.extend((0..count).map(|draw| Dropout::row_seed(seed, draw)));
            }
        }
        draws.dropout = (self.lora_dropout > 0.0).then_some(DropoutDraws { probability: self.lora_dropout, seeds });
        draws
    }
}
