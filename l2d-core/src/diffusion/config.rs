//! The shape of a diffusion path, checked, and its parameter count.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::LmConfig;
use crate::error::{Error, Result};

/// How the diffusion path gets its own version of the base's linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "VariantFields", into = "VariantFields")]
pub enum Variant {
    /// Low-rank corrections of the base's frozen layers. In a file `kind = "lora"`, the default; rank and alpha are 32
    /// where they are absent.
    Lora {
        /// Rank `r`.
        rank: usize,
        /// The correction is scaled by `alpha / rank`.
        alpha: f64,
    },
    /// Full trainable copies that start from the base's layers.
    Full,
    /// Full trainable layers that start at random.
    Scratch,
}

impl Default for Variant {
    fn default() -> Self {
        Self::Lora { rank: 32, alpha: 32.0 }
    }
}

/// [`Variant`] as a file has it. (An enum tagged by `kind` would let settings of another kind pass unseen.)
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariantFields {
    #[serde(default)]
    kind: VariantKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VariantKind {
    #[default]
    Lora,
    Full,
    Scratch,
}

impl TryFrom<VariantFields> for Variant {
    type Error = &'static str;

    fn try_from(fields: VariantFields) -> std::result::Result<Self, Self::Error> {
        let low_rank = fields.rank.is_some() || fields.alpha.is_some();
        match fields.kind {
            VariantKind::Lora => {
                Ok(Self::Lora { rank: fields.rank.unwrap_or(32), alpha: fields.alpha.unwrap_or(32.0) })
            }
            _ if low_rank => Err("`rank` and `alpha` are settings of the variant `lora` alone"),
            VariantKind::Full => Ok(Self::Full),
            VariantKind::Scratch => Ok(Self::Scratch),
        }
    }
}

impl From<Variant> for VariantFields {
    fn from(variant: Variant) -> Self {
        let (kind, rank, alpha) = match variant {
            Variant::Lora { rank, alpha } => (VariantKind::Lora, Some(rank), Some(alpha)),
            Variant::Full => (VariantKind::Full, None, None),
            Variant::Scratch => (VariantKind::Scratch, None, None),
        };
        Self { kind, rank, alpha }
    }
}

/// A diffusion path's hyper-parameters as a person or an adapter file writes them. What is left out takes the paper's
/// value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawDiffusionConfig {
    /// Size `d` of a diffusion token.
    pub dim: usize,
    /// Hidden width of the translation module; `dim` when absent.
    pub translation_hidden: Option<usize>,
    /// Size `c` of the conditioning vector.
    pub conditioning: usize,
    /// Number of sinusoidal features of `t`; even.
    pub time_features: usize,
    /// Standard deviation of the base noise `x_0`.
    pub sigma: f64,
    /// LoRA, full copies, or from scratch.
    pub variant: Variant,
    /// Names of the guidance classes; none = no guidance.
    pub classes: Vec<String>,
}

impl Default for RawDiffusionConfig {
    fn default() -> Self {
        Self {
            dim: 256,
            translation_hidden: None,
            conditioning: 256,
            time_features: 256,
            sigma: 64.0,
            variant: Variant::default(),
            classes: Vec::new(),
        }
    }
}

/// A checked diffusion-path configuration; made by [`RawDiffusionConfig::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct DiffusionConfig {
    /// Size `d` of a diffusion token.
    pub dim: usize,
    /// Hidden width of the translation module.
    pub translation_hidden: usize,
    /// Size `c` of the conditioning vector.
    pub conditioning: usize,
    /// Number of sinusoidal features of `t`.
    pub time_features: usize,
    /// Standard deviation of `x_0`.
    pub sigma: f64,
    /// LoRA, full copies, or from scratch.
    pub variant: Variant,
    /// Guidance class names.
    pub classes: Vec<String>,
}

impl RawDiffusionConfig {
    /// Checks every value; `path` is the file named in errors.
    pub fn check(self, path: &Path) -> Result<DiffusionConfig> {
        const MAX: usize = 1 << 16;
        let fail = |key: &str, reason: String| Error::config(path, format!("diffusion.{key}"), reason);
        let size = |key: &str, n: usize| {
            if n == 0 || n > MAX { Err(fail(key, format!("{n} is outside 1..={MAX}"))) } else { Ok(n) }
        };
        let dim = size("dim", self.dim)?;
        let translation_hidden = size("translation_hidden", self.translation_hidden.unwrap_or(dim))?;
        let conditioning = size("conditioning", self.conditioning)?;
        let time_features = size("time_features", self.time_features)?;
        if time_features % 2 != 0 {
            return Err(fail("time_features", format!("{time_features} is odd; half are cosines, half sines")));
        }
        if !(self.sigma.is_finite() && self.sigma > 0.0) {
            return Err(fail("sigma", format!("{} is not a positive number", self.sigma)));
        }
        if let Variant::Lora { rank, alpha } = self.variant {
            size("variant.rank", rank)?;
            if !(alpha.is_finite() && alpha > 0.0) {
                return Err(fail("variant.alpha", format!("{alpha} is not a positive number")));
            }
        }
        for (i, class) in self.classes.iter().enumerate() {
            if class.is_empty() || self.classes[..i].contains(class) {
                return Err(fail("classes", format!("`{class}` is empty or given twice")));
            }
        }
        Ok(DiffusionConfig {
            dim,
            translation_hidden,
            conditioning,
            time_features,
            sigma: self.sigma,
            variant: self.variant,
            classes: self.classes,
        })
    }
}

/// Trainable parameters by component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterCounts {
    /// `W_v`, weight and bias.
    pub vocabulary: usize,
    /// The timestep MLP.
    pub timestep: usize,
    /// `E`, one row per class and one for "no class"; 0 without guidance.
    pub classes: usize,
    /// The translation module.
    pub translation: usize,
    /// LoRA factors or copies of q and o.
    pub attention: usize,
    /// LoRA factors or copies of gate, up and down.
    pub mlp: usize,
    /// The blocks' modulation heads.
    pub modulation: usize,
    /// The head of the path's final weight.
    pub final_weight: usize,
}

impl ParameterCounts {
    /// All of them.
    pub fn total(&self) -> usize {
        self.vocabulary
            + self.timestep
            + self.classes
            + self.translation
            + self.attention
            + self.mlp
            + self.modulation
            + self.final_weight
    }
}

impl DiffusionConfig {
    /// The form that is written into files; checks to `self` again.
    pub fn to_raw(&self) -> RawDiffusionConfig {
        RawDiffusionConfig {
            dim: self.dim,
            translation_hidden: Some(self.translation_hidden),
            conditioning: self.conditioning,
            time_features: self.time_features,
            sigma: self.sigma,
            variant: self.variant,
            classes: self.classes.clone(),
        }
    }

    /// The row of the class table that stands for "no class", when there are classes.
    pub fn no_class(&self) -> Option<usize> {
        (!self.classes.is_empty()).then_some(self.classes.len())
    }

    /// Trainable parameters of this path beside a base LM, from the configs alone.
    pub fn parameter_counts(&self, lm: &LmConfig) -> ParameterCounts {
        let linear = |inputs: usize, outputs: usize| inputs * outputs + outputs;
        let (h, f, q, c) = (lm.hidden_size, lm.intermediate_size, lm.query_size(), self.conditioning);
        // The query layer's base bias (Qwen) is part of a full copy, not of a low-rank correction.
        let adapted = |inputs: usize, outputs: usize, bias: bool| match self.variant {
            Variant::Lora { rank, .. } => rank * (inputs + outputs),
            Variant::Full | Variant::Scratch => inputs * outputs + if bias { outputs } else { 0 },
        };
        let head = |outputs: usize| linear(c, c) + linear(c, outputs);
        ParameterCounts {
            vocabulary: linear(h, self.dim),
            timestep: linear(self.time_features, c) + linear(c, c),
            classes: if self.classes.is_empty() { 0 } else { (self.classes.len() + 1) * c },
            translation: linear(self.dim, self.translation_hidden) + linear(self.translation_hidden, h),
            attention: lm.num_layers * (adapted(h, q, lm.qkv_bias) + adapted(q, h, false)),
            mlp: lm.num_layers * (2 * adapted(h, f, false) + adapted(f, h, false)),
            modulation: lm.num_layers * head(6 * h),
            final_weight: head(h),
        }
    }
}
