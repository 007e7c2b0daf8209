//! Chain-of-thought variants: the same rows and scores, asked with our own worked examples (`assets/prompts`).

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::rows::{DataSet, Row};
use crate::task::{Metric, Problem, Profile, Scores, Task};

/// Room for the reasoning before the answer.
const MAX_NEW_TOKENS: usize = 512;

/// A file of worked examples.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Examples {
    task: String,
    version: u32,
    instruction: String,
    shots: Vec<Example>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    question: String,
    answer: String,
}

/// A task asked with reasoning.
pub struct ChainOfThought {
    inner: Box<dyn Task>,
    name: String,
    version: u32,
    instruction: String,
    examples: Vec<Problem>,
    shots: usize,
    max_new_tokens: usize,
    temperature: Option<f64>,
    headline: Option<&'static str>,
}

/// The worked examples of each task.
const EXAMPLES: &[(&str, &str)] = &[
    ("gsm8k", include_str!("../../../assets/prompts/gsm8k.toml")),
    ("math", include_str!("../../../assets/prompts/math.toml")),
    ("mmlu", include_str!("../../../assets/prompts/mmlu.toml")),
    ("mmlu_pro", include_str!("../../../assets/prompts/mmlu_pro.toml")),
    ("arc_easy", include_str!("../../../assets/prompts/arc_easy.toml")),
    ("arc_challenge", include_str!("../../../assets/prompts/arc_challenge.toml")),
    ("piqa", include_str!("../../../assets/prompts/piqa.toml")),
    ("humaneval", include_str!("../../../assets/prompts/humaneval.toml")),
    ("mbpp", include_str!("../../../assets/prompts/mbpp.toml")),
];

impl ChainOfThought {
    /// `inner` with the worked examples written for it, as `NAME_cot`.
    ///
    /// # Errors
    /// [`Error::TaskFile`] where there are none, or they cannot be read.
    pub fn new(inner: Box<dyn Task>) -> Result<Self> {
        let name = format!("{}_cot", inner.name());
        let bad =
            |reason: String| Error::TaskFile { path: format!("assets/prompts/{}.toml", inner.name()).into(), reason };
        let text = EXAMPLES.iter().find(|(task, _)| *task == inner.name()).map(|(_, text)| *text);
        let text = text.ok_or_else(|| bad("no worked examples were written for this task".to_owned()))?;
        let Examples { task, version, instruction, shots } =
            toml::from_str(text).map_err(|error| bad(error.to_string()))?;
        if task != inner.name() {
            return Err(bad(format!("it is for `{task}`")));
        }
        let asked = |example: Example| Problem::new(with_instruction(&example.question, &instruction), example.answer);
        let examples: Vec<Problem> = shots.into_iter().map(asked).collect();
        // A letter that stands alone somewhere in the reasoning is no answer.
        let headline = inner.metrics().iter().any(|metric| metric.name == "stated").then_some("stated");
        Ok(Self {
            version: 1000 * inner.version() + version,
            name,
            shots: examples.len(),
            examples,
            instruction,
            max_new_tokens: inner.max_new_tokens().max(MAX_NEW_TOKENS),
            temperature: None,
            headline,
            inner,
        })
    }

    /// GSM8K as others report it: eight worked examples, greedy, the last number of the answer counts.
    ///
    /// # Errors
    /// As [`ChainOfThought::new`].
    pub fn relaxed(gsm8k: Box<dyn Task>) -> Result<Self> {
        let cot = Self::new(gsm8k)?;
        Ok(Self { name: "gsm8k_relaxed".to_owned(), temperature: Some(0.0), headline: Some("flexible"), ..cot })
    }
}

fn with_instruction(question: &str, instruction: &str) -> String {
    if instruction.is_empty() { question.to_owned() } else { format!("{}\n\n{instruction}", question.trim_end()) }
}

impl Task for ChainOfThought {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn data_set(&self) -> Option<DataSet> {
        self.inner.data_set()
    }

    fn split(&self) -> &str {
        self.inner.split()
    }

    /// The examples are no rows of a split.
    fn shot_rows(&self) -> Option<usize> {
        Some(0)
    }

    fn shots(&self) -> usize {
        self.shots
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        if shots > self.examples.len() {
            return Err(Error::TooFewShots { task: self.name.clone(), shots, found: self.examples.len() });
        }
        self.shots = shots;
        Ok(())
    }

    fn official_rows(&self) -> Option<usize> {
        self.inner.official_rows()
    }

    fn repeats(&self) -> usize {
        self.inner.repeats()
    }

    fn temperature(&self) -> Option<f64> {
        self.temperature
    }

    fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    fn set_max_new_tokens(&mut self, tokens: usize) {
        self.max_new_tokens = tokens;
    }

    fn stop_strings(&self) -> Vec<String> {
        self.inner.stop_strings()
    }

    fn metrics(&self) -> &[Metric] {
        self.inner.metrics()
    }

    fn headline(&self, profile: Profile) -> &str {
        self.headline.unwrap_or_else(|| self.inner.headline(profile))
    }

    fn format_metric(&self) -> &str {
        self.headline.unwrap_or_else(|| self.inner.format_metric())
    }

    fn problem(&self, row: &Row) -> Result<Problem> {
        let problem = self.inner.problem(row)?;
        Ok(Problem {
            question: with_instruction(&problem.question, &self.instruction),
            opening: String::new(),
            ..problem
        })
    }

    fn answerable(&self, problem: &Problem) -> bool {
        self.inner.answerable(problem)
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        self.inner.score(problem, completion)
    }

    fn scoring_is_costly(&self) -> bool {
        self.inner.scoring_is_costly()
    }

    fn judge(&self) -> Option<String> {
        self.inner.judge()
    }

    fn class(&self, row: &Row) -> &'static str {
        self.inner.class(row)
    }

    fn shots_for(&self, _rows: &[Row], _row: &Row) -> Result<Vec<Problem>> {
        Ok(self.examples[..self.shots].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Tools;
    use crate::tasks::by_name;

    #[test]
    fn every_worked_example_keeps_the_form_its_task_scores() {
        for (name, _) in EXAMPLES {
            let task = by_name(&format!("{name}_cot"), &Tools::default()).unwrap();
            let shots = task.shots_for(&[], &Row::new(serde_json::Map::new(), "none")).unwrap();
            assert!(shots.len() >= 3, "{name}");
            for shot in shots {
                match *name {
                    "gsm8k" | "math" => {
                        assert!(task.answerable(&shot), "{name}: {}", shot.solution);
                        let scores = task.score(&shot, &shot.solution).unwrap();
                        assert!(scores["accuracy"].correct && scores["paper"].correct, "{name}: {}", shot.solution);
                    }
                    "humaneval" | "mbpp" => assert_eq!(shot.solution.matches("```").count(), 2, "{}", shot.solution),
                    _ => {
                        let labels = ('A'..='J').map(String::from).collect();
                        let problem = Problem { labels, ..shot.clone() };
                        let stated = task.score(&problem, &shot.solution).unwrap()["stated"].clone();
                        assert!(stated.extracted.is_some(), "{name}: {}", shot.solution);
                    }
                }
            }
        }
    }

    #[test]
    fn the_relaxed_setting_is_greedy_and_quotes_the_last_number() {
        let task = by_name("gsm8k_relaxed", &Tools::default()).unwrap();
        assert_eq!((task.shots(), task.temperature()), (8, Some(0.0)));
        assert_eq!(task.headline(Profile::Paper), "flexible");
        let mut task = by_name("mmlu_cot", &Tools::default()).unwrap();
        assert_eq!(task.headline(Profile::Paper), "stated");
        assert!(task.set_shots(2).is_ok() && task.shots() == 2);
        assert!(matches!(task.set_shots(99), Err(Error::TooFewShots { .. })));
    }
}
