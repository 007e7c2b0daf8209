//! Programs: finding them in a completion, and running them.

use std::borrow::Cow;
use std::sync::Arc;

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

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

/// The program that a completion means, however it is wrapped: the rest of the function's body after its head, or the whole
/// function with what stands before it in the head; out of a fenced block, or up to the fence that ends it.
pub(crate) fn meant(tests: &CodeTests, completion: &str) -> String {
    let code = unfenced(completion, tests.entry_point.as_deref());
    let Some(entry_point) = &tests.entry_point else { return format!("{code}\n{}", tests.checks) };
    let whole = !goes_on(&code) && definition(&code, entry_point).is_some();
    let head = match whole {
        // Of the head only what the function stands on, imports and helpers.
        true => &tests.head[..definition(&tests.head, entry_point).unwrap_or(0)],
        false => &tests.head,
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

/// Whether a completion goes on with the body of a function: its first line of code is indented.
fn goes_on(completion: &str) -> bool {
    let code = completion.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#'));
    code.is_some_and(|line| line.starts_with([' ', '\t']))
}

/// Whether a line of a text begins a definition or an import: it is a program then, and no prose.
fn is_program(text: &str) -> bool {
    text.lines().any(|line| {
        let import = line.strip_prefix("from ").is_some_and(|rest| rest.contains(" import "));
        let class = line.starts_with("class ") && line.trim_end().ends_with(':');
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ");
        import || class || line.starts_with("import ") || function.is_some_and(|rest| rest.contains('('))
    })
}

/// The code of a completion. What begins as a program ends at the first fence: the prompt had opened it, or nothing had. Else
/// it is in a fenced block: of several the first that defines the function, else the first that is a program, else the first.
fn unfenced<'a>(completion: &'a str, entry_point: Option<&str>) -> Cow<'a, str> {
    let (blocks, first) = fenced(completion);
    let Some(first) = first else { return Cow::Borrowed(completion) };
    let before = &completion[..first];
    let defines = |code: &str| entry_point.is_some_and(|name| definition(code, name).is_some());
    let begun = match entry_point {
        Some(_) => goes_on(before) || defines(before),
        None => is_program(before),
    };
    if begun {
        return Cow::Borrowed(before);
    }
    let defining = blocks.iter().position(|block| defines(block));
    let chosen = defining.or_else(|| blocks.iter().position(|block| is_program(block))).unwrap_or(0);
    Cow::Owned(blocks.into_iter().nth(chosen).unwrap_or_default())
}

/// The fenced blocks of a text as CommonMark has them, and where the first fence is.
fn fenced(text: &str) -> (Vec<String>, Option<usize>) {
    let mut blocks: Vec<String> = Vec::new();
    let mut first = None;
    let mut inside = false;
    for (event, range) in Parser::new(text).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(_))) => {
                first.get_or_insert(range.start);
                blocks.push(String::new());
                inside = true;
            }
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(text) if inside => blocks.iter_mut().last().into_iter().for_each(|block| block.push_str(&text)),
            _ => {}
        }
    }
    (blocks, first)
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
        let again = body.replace("\nassert", "\ndef f(x):\n    return x + 1\n\nassert");
        let commented = body.replace("    return", "# Add one.\n    return");
        let blank = body.replace("    return", "\n    return");
        let fence_in_text = body.replace("x + 1", "len('\\\n    ```\\\n')");
        for (completion, expected) in [
            ("    return x + 1\n", body),
            ("    return x + 1\n```\nThis adds one.\n```python\nf(2)\n```", body),
            ("def f(x):\n    return x + 1\n", whole),
            ("Sure!\n```python\ndef f(x):\n    return x + 1\n```\nIt adds one.", whole),
            ("```\nprint(f(1))\n```\nwith\n```py\ndef f(x):\n    return x + 1\n```", whole),
            ("```python\n    return x + 1\n```", body),
            ("```python\ndef f(x):\n    return x + 1\n", whole),
            ("~~~\ndef f(x):\n    return x + 1\n~~~\n", whole),
            ("1. Write:\n\n   ```python\n   def f(x):\n       return x + 1\n   ```\n2. Call it.", whole),
            // The fence that closes was opened in the prompt, or never.
            ("def f(x):\n    return x + 1\n```\nThis adds one.", whole),
            ("\n    return x + 1\n```\n", &blank),
            ("# Add one.\n    return x + 1\n```\n", &commented),
            ("    return x + 1\n\ndef f(x):\n    return x + 1\n", &again),
            ("    return len('\\\n    ```\\\n')\n", &fence_in_text),
        ] {
            assert_eq!(meant(&tests(), completion), expected, "{completion}");
        }
    }

    #[test]
    fn without_a_head_the_block_is_the_program() {
        let tests = CodeTests { head: String::new(), entry_point: None, checks: "check".to_owned() };
        assert_eq!(meant(&tests, "x\n```python\na = 1\n```"), "a = 1\n\ncheck");
        assert_eq!(meant(&tests, "a = 1"), "a = 1\ncheck");
        assert_eq!(meant(&tests, "def f(x):\n    return a\n```\nDone."), "def f(x):\n    return a\n\ncheck");
        assert_eq!(meant(&tests, "```\npip install a\n```\n```\nimport a\n```"), "import a\n\ncheck");
        assert_eq!(meant(&tests, "```"), "\ncheck");
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
