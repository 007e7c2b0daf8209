//! Programs: finding them in a completion, and running them.

use std::sync::Arc;

use crate::error::{BoxError, Error, Result};
use crate::task::{CodeTests, Score};

/// What became of a test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodeVerdict {
    /// It ran to its end.
    Passed,
    /// It did not, and why: the last line of a Python traceback, or `timed out`, `out of memory` and the like.
    Failed(String),
}

/// Runs a test program somewhere it can do no harm.
pub trait CodeRunner: Send + Sync {
    /// Runs a Python program and says whether it came to its end.
    ///
    /// # Errors
    /// Where it could not be run at all. That it fails is a verdict and no error.
    fn run(&self, program: &str) -> Result<CodeVerdict, BoxError>;

    /// What tells its verdicts from those of another: the kind of sandbox, its limits, the Python. Kept with every verdict.
    fn identity(&self) -> String;
}

/// What tasks need beside rows.
#[derive(Clone, Default)]
pub struct Tools {
    /// Where programs run; tasks whose answers are programs cannot be scored without.
    pub code: Option<Arc<dyn CodeRunner>>,
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tools").field("code", &self.code.is_some()).finish()
    }
}

/// Runs several readings of one completion; readings that agree run once.
pub(crate) struct Judge<'a> {
    pub(crate) task: &'a str,
    pub(crate) tools: &'a Tools,
    seen: Vec<(String, Score)>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(task: &'a str, tools: &'a Tools) -> Self {
        Self { task, tools, seen: Vec::new() }
    }

    /// Runs `program`. The score's answer is the verdict, or none where the program is not even Python.
    pub(crate) fn run(&mut self, program: String) -> Result<Score> {
        if let Some((_, score)) = self.seen.iter().find(|(seen, _)| *seen == program) {
            return Ok(score.clone());
        }
        let runner = self.tools.code.as_ref().ok_or_else(|| Error::NoCodeRunner { task: self.task.to_owned() })?;
        let score = match runner.run(&program).map_err(Error::Code)? {
            CodeVerdict::Passed => Score { extracted: Some("passed".to_owned()), correct: true },
            CodeVerdict::Failed(reason) => {
                let no_python =
                    ["SyntaxError", "IndentationError", "TabError"].iter().any(|name| reason.starts_with(name));
                Score { extracted: (!no_python).then_some(reason), correct: false }
            }
        };
        self.seen.push((program, score.clone()));
        Ok(score)
    }
}

/// The head and the completion as they are.
pub(crate) fn as_is(tests: &CodeTests, completion: &str) -> String {
    format!("{}{completion}\n{}", tests.head, tests.checks)
}

/// The completion up to the first of `stops`.
pub(crate) fn cut<'a>(completion: &'a str, stops: &[&str]) -> &'a str {
    let end = stops.iter().filter_map(|stop| completion.find(stop)).min();
    &completion[..end.unwrap_or(completion.len())]
}

/// A program up to the first line after `from` that is not indented, that line left out: the rest of a function's body.
pub(crate) fn up_to_the_function_end(code: &str, from: usize) -> &str {
    let mut at = from;
    for (index, line) in code[from..].split_inclusive('\n').enumerate() {
        let unindented = line.chars().next().is_some_and(|first| !first.is_whitespace());
        if index > 0 && unindented {
            break;
        }
        at += line.len();
    }
    &code[..at]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_cut_where_the_harness_cuts() {
        assert_eq!(cut("    return 1\n\nprint(2)\nclass A", &["\nclass", "\nprint"]), "    return 1\n");
        assert_eq!(cut("all", &["\nclass"]), "all");
        let code = "def f():\n    return 1\n\nx = 2\n";
        assert_eq!(up_to_the_function_end(code, 0), "def f():\n    return 1\n\n");
        assert_eq!(up_to_the_function_end("    return 1\nx = 2", 0), "    return 1\n");
    }
}
