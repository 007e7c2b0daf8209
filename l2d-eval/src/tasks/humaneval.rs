//! HumanEval: functions to be completed from their head and docstring, judged by unit tests (Chen et al. 2021, arXiv
//! 2107.03374), and InstructHumanEval, the same problems as instructions.

use crate::code::{Judge, Tools, as_is, cut, up_to_the_function_end};
use crate::error::{Error, Result};
use crate::program::{FINDER, meant};
use crate::rows::{DataSet, Row};
use crate::task::{CodeTests, Metric, Problem, Profile, Scores, Task, class};

/// Where bigcode-evaluation-harness ends a completion of HumanEval.
const STOPS: &[&str] = &["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"];
/// Where it ends one of instruct-humaneval, before it cuts at the function's end.
const INSTRUCT_STOPS: &[&str] = &["if __name__", "\nprint", "\nclass"];

const METRICS: &[Metric] = &[
    Metric::new(
        "accuracy",
        Profile::Exact,
        "tests pass: the body or the whole function, in a fenced block or up to a fence",
    ),
    Metric::new("paper", Profile::Paper, "tests pass: the head and the completion as it is (the L2D reference)"),
    Metric::new("bigcode", Profile::Harness, "tests pass: the completion cut where bigcode-evaluation-harness cuts it"),
];

/// HumanEval in the paper's setting: the first five problems as shots and the other 159 as questions, ten completions of at
/// most 512 tokens each.
#[derive(Debug, Clone)]
pub struct HumanEval {
    /// Ask by instruction, with the reply opened by the function's head.
    pub instruct: bool,
    /// Solved problems before the question.
    pub shots: usize,
    /// The most tokens of a completion.
    pub max_new_tokens: usize,
    tools: Tools,
}

impl HumanEval {
    /// Completions of the code itself.
    pub fn new(tools: Tools) -> Self {
        Self { instruct: false, shots: 5, max_new_tokens: 512, tools }
    }

    /// InstructHumanEval.
    pub fn instruct(tools: Tools) -> Self {
        Self { instruct: true, ..Self::new(tools) }
    }
}

impl Task for HumanEval {
    fn name(&self) -> &str {
        if self.instruct { "instruct_humaneval" } else { "humaneval" }
    }

    fn version(&self) -> u32 {
        2
    }

    fn data_set(&self) -> Option<DataSet> {
        Some(if self.instruct {
            DataSet::new("codeparrot", "instructhumaneval", "default")
        } else {
            DataSet::new("openai", "openai_humaneval", "openai_humaneval")
        })
    }

    fn shot_split(&self) -> &str {
        "test"
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
        Some(164)
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
        let entry_point = row.text("entry_point")?;
        let (question, head) = if self.instruct {
            (row.text("instruction")?, row.text("context")?)
        } else {
            (row.text("prompt")?, row.text("prompt")?)
        };
        Ok(Problem {
            question: question.to_owned(),
            solution: row.text("canonical_solution")?.to_owned(),
            opening: if self.instruct { head.to_owned() } else { String::new() },
            tests: Some(CodeTests {
                head: head.to_owned(),
                entry_point: Some(entry_point.to_owned()),
                checks: format!("{}\ncheck({entry_point})", row.text("test")?),
            }),
            ..Problem::default()
        })
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        let missing = || Error::Setting { key: "tests", reason: "a problem of HumanEval without tests".to_owned() };
        let tests = problem.tests.as_ref().ok_or_else(missing)?;
        let mut judge = Judge::new(self.name(), &self.tools);
        let bigcode = if self.instruct {
            let all = format!("{}{}", tests.head, cut(completion, INSTRUCT_STOPS));
            let name = tests.entry_point.as_deref().unwrap_or_default();
            let function = all.find(&format!("def {name}")).unwrap_or(0);
            format!("{}\n{}", up_to_the_function_end(&all, function), tests.checks)
        } else {
            as_is(tests, cut(completion, STOPS))
        };
        Ok(Scores::from([
            ("accuracy".to_owned(), judge.run(meant(tests, completion))?),
            ("paper".to_owned(), judge.run(as_is(tests, completion))?),
            ("bigcode".to_owned(), judge.run(bigcode)?),
        ]))
    }
}
