//! The tasks, one file each.

mod arc;
mod arithmetic;
mod choice;
mod gsm8k;
mod math;
mod mmlu;
mod mmlu_pro;
mod piqa;

pub use arithmetic::{AnswerPlace, Arithmetic};
pub use choice::MultipleChoice;
pub use gsm8k::Gsm8k;
pub use math::Math;

use crate::error::{Error, Result};
use crate::task::Task;

/// Names of the tasks, as `l2d eval --tasks` takes them.
pub const NAMES: &[&str] = &["gsm8k", "math", "mmlu", "mmlu_pro", "arc_easy", "arc_challenge", "piqa", "arithmetic"];

/// A task by name, in its standard setting.
///
/// # Errors
/// [`Error::UnknownTask`] with the names there are.
pub fn by_name(name: &str) -> Result<Box<dyn Task>> {
    match name {
        "gsm8k" => Ok(Box::new(Gsm8k::default())),
        "math" => Ok(Box::new(Math::default())),
        "mmlu" => Ok(Box::new(mmlu::mmlu())),
        "mmlu_pro" => Ok(Box::new(mmlu_pro::mmlu_pro())),
        "arc_easy" => Ok(Box::new(arc::easy())),
        "arc_challenge" => Ok(Box::new(arc::challenge())),
        "piqa" => Ok(Box::new(piqa::piqa())),
        "arithmetic" => Ok(Box::new(Arithmetic::default())),
        _ => Err(Error::UnknownTask { name: name.to_owned(), known: NAMES.join(", ") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_gives_its_task() {
        for name in NAMES {
            assert_eq!(by_name(name).unwrap().name(), *name);
        }
        let error = by_name("gsm9k").err().unwrap();
        assert_eq!(
            error.to_string(),
            "no task `gsm9k` (there is gsm8k, math, mmlu, mmlu_pro, arc_easy, arc_challenge, piqa, arithmetic)"
        );
    }
}
