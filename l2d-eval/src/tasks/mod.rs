//! The tasks, one file each.

mod arc;
mod arithmetic;
mod choice;
mod cot;
mod file;
mod gsm8k;
mod humaneval;
mod math;
mod mbpp;
mod mmlu;
mod mmlu_pro;
mod piqa;

use std::path::Path;

pub use arithmetic::{AnswerPlace, Arithmetic};
pub use choice::MultipleChoice;
pub use cot::ChainOfThought;
pub use file::FileTask;
pub use gsm8k::Gsm8k;
pub use humaneval::HumanEval;
pub use math::Math;
pub use mbpp::Mbpp;

use crate::code::Tools;
use crate::error::{Error, Result};
use crate::near;
use crate::task::Task;

/// Names of the tasks, as `l2d eval --tasks` takes them.
pub const NAMES: &[&str] = &[
    "gsm8k",
    "math",
    "humaneval",
    "instruct_humaneval",
    "mbpp",
    "mmlu",
    "mmlu_pro",
    "arc_easy",
    "arc_challenge",
    "piqa",
    "gsm8k_relaxed",
    "gsm8k_cot",
    "math_cot",
    "humaneval_cot",
    "mbpp_cot",
    "mmlu_cot",
    "mmlu_pro_cot",
    "arc_easy_cot",
    "arc_challenge_cot",
    "piqa_cot",
    "arithmetic",
];

/// A task by name, in its standard setting; of a name that ends with `.toml`, the task of that file.
///
/// # Errors
/// [`Error::UnknownTask`] with the names there are, or what is wrong with a task's file.
pub fn by_name(name: &str, tools: &Tools) -> Result<Box<dyn Task>> {
    if let Some(plain) = name.strip_suffix("_cot").filter(|_| NAMES.contains(&name)) {
        return Ok(Box::new(ChainOfThought::new(by_name(plain, tools)?)?));
    }
    match name {
        "gsm8k" => Ok(Box::new(Gsm8k::default())),
        "gsm8k_relaxed" => Ok(Box::new(ChainOfThought::relaxed(Box::new(Gsm8k::default()))?)),
        "math" => Ok(Box::new(Math::default())),
        "humaneval" => Ok(Box::new(HumanEval::new(tools.clone()))),
        "instruct_humaneval" => Ok(Box::new(HumanEval::instruct(tools.clone()))),
        "mbpp" => Ok(Box::new(Mbpp::new(tools.clone()))),
        "mmlu" => Ok(Box::new(mmlu::mmlu())),
        "mmlu_pro" => Ok(Box::new(mmlu_pro::mmlu_pro())),
        "arc_easy" => Ok(Box::new(arc::easy())),
        "arc_challenge" => Ok(Box::new(arc::challenge())),
        "piqa" => Ok(Box::new(piqa::piqa())),
        "arithmetic" => Ok(Box::new(Arithmetic::default())),
        file if file.ends_with(".toml") => Ok(Box::new(FileTask::open(Path::new(file))?)),
        _ => Err(Error::UnknownTask { name: name.to_owned(), known: near::list(name, NAMES.iter().copied()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_gives_its_task() {
        for name in NAMES {
            assert_eq!(by_name(name, &Tools::default()).unwrap().name(), *name);
        }
        let error = by_name("gsm9k", &Tools::default()).err().unwrap().to_string();
        assert!(error.starts_with("no task `gsm9k` (there is gsm8k, gsm8k_"), "{error}");
        assert!(error.contains("mbpp") && error.ends_with("or the path of a task's .toml file)"), "{error}");
    }

    #[test]
    fn every_task_has_metrics_whose_first_follows_each_profile_it_can() {
        use crate::task::Profile;
        for name in NAMES {
            let task = by_name(name, &Tools::default()).unwrap();
            for (_, profile) in Profile::NAMES {
                let headline = task.headline(profile);
                assert!(task.metrics().iter().any(|metric| metric.name == headline), "{name} {headline}");
            }
            assert!(task.metrics().iter().any(|metric| metric.name == task.format_metric()), "{name}");
        }
    }
}
