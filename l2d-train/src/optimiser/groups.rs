//! Parameters that are treated otherwise than the rest, by patterns of their names.

use burn::module::Module;
use burn::tensor::backend::AutodiffBackend;
use globset::{Glob, GlobMatcher};
use l2d_core::parameters::trained_parameter_names;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};

/// A group of parameters; the first that a name matches counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Of the parameters' names: `*` stands for anything, `?` for one letter, `{a,b}` for either.
    pub pattern: String,
    /// Multiplies the learning rate.
    #[serde(default = "one")]
    pub learning_rate_scale: f64,
    /// In the place of `adamw.weight_decay`, for biases too.
    #[serde(default)]
    pub weight_decay: Option<f64>,
}

fn one() -> f64 {
    1.0
}

/// How one parameter is updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Treatment {
    /// Not at all.
    pub frozen: bool,
    /// Multiplies the learning rate.
    pub learning_rate_scale: f64,
    /// In the place of the optimiser's weight decay.
    pub weight_decay: Option<f64>,
}

/// The groups of a run.
#[derive(Debug, Default)]
pub struct Groups {
    groups: Vec<(GlobMatcher, ParameterGroup)>,
    /// Only what one of these matches is trained; all, where there is none.
    trainable: Vec<GlobMatcher>,
}

impl Groups {
    /// Those of the settings `groups` and `trainable`.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn new(config: &TrainConfig) -> Result<Self> {
        let compile = |key: &'static str, pattern: &str| {
            let glob = Glob::new(pattern).map_err(|e| TrainError::Config { key, reason: e.to_string() })?;
            Ok::<_, TrainError>(glob.compile_matcher())
        };
        let groups = config.groups.iter().map(|group| Ok((compile("groups.pattern", &group.pattern)?, group.clone())));
        let trainable = config.trainable.iter().map(|pattern| compile("trainable", pattern));
        Ok(Self { groups: groups.collect::<Result<_>>()?, trainable: trainable.collect::<Result<_>>()? })
    }

    /// How the parameter of that name is updated.
    pub fn of(&self, name: &str) -> Treatment {
        let frozen = !self.trainable.is_empty() && !self.trainable.iter().any(|pattern| pattern.is_match(name));
        let group = self.groups.iter().find(|(pattern, _)| pattern.is_match(name)).map(|(_, group)| group);
        Treatment {
            frozen: frozen || group.is_some_and(|group| group.learning_rate_scale == 0.0),
            learning_rate_scale: group.map_or(1.0, |group| group.learning_rate_scale),
            weight_decay: group.and_then(|group| group.weight_decay),
        }
    }

    /// That every pattern means something to `module`, and that something is left to be trained.
    ///
    /// # Errors
    /// A pattern that matches no trained parameter.
    pub fn check<AB: AutodiffBackend, M: Module<AB>>(&self, module: &M) -> Result<()> {
        let names = trained_parameter_names(module);
        let patterns = self.groups.iter().map(|(pattern, _)| ("groups.pattern", pattern));
        for (key, pattern) in patterns.chain(self.trainable.iter().map(|pattern| ("trainable", pattern))) {
            if !names.iter().any(|name| pattern.is_match(name)) {
                let some: Vec<&str> = names.iter().step_by(names.len().div_ceil(6)).map(String::as_str).collect();
                let reason = format!("`{}` matches no parameter; some of them: {}", pattern.glob(), some.join(", "));
                return Err(TrainError::Config { key, reason });
            }
        }
        if names.iter().all(|name| self.of(name).frozen) {
            return Err(TrainError::Config { key: "groups", reason: "nothing is left to be trained".into() });
        }
        Ok(())
    }
}
