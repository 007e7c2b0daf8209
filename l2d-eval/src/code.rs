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

/// The program that a completion means, however it is wrapped: a fenced block if there is one, the function's body or the
/// whole function, with what stands before the function in the head.
pub(crate) fn meant(tests: &CodeTests, completion: &str) -> String {
    let code = unfenced(completion, tests.entry_point.as_deref());
    let Some(entry_point) = &tests.entry_point else { return format!("{code}\n{}", tests.checks) };
    let head = match definition(code, entry_point) {
        // The whole function: of the head only what it stands on, imports and helpers.
        Some(_) => &tests.head[..definition(&tests.head, entry_point).unwrap_or(0)],
        None => &tests.head,
    };
    format!("{head}{code}\n{}", tests.checks)
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

/// Where the function is defined, at the beginning of a line.
fn definition(code: &str, name: &str) -> Option<usize> {
    let mut at = 0;
    for line in code.split_inclusive('\n') {
        let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ");
        let named = rest.and_then(|rest| rest.trim_start().strip_prefix(name));
        if named.is_some_and(|after| after.trim_start().starts_with(['(', '['])) {
            return Some(at);
        }
        at += line.len();
    }
    None
}

/// The code of a completion. Of several fenced blocks the first that defines the function, else the first. A completion that
/// goes on with a body ends at its first fence.
fn unfenced<'a>(completion: &'a str, entry_point: Option<&str>) -> &'a str {
    const FENCE: &str = "```";
    let Some(first) = completion.find(FENCE) else { return completion };
    let before = &completion[..first];
    let goes_on = entry_point.is_some() && before.lines().next().is_some_and(|line| line.starts_with([' ', '\t']));
    if goes_on {
        return before;
    }
    let mut blocks = Vec::new();
    let mut rest = completion;
    while let Some(open) = rest.find(FENCE) {
        let after = &rest[open + FENCE.len()..];
        // The language's name fills the rest of the line.
        let Some(line) = after.find('\n') else { break };
        let body = &after[line + 1..];
        let close = body.find(FENCE).unwrap_or(body.len());
        blocks.push(&body[..close]);
        rest = body.get(close + FENCE.len()..).unwrap_or_default();
    }
    let defines = |block: &&&str| entry_point.is_some_and(|name| definition(block, name).is_some());
    blocks.iter().find(defines).or(blocks.first()).copied().unwrap_or(completion)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests() -> CodeTests {
        CodeTests {
            head: "import math\n\ndef f(x):\n    \"\"\"Doc.\"\"\"\n".to_owned(),
            entry_point: Some("f".to_owned()),
            checks: "assert f(1) == 2".to_owned(),
        }
    }

    #[test]
    fn a_program_is_found_however_it_is_wrapped() {
        let whole = "import math\n\ndef f(x):\n    return x + 1\n\nassert f(1) == 2";
        let body = "import math\n\ndef f(x):\n    \"\"\"Doc.\"\"\"\n    return x + 1\n\nassert f(1) == 2";
        for (completion, expected) in [
            ("    return x + 1\n", body),
            ("    return x + 1\n```\nThis adds one.\n```python\nf(2)\n```", body),
            ("def f(x):\n    return x + 1\n", whole),
            ("Sure!\n```python\ndef f(x):\n    return x + 1\n```\nIt adds one.", whole),
            ("```\nprint(f(1))\n```\nwith\n```py\ndef f(x):\n    return x + 1\n```", whole),
            ("```python\n    return x + 1\n```", body),
            ("```python\ndef f(x):\n    return x + 1\n", whole),
        ] {
            assert_eq!(meant(&tests(), completion), expected, "{completion}");
        }
    }

    #[test]
    fn without_a_head_the_block_is_the_program() {
        let tests = CodeTests { head: String::new(), entry_point: None, checks: "check".to_owned() };
        assert_eq!(meant(&tests, "x\n```python\na = 1\n```"), "a = 1\n\ncheck");
        assert_eq!(meant(&tests, "a = 1"), "a = 1\ncheck");
        assert_eq!(meant(&tests, "```"), "```\ncheck");
    }

    #[test]
    fn a_longer_name_is_another_function() {
        assert_eq!(definition("def ff(x): pass\ndef f (x): pass", "f"), Some(16));
        assert_eq!(definition("    def f(x): pass", "f"), None);
    }

    #[test]
    fn completions_are_cut_where_the_harness_cuts() {
        assert_eq!(cut("    return 1\n\nprint(2)\nclass A", &["\nclass", "\nprint"]), "    return 1\n");
        assert_eq!(cut("all", &["\nclass"]), "all");
        let code = "def f():\n    return 1\n\nx = 2\n";
        assert_eq!(up_to_the_function_end(code, 0), "def f():\n    return 1\n\n");
        assert_eq!(up_to_the_function_end("    return 1\nx = 2", 0), "    return 1\n");
    }
}
