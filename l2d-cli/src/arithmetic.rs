//! The quick start's task: 3-digit times 2-digit products with the partial products written out. Small enough for an
//! embedded model, hard enough that one untempered sample is often wrong, and every answer can be checked.

use std::io::Write;

use l2d_train::data::{Conversation, Turn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// One product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Problem {
    /// 100 to 999.
    pub(crate) left: u32,
    /// 10 to 99.
    pub(crate) right: u32,
}

/// Which problems to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// Nineteen in twenty of all products.
    Train,
    /// The rest: never trained on.
    Test,
}

impl Problem {
    /// What the user asks, e.g. `347*28`.
    pub(crate) fn question(self) -> String {
        format!("{}*{}", self.left, self.right)
    }

    /// The written-out solution; the number after the last `=` is the answer.
    pub(crate) fn solution(self) -> String {
        let (tens, units) = (self.right / 10 * 10, self.right % 10);
        let (by_units, by_tens) = (self.left * units, self.left * tens);
        format!("{0}*{units}={by_units}, {0}*{tens}={by_tens}, {by_units}+{by_tens}={1}", self.left, self.answer())
    }

    /// Question and solution as a training row.
    pub(crate) fn conversation(self) -> Conversation {
        let turns = vec![Turn::new("user", self.question()), Turn::new("assistant", self.solution())];
        Conversation { turns, class: None }
    }

    /// The product.
    pub(crate) fn answer(self) -> u32 {
        self.left * self.right
    }

    /// Membership is a fixed function of the two factors (a multiplicative hash), so that no seed can leak test problems
    /// into training.
    fn split(self) -> Split {
        let mixed = (self.left * 100 + self.right).wrapping_mul(2_654_435_761);
        if (mixed >> 16).is_multiple_of(20) { Split::Test } else { Split::Train }
    }
}

/// `count` problems of a split; test problems are drawn without repetition.
pub(crate) fn problems(split: Split, count: usize, seed: u64) -> Vec<Problem> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = Vec::with_capacity(count);
    let mut seen = std::collections::HashSet::new();
    while drawn.len() < count {
        let problem = Problem { left: rng.random_range(100..1000), right: rng.random_range(10..100) };
        if problem.split() == split && (split == Split::Train || seen.insert((problem.left, problem.right))) {
            drawn.push(problem);
        }
    }
    drawn
}

/// Writes problems as jsonl rows `{"question", "answer"}`, the answer being the written-out solution.
pub(crate) fn write_jsonl(problems: &[Problem], out: &mut dyn Write) -> std::io::Result<()> {
    for problem in problems {
        writeln!(out, "{}", json!({ "question": problem.question(), "answer": problem.solution() }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solutions_are_right_and_end_in_the_answer() {
        for problem in problems(Split::Train, 500, 1) {
            let solution = problem.solution();
            for equation in solution.split(", ") {
                let (left, right) = equation.split_once('=').expect("an equation");
                let right: u32 = right.parse().expect("a number");
                let value = match (left.split_once('*'), left.split_once('+')) {
                    (Some((a, b)), _) => a.parse::<u32>().expect("a factor") * b.parse::<u32>().expect("a factor"),
                    (_, Some((a, b))) => a.parse::<u32>().expect("a term") + b.parse::<u32>().expect("a term"),
                    _ => panic!("neither product nor sum: {left}"),
                };
                assert_eq!(value, right, "{solution}");
            }
            assert!(solution.ends_with(&format!("={}", problem.answer())));
        }
    }

    #[test]
    fn splits_do_not_meet_and_seeds_reproduce() {
        let test = problems(Split::Test, 1000, 7);
        let train = problems(Split::Train, 20_000, 7);
        assert!(test.iter().all(|problem| !train.contains(problem)));
        assert_eq!(test, problems(Split::Test, 1000, 7));
        assert_ne!(test, problems(Split::Test, 1000, 8));
    }
}
