//! Which parameters are trained, and with what: rules by name pattern.

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// One rule, for the parameters whose names match `pattern`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// A glob over parameter names: `*` stands for any characters, dots included, `?` for one, `{a,b}` for either.
    pub pattern: String,
    /// Multiplies the learning rate; 0 freezes.
    #[serde(default = "one")]
    pub learning_rate_scale: f64,
    /// In the place of `adamw.weight_decay`, for biases too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

fn one() -> f64 {
    1.0
}

/// What holds for one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Multiplies the learning rate.
    pub learning_rate_scale: f64,
    /// In the place of the optimiser's own.
    pub weight_decay: Option<f64>,
}

#[derive(Debug, Clone)]
struct Pattern {
    key: &'static str,
    glob: GlobMatcher,
}

impl Pattern {
    fn new(key: &'static str, pattern: &str) -> Result<Self> {
        match Glob::new(pattern) {
            Ok(glob) => Ok(Self { key, glob: glob.compile_matcher() }),
            Err(error) => Err(TrainError::Config { key, reason: format!("{error}; expected a glob over names") }),
        }
    }
}

/// All rules of a run. The default trains everything alike.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    trainable: Vec<Pattern>,
    freeze: Vec<Pattern>,
    groups: Vec<(Pattern, Rule)>,
}

impl Groups {
    /// Reads the patterns: `trainable` (all parameters where it is empty), less `freeze`; of `groups` the first that matches
    /// decides.
    ///
    /// # Errors
    /// A pattern that is no glob, or a number out of range.
    pub fn new(trainable: &[String], freeze: &[String], groups: &[GroupConfig]) -> Result<Self> {
        let patterns =
            |key, patterns: &[String]| patterns.iter().map(|one| Pattern::new(key, one)).collect::<Result<_>>();
        let group = |group: &GroupConfig| {
            let GroupConfig { pattern, learning_rate_scale, weight_decay } = group;
            let good = |value: f64| value.is_finite() && value >= 0.0;
            if !good(*learning_rate_scale) || !weight_decay.is_none_or(good) {
                let reason = format!("`{pattern}`: learning_rate_scale and weight_decay must be numbers, not negative");
                return Err(TrainError::Config { key: "groups", reason });
            }
            Ok((
                Pattern::new("groups", pattern)?,
                Rule { learning_rate_scale: *learning_rate_scale, weight_decay: *weight_decay },
            ))
        };
        Ok(Self {
            trainable: patterns("trainable", trainable)?,
            freeze: patterns("freeze", freeze)?,
            groups: groups.iter().map(group).collect::<Result<_>>()?,
        })
    }

    /// The rule for a parameter.
    pub fn rule(&self, name: &str) -> Rule {
        let found = self.groups.iter().find(|(pattern, _)| pattern.glob.is_match(name));
        found.map_or(Rule { learning_rate_scale: 1.0, weight_decay: None }, |(_, rule)| *rule)
    }

    /// Whether a parameter is updated.
    pub fn trains(&self, name: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.glob.is_match(name));
        (self.trainable.is_empty() || any(&self.trainable))
            && !any(&self.freeze)
            && self.rule(name).learning_rate_scale != 0.0
    }

    /// Checks the patterns against the names of the parameters that could be trained.
    ///
    /// # Errors
    /// A pattern that matches none of them, or patterns that leave nothing to train.
    pub fn check(&self, names: &[String]) -> Result<()> {
        let patterns = self.trainable.iter().chain(&self.freeze).chain(self.groups.iter().map(|(pattern, _)| pattern));
        for Pattern { key, glob } in patterns {
            if !names.iter().any(|name| glob.is_match(name)) {
                let reason = format!("`{}` matches no trainable parameter; {}", glob.glob(), examples(names));
                return Err(TrainError::Config { key, reason });
            }
        }
        if !names.iter().any(|name| self.trains(name)) {
            let reason = "together with `freeze` and `groups` this leaves no parameter to train".into();
            return Err(TrainError::Config { key: "trainable", reason });
        }
        Ok(())
    }
}

/// Names for a message: of the blocks the first's alone, as the others' differ by a number.
fn examples(names: &[String]) -> String {
    let telling: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !name.starts_with("blocks.") || name.starts_with("blocks.0."))
        .collect();
    let shown = telling.iter().take(24).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    format!("there is {shown}{}", if telling.len() > 24 { " and so on" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["vocabulary.weight", "blocks.0.query.a", "blocks.0.modulation.inner.weight", "blocks.11.modulation.inner.bias"]
            .map(String::from)
            .to_vec()
    }

    fn strings(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(ToString::to_string).collect()
    }

    fn trained(groups: &Groups) -> Vec<String> {
        names().into_iter().filter(|name| groups.trains(name)).collect()
    }

    #[test]
    fn patterns_choose_what_is_trained() {
        let only = Groups::new(&strings(&["blocks.*.modulation.*"]), &[], &[]).expect("globs");
        only.check(&names()).expect("matches");
        assert_eq!(trained(&only), names()[2..]);
        let without = Groups::new(&[], &strings(&["*.bias", "vocabulary.*"]), &[]).expect("globs");
        assert_eq!(trained(&without), names()[1..3]);
        let zero = GroupConfig { pattern: "blocks.{0,1}.*".into(), learning_rate_scale: 0.0, weight_decay: None };
        let zero = Groups::new(&[], &[], &[zero]).expect("globs");
        assert_eq!(trained(&zero), [names()[0].clone(), names()[3].clone()]);
        assert_eq!(trained(&Groups::default()), names());
    }

    #[test]
    fn the_first_group_that_matches_decides() {
        let group = |pattern: &str, learning_rate_scale, weight_decay| GroupConfig {
            pattern: pattern.into(),
            learning_rate_scale,
            weight_decay,
        };
        let groups = [group("*.bias", 2.0, Some(0.1)), group("blocks.*", 0.5, None)];
        let groups = Groups::new(&[], &[], &groups).expect("globs");
        assert_eq!(groups.rule("blocks.3.x.bias"), Rule { learning_rate_scale: 2.0, weight_decay: Some(0.1) });
        assert_eq!(groups.rule("blocks.3.x.weight"), Rule { learning_rate_scale: 0.5, weight_decay: None });
        assert_eq!(groups.rule("vocabulary.weight"), Rule { learning_rate_scale: 1.0, weight_decay: None });
    }

    #[test]
    fn patterns_that_match_nothing_and_nonsense_are_named() {
        let message = |trainable: &[&str], freeze: &[&str]| {
            let groups = Groups::new(&strings(trainable), &strings(freeze), &[]);
            groups.and_then(|groups| groups.check(&names())).expect_err("refused").to_string()
        };
        let misspelt = message(&["blocks.*.modulatoin.*"], &[]);
        assert!(misspelt.contains("`trainable`") && misspelt.contains("modulatoin"), "{misspelt}");
        assert!(misspelt.contains("blocks.0.query.a") && !misspelt.contains("blocks.11"), "{misspelt}");
        assert!(message(&[], &["head.*"]).contains("`freeze`"));
        assert!(message(&[], &["*"]).contains("no parameter to train"));
        assert!(message(&["blocks.[0"], &[]).contains("glob"));
        let negative = GroupConfig { pattern: "*".into(), learning_rate_scale: -1.0, weight_decay: None };
        assert!(Groups::new(&[], &[], &[negative]).is_err());
    }
}
