//! MBPP: small programs from a sentence and one test, judged by three (Austin et al. 2021, arXiv 2108.07732).

use crate::code::{Judge, Tools, as_is, cut};
use crate::error::{Error, Result};
use crate::program::{FINDER, meant};
use crate::rows::{DataSet, Row};
use crate::task::{CodeTests, Metric, Problem, Profile, Scores, Task, class};

/// Where bigcode-evaluation-harness ends a completion.
const STOPS: &[&str] = &["\nclass", "\nassert", "\n\"\"\"", "\nprint", "\nif", "\n<|/", "\n```"];

const METRICS: &[Metric] = &[
    Metric::new(
        "accuracy",
        Profile::Exact,
        "tests pass: the completion up to a fence, or the first fenced block that defines what they call",
    ),
    Metric::new("paper", Profile::Paper, "tests pass: the completion as it is (the L2D reference)"),
    Metric::new("bigcode", Profile::Harness, "tests pass: the completion cut where bigcode-evaluation-harness cuts it"),
];

/// MBPP in the paper's setting: the first five problems of `prompt` as shots, all of `test` but a twin of a shot as questions,
/// ten completions of at most 512 tokens each.
#[derive(Debug, Clone)]
pub struct Mbpp {
    /// Solved problems before the question.
    pub shots: usize,
    /// The most tokens of a completion.
    pub max_new_tokens: usize,
    tools: Tools,
}

impl Mbpp {
    /// The paper's setting.
    pub fn new(tools: Tools) -> Self {
        Self { shots: 5, max_new_tokens: 512, tools }
    }
}

impl Task for Mbpp {
    fn name(&self) -> &str {
        "mbpp"
    }

    fn version(&self) -> u32 {
        2
    }

    fn data_set(&self) -> Option<DataSet> {
        Some(DataSet::new("google-research-datasets", "mbpp", "full"))
    }

    fn shot_split(&self) -> &str {
        "prompt"
    }

    fn shots(&self) -> usize {
        self.shots
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        self.shots = shots;
        Ok(())
    }

    fn leaves_out_shots(&self) -> bool {
        true
    }

    fn official_rows(&self) -> Option<usize> {
        Some(500)
    }

    fn repeats(&self) -> usize {
        10
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

    fn class(&self, _row: &Row) -> &'static str {
        class::CODING
    }

    fn scoring_is_costly(&self) -> bool {
        true
    }

    fn judge(&self) -> Option<String> {
        self.tools.code.as_ref().map(|runner| format!("finder {FINDER}, {}", runner.identity()))
    }

    fn problem(&self, row: &Row) -> Result<Problem> {
        let tests = row.texts("test_list")?;
        let first = tests.first().ok_or_else(|| Error::ColumnValue {
            origin: row.origin().to_owned(),
            column: "test_list".to_owned(),
            reason: "no test".to_owned(),
        })?;
        Ok(Problem {
            question: format!("\"\"\"\n{}\n{first}\n\"\"\"\n", row.text("text")?),
            solution: row.text("code")?.replace("\r\n", "\n"),
            tests: Some(CodeTests {
                head: String::new(),
                entry_point: None,
                // After the solution: some set-ups use what it defines.
                checks: format!("{}\n{}", row.text("test_setup_code")?, tests.join("\n")).replace("\r\n", "\n"),
            }),
            ..Problem::default()
        })
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        let missing = || Error::Setting { key: "tests", reason: "a problem of MBPP without tests".to_owned() };
        let tests = problem.tests.as_ref().ok_or_else(missing)?;
        let mut judge = Judge::new(self.name(), &self.tools);
        Ok(Scores::from([
            ("accuracy".to_owned(), judge.run(meant(tests, completion))?),
            ("paper".to_owned(), judge.run(as_is(tests, completion))?),
            ("bigcode".to_owned(), judge.run(as_is(tests, cut(completion, STOPS)))?),
        ]))
    }
}
