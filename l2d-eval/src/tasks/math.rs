//! MATH: competition problems with an answer in a box (Hendrycks et al. 2021, arXiv 2103.03874).

use std::sync::LazyLock;

use regex::Regex;

use crate::error::{Error, Result};
use crate::extract::until;
use crate::latex::{
    Boxed, Units, Value, last_boxed, minerva_answer, minerva_equal, minerva_normal, normalise, same_value,
    without_commas, without_subscript_braces,
};
use crate::rows::{DataSet, Row};
use crate::task::{Metric, Problem, Profile, Score, Scores, Task, class};

/// A number as the reference looks for one, sign left out.
static UNSIGNED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[0-9]*\.?[0-9]+").expect("a valid pattern"));
/// A number with its sign and its thousands, or a fraction.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+").expect("a valid pattern")
});

const METRICS: &[Metric] = &[
    Metric::new(
        "accuracy",
        Profile::Exact,
        "the last box, else the last number; equal as exact numbers, lists, expressions or normal forms",
    ),
    Metric::new(
        "paper",
        Profile::Paper,
        "the L2D reference: as above, decimals equal fractions they round, signs of unboxed numbers lost",
    ),
    Metric::new(
        "hendrycks",
        Profile::Harness,
        "lm-evaluation-harness hendrycks_math: between the first and the last `$`, else the whole text; equal normal forms",
    ),
    Metric::new(
        "minerva",
        Profile::Harness,
        "lm-evaluation-harness minerva_math: after `Final Answer: The final answer is`; equal normal forms or expressions",
    ),
];

/// MATH in the paper's setting: five problems equally spaced over `train` as shots, at most 256 new tokens.
#[derive(Debug, Clone)]
pub struct Math {
    /// Solved problems before the question.
    pub shots: usize,
    /// The most tokens of a completion.
    pub max_new_tokens: usize,
}

impl Default for Math {
    fn default() -> Self {
        Self { shots: 5, max_new_tokens: 256 }
    }
}

impl Task for Math {
    fn name(&self) -> &str {
        "math"
    }

    fn version(&self) -> u32 {
        2
    }

    fn data_set(&self) -> Option<DataSet> {
        Some(DataSet::new("lighteval", "MATH", "all"))
    }

    fn shots(&self) -> usize {
        self.shots
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        self.shots = shots;
        Ok(())
    }

    fn official_rows(&self) -> Option<usize> {
        Some(5000)
    }

    fn class(&self, _row: &Row) -> &'static str {
        class::MATH
    }

    fn shot_rows(&self) -> Option<usize> {
        None
    }

    fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    fn set_max_new_tokens(&mut self, tokens: usize) {
        self.max_new_tokens = tokens;
    }

    fn metrics(&self) -> &[Metric] {
        METRICS
    }

    fn problem(&self, row: &Row) -> Result<Problem> {
        Ok(Problem::new(row.text("problem")?, row.text("solution")?))
    }

    fn shots_for(&self, rows: &[Row], _row: &Row) -> Result<Vec<Problem>> {
        if rows.len() < self.shots {
            return Err(Error::TooFewShots { task: self.name().to_owned(), shots: self.shots, found: rows.len() });
        }
        let step = rows.len() / self.shots.max(1);
        self.first_shots(&mut rows.iter().step_by(step.max(1)))
    }

    fn answerable(&self, problem: &Problem) -> bool {
        answer(&problem.solution).is_some()
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        let expected = answer(&problem.solution).unwrap_or_default();
        let found = answer(completion);
        let correct = found.is_some_and(|found| same_value(&Value::read(found), &Value::read(expected)));
        let exact = Score { extracted: found.map(str::to_owned), correct };

        let (paper_expected, paper_found) = (Paper::read(&problem.solution), Paper::read(completion));
        let correct = matches!((&paper_expected, &paper_found), (Some(a), Some(b)) if a.equals(b));
        let paper = Score { extracted: paper_found.map(|found| found.text()), correct };

        // Where lm-evaluation-harness ends a completion (both its MATH tasks).
        let ended = until(completion, &["Problem:"]);
        let found = minerva_answer(ended);
        let boxed = last_boxed(&problem.solution).map_or("", Boxed::inner);
        let normal = minerva_normal(&found);
        let correct = minerva_equal(&normal, &minerva_normal(boxed));
        let minerva = Score { extracted: (found != "[invalidanswer]").then_some(normal), correct };

        let whole = between_dollars(ended);
        let harness = Score { extracted: Some(whole.to_owned()), correct: hendrycks(whole, expected) };
        Ok(Scores::from([
            ("accuracy".to_owned(), exact),
            ("paper".to_owned(), paper),
            ("hendrycks".to_owned(), harness),
            ("minerva".to_owned(), minerva),
        ]))
    }
}

/// The last box, else the last number.
fn answer(text: &str) -> Option<&str> {
    match last_boxed(text) {
        Some(boxed) => Some(boxed.inner()),
        None => NUMBER.find_iter(text).last().map(|number| number.as_str()),
    }
}

fn between_dollars(text: &str) -> &str {
    match (text.find('$'), text.rfind('$')) {
        (Some(first), Some(last)) if first < last => &text[first + 1..last],
        _ => text,
    }
}

/// Equal normal forms; where one has none, equal texts.
fn hendrycks(a: &str, b: &str) -> bool {
    match (normalise(a, Units::One), normalise(b, Units::One)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// An answer as the reference reads it.
#[derive(Debug, Clone, PartialEq)]
enum Paper {
    /// From a box.
    Text(String),
    /// From the text, where there is no box.
    Number(f64),
}

impl Paper {
    fn read(text: &str) -> Option<Self> {
        match last_boxed(text) {
            Some(Boxed::Box(inner)) => {
                let normal = normalise(inner, Units::Any)?;
                Some(Self::Text(without_commas(&without_subscript_braces(&normal))))
            }
            // A frame is found and then not understood.
            Some(Boxed::Frame(_)) => None,
            Some(Boxed::Bare(_)) | None => {
                UNSIGNED.find_iter(text).last().and_then(|number| number.as_str().parse().ok()).map(Self::Number)
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => python_float(*number),
        }
    }

    fn equals(&self, other: &Self) -> bool {
        let (a, b) = (self.text(), other.text());
        if a == b {
            return true;
        }
        match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(x), Ok(y)) => x == y,
            (Ok(_), Err(_)) => fraction(&b).is_some_and(|b| rounds_to(b, &a)),
            (Err(_), Ok(_)) => fraction(&a).is_some_and(|a| rounds_to(a, &b)),
            (Err(_), Err(_)) => false,
        }
    }
}

/// Python's text of a float that is not very large: `42.0`.
fn python_float(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1e16 { format!("{number:.1}") } else { number.to_string() }
}

/// `\frac{a}{b}` of two numbers.
fn fraction(text: &str) -> Option<f64> {
    let (a, b) = text.strip_prefix(r"\frac{")?.strip_suffix('}')?.split_once("}{")?;
    let (a, b) = (a.parse::<f64>().ok()?, b.parse::<f64>().ok()?);
    (b != 0.0).then_some(a / b)
}

/// Whether `value`, rounded to as many decimals as `decimal` has, is `decimal`.
fn rounds_to(value: f64, decimal: &str) -> bool {
    let decimals = decimal.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let Ok(expected) = decimal.parse::<f64>() else { return false };
    format!("{value:.decimals$}").parse() == Ok(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which metrics count the completion, in the order accuracy, paper, hendrycks, minerva.
    fn correct(reference: &str, completion: &str) -> [bool; 4] {
        let scores = Math::default().score(&Problem::new("", reference), completion).expect("scores");
        METRICS.iter().map(|metric| scores[&*metric.name].correct).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn metrics_differ_where_they_should() {
        for (reference, completion, expected) in [
            (r"\boxed{\frac12}", r"\boxed{0.5}", [true, true, false, false]),
            (r"\boxed{\frac{1}{3}}", r"\boxed{0.3}", [false, true, false, false]),
            (r"\boxed{\frac{2}{4}}", r"\boxed{\frac{1}{2}}", [true, false, false, false]),
            (r"\boxed{-5}", "it is -5", [true, false, false, false]),
            (r"\boxed{5}", "it is -5", [false, true, false, false]),
            (r"\boxed{7}", r"\fbox{7}", [true, false, false, false]),
            (r"\boxed{1000}", "1,000", [true, false, false, false]),
            (r"\boxed{\frac{1}{2}}", r"$\frac12$", [false, false, true, false]),
            (r"\boxed{3}", "3", [true, true, true, false]),
            (r"\boxed{(1,2)}", r"so \boxed{(1, 2)}", [true, true, false, false]),
            (r"\boxed{3}", "", [false, false, false, false]),
            (
                r"\boxed{\frac{1}{2}}",
                "Final Answer: The final answer is $0.5$. I hope it is correct.",
                [true, true, true, true],
            ),
        ] {
            assert_eq!(correct(reference, completion), expected, "{reference} {completion}");
        }
    }

    #[test]
    fn shots_are_spread_over_the_split() {
        let row = |n: usize| {
            let columns = serde_json::json!({ "problem": n.to_string(), "solution": format!(r"\boxed{{{n}}}") });
            Row::new(columns.as_object().unwrap().clone(), "test")
        };
        let rows: Vec<Row> = (0..52).map(row).collect();
        let shots = Math::default().shots_for(&rows, &rows[0]).unwrap();
        let asked: Vec<&str> = shots.iter().map(|shot| shot.question.as_str()).collect();
        assert_eq!(asked, ["0", "10", "20", "30", "40"]);
        assert!(Math::default().shots_for(&rows[..4], &rows[0]).is_err());
    }
}
