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

/// One written digit in so many is wrong in the corpus that the base LM is pretrained on.
pub(crate) const SLIP_EVERY: u32 = 20;

/// How many products the test split has.
pub(crate) const TEST_PROBLEMS: u64 = 4048;

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
        self.worked(|number| number)
    }

    /// The solution as somebody writes it who gets one digit in [`SLIP_EVERY`] wrong and works on with what stands there.
    pub(crate) fn solution_with_slips(self, rng: &mut ChaCha8Rng) -> String {
        self.worked(|number| slip(number, rng))
    }

    /// The three lines of the solution, every result as `write` puts it down.
    fn worked(self, mut write: impl FnMut(u32) -> u32) -> String {
        let (tens, units) = (self.right / 10 * 10, self.right % 10);
        let (by_units, by_tens) = (write(self.left * units), write(self.left * tens));
        let sum = write(by_units + by_tens);
        format!("{0}*{units}={by_units}, {0}*{tens}={by_tens}, {by_units}+{by_tens}={sum}", self.left)
    }

    /// Question and solution as a training row.
    pub(crate) fn conversation(self) -> Conversation {
        let turns = vec![Turn::new("user", self.question()), Turn::new("assistant", self.solution())];
        Conversation { turns, context: 0, class: None, origin: None }
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

/// `count` problems of a split; test problems are drawn without repetition, so at most [`TEST_PROBLEMS`].
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

/// `number` with each of its digits replaced by another one, once in [`SLIP_EVERY`]; it keeps its length.
fn slip(number: u32, rng: &mut ChaCha8Rng) -> u32 {
    let digits = number.checked_ilog10().map_or(1, |power| power + 1);
    let mut written = 0;
    for place in (0..digits).rev() {
        let digit = number / 10_u32.pow(place) % 10;
        let other = if rng.random_range(0..SLIP_EVERY) == 0 { (digit + rng.random_range(1..10)) % 10 } else { digit };
        // A number of several digits does not begin with a zero.
        let lost = other == 0 && place + 1 == digits && digits > 1;
        written = written * 10 + if lost { digit } else { other };
    }
    written
}

/// Writes problems as jsonl rows `{"question", "answer"}`, the answer being what `solution` makes of each.
pub(crate) fn write_jsonl(
    problems: &[Problem],
    mut solution: impl FnMut(Problem) -> String,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for &problem in problems {
        writeln!(out, "{}", json!({ "question": problem.question(), "answer": solution(problem) }))?;
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
    fn slips_are_as_frequent_as_said_and_are_carried_on() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (mut digits, mut wrong) = (0, 0);
        for problem in problems(Split::Train, 4000, 1) {
            let solution = problem.solution_with_slips(&mut rng);
            let results: Vec<u32> = solution
                .split(", ")
                .map(|line| line.split_once('=').expect("an equation").1.parse().expect("a number"))
                .collect();
            let (tens, units) = (problem.right / 10 * 10, problem.right % 10);
            let worked = [problem.left * units, problem.left * tens, results[0] + results[1]];
            assert!(solution.contains(&format!(", {}+{}=", results[0], results[1])), "{solution}");
            for (written, right) in results.iter().zip(worked) {
                let (written, right) = (written.to_string(), right.to_string());
                assert_eq!(written.len(), right.len(), "{solution}");
                digits += right.len();
                wrong += written.bytes().zip(right.bytes()).filter(|(a, b)| a != b).count();
            }
        }
        // About 52,000 digits: four standard deviations of the share are 0.004; leading digits slip a ninth less often.
        let share = wrong as f64 / digits as f64;
        assert!((share - 1.0 / f64::from(SLIP_EVERY)).abs() < 0.006, "{share}");
    }

    #[test]
    fn the_test_split_is_as_large_as_said() {
        let all = (100..1000).flat_map(|left| (10..100).map(move |right| Problem { left, right }));
        assert_eq!(all.filter(|problem| problem.split() == Split::Test).count() as u64, TEST_PROBLEMS);
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
