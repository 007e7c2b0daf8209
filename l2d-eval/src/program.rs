//! The program in what a model said: with or without the function's head, in fences or in half of them, after prose or before.

use std::borrow::Cow;

use crate::task::CodeTests;

/// Raised with every change of which program is found: verdicts are kept with it.
pub(crate) const FINDER: u32 = 3;

/// The program that a completion means, however it is wrapped: the rest of the function's body after its head, or the whole
/// function with what stands before it in the head; out of fenced blocks, or up to the fence that ends it.
pub(crate) fn meant(tests: &CodeTests, completion: &str) -> String {
    let code = unfenced(tests, completion);
    let Some(entry_point) = &tests.entry_point else { return format!("{code}\n{}", tests.checks) };
    let whole = !goes_on(tests, &code) && definition(&code, entry_point).is_some();
    let head = match whole {
        // Of the head only what the function stands on, imports and helpers.
        true => &tests.head[..definition(&tests.head, entry_point).unwrap_or(0)],
        false => &tests.head,
    };
    format!("{head}{code}\n{}", tests.checks)
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

/// The code of a completion. What begins as a program ends at the first fence: the prompt had opened it, or nothing had. Else it
/// is in fenced blocks: the first that provides what the tests call, after the earlier ones that it may stand on.
fn unfenced<'a>(tests: &CodeTests, completion: &'a str) -> Cow<'a, str> {
    let names = called(tests);
    let provides = |code: &str| names.iter().any(|name| provides_name(code, name));
    let Fences { blocks, end } = fences(completion);
    let before = &completion[..end.unwrap_or(completion.len())];
    if blocks.is_empty() || goes_on(tests, before) || (begins_as_code(before) && provides(before)) {
        return Cow::Borrowed(before);
    }
    let unindented = |block: String| {
        let less = dedented(&block);
        if !provides(&block) && provides(&less) { less } else { block }
    };
    let blocks: Vec<String> = blocks.into_iter().map(unindented).collect();
    if let Some(place) = blocks.iter().position(|block| provides(block)) {
        // What only shows or tests how the function is used is nothing that it stands on.
        let own: Vec<&str> = names.iter().copied().filter(|name| provides_name(&blocks[place], name)).collect();
        let uses = |block: &str| {
            let told = |line: &str| line.split('#').next().unwrap_or_default().to_owned();
            let mentions = |line: &str| told(line).split(|c: char| !is_word(c)).any(|word| own.contains(&word));
            block.lines().any(|line| !line.starts_with([' ', '\t']) && mentions(line))
                || ["unittest", "pytest", "__main__"].iter().any(|sign| block.contains(sign))
        };
        let earlier = blocks[..place].iter().filter(|block| is_program(block) && !uses(block)).map(String::as_str);
        return Cow::Owned(earlier.chain([&*blocks[place]]).collect());
    }
    let body = blocks.iter().position(|block| goes_on(tests, block));
    let any = || blocks.iter().position(|block| !block.trim().is_empty());
    Cow::Owned(body.or_else(any).map(|place| blocks[place].clone()).unwrap_or_default())
}

/// What the tests call: the function by its name, else every name in the checks that a bracket follows.
fn called(tests: &CodeTests) -> Vec<&str> {
    if let Some(name) = &tests.entry_point {
        return vec![name];
    }
    let before = |bracket: usize| {
        let name = &tests.checks[..bracket];
        let begin =
            name.rfind(|c: char| !is_word(c)).map_or(0, |at| at + name[at..].chars().next().map_or(1, char::len_utf8));
        Some(&name[begin..]).filter(|name| !name.is_empty())
    };
    tests.checks.match_indices('(').filter_map(|(bracket, _)| before(bracket)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a completion goes on with the body of the function whose head it was given: its first line of code is indented as
/// the head ends.
fn goes_on(tests: &CodeTests, completion: &str) -> bool {
    if tests.entry_point.is_none() {
        return false;
    }
    let indentation = |line: &str| line[..line.len() - line.trim_start().len()].to_owned();
    let code = completion.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let given = tests.head.lines().rfind(|line| !line.trim().is_empty()).map(indentation).unwrap_or_default();
    code.map(indentation).is_some_and(|own| if given.is_empty() { own.len() > 1 || own == "\t" } else { own == given })
}

/// Whether code defines a name at the beginning of a line.
fn provides_name(code: &str, name: &str) -> bool {
    let class_or_value = |line: &str| {
        let class = line.strip_prefix("class ").and_then(|rest| rest.strip_prefix(name));
        let value = line.strip_prefix(name).map(str::trim_start);
        class.is_some_and(|rest| rest.starts_with([':', '(', ' ']))
            || value.is_some_and(|rest| rest.starts_with('=') && !rest.starts_with("=="))
    };
    definition(code, name).is_some() || code.lines().any(class_or_value)
}

/// Whether the first line of a text that is no comment can be Python's.
fn begins_as_code(text: &str) -> bool {
    let line = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#')).unwrap_or_default();
    let statement = [
        "def ",
        "async def ",
        "class ",
        "import ",
        "from ",
        "@",
        "if ",
        "for ",
        "while ",
        "try:",
        "with ",
        "\"\"\"",
        "'''",
    ];
    let assigned = || {
        let (name, _) = line.split_once('=')?;
        Some(!name.trim().is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_ ,.:[]".contains(c)))
    };
    statement.iter().any(|begin| line.starts_with(begin)) || assigned() == Some(true)
}

/// Whether a line of a text begins a definition or an import.
fn is_program(text: &str) -> bool {
    text.lines().any(|line| {
        let import = line.strip_prefix("from ").is_some_and(|rest| rest.contains(" import "));
        let class = line.starts_with("class ") && line.trim_end().ends_with(':');
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ");
        import || class || line.starts_with("import ") || function.is_some_and(|rest| rest.contains('('))
    })
}

/// The lines of a text less the indentation that all have.
fn dedented(text: &str) -> String {
    let common = text.lines().filter(|line| !line.trim().is_empty()).map(indentation).min().unwrap_or(0);
    text.split_inclusive('\n').map(|line| &line[common.min(indentation(line))..]).collect()
}

/// The fenced blocks of a text.
#[derive(Debug, Default)]
struct Fences {
    blocks: Vec<String>,
    /// Where what stands before any fence ends. An indented fence may lie in a docstring and ends nothing.
    end: Option<usize>,
}

/// A block being read.
struct Open {
    mark: char,
    length: usize,
    indentation: usize,
    lines: String,
}

impl Open {
    /// The block less the indentation of its fence, where all of it has that.
    fn block(self) -> String {
        let indented = |line: &str| line.trim().is_empty() || indentation(line) >= self.indentation;
        match self.lines.lines().all(indented) {
            true => {
                self.lines.split_inclusive('\n').map(|line| &line[self.indentation.min(indentation(line))..]).collect()
            }
            false => self.lines,
        }
    }
}

/// Bytes of white space that a line begins with.
fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '\t']).len()
}

/// Finds fenced blocks as models write them, which is not always as CommonMark has it: a block may be opened behind text where a
/// language follows, and closed behind code or before text; what is HTML or a list around it does not matter.
fn fences(text: &str) -> Fences {
    let mut found = Fences::default();
    let mut open: Option<Open> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        let runs = runs(line);
        let indentation = indentation(line);
        if let Some(block) = &mut open {
            let closes = |&(mark, from, length): &(char, usize, usize)| {
                let at_the_beginning = from == indentation && indentation <= block.indentation;
                mark == block.mark && length >= block.length && (at_the_beginning || ends_code(line, &runs))
            };
            if let Some(&(_, from, _)) = runs.iter().find(|run| closes(run)) {
                if from > indentation {
                    block.lines.push_str(&line[..from]);
                    block.lines.push('\n');
                }
                found.blocks.extend(open.take().map(Open::block));
            } else {
                block.lines.push_str(line);
            }
            continue;
        }
        let [(mark, from, length)] = runs[..] else { continue };
        let language = line[from + length..].trim();
        let first_of_its_line = from == indentation;
        // Behind text a fence is one where nothing but the language follows.
        let named = ["python", "python3", "py", "py3"].contains(&&*language.to_lowercase());
        let comment = line.trim_start().starts_with('#');
        if first_of_its_line || (named && mark == '`' && !comment) {
            open = Some(Open { mark, length, indentation, lines: String::new() });
        } else if !ends_code(line, &runs) {
            continue;
        }
        if indentation == 0 || !first_of_its_line {
            found.end.get_or_insert(begin + from);
        }
    }
    found.blocks.extend(open.map(Open::block));
    found
}

/// Whether a line of code ends with a fence of backticks, and not with a quoted one, or one in a comment.
fn ends_code(line: &str, runs: &[(char, usize, usize)]) -> bool {
    match runs {
        [('`', from, length)] => {
            let (before, after) = (&line[..*from], &line[from + length..]);
            !before.trim().is_empty() && after.trim().is_empty() && is_code(before)
        }
        _ => false,
    }
}

/// Whether a line of Python has come to code at its end: to no string that is open, and to no comment.
fn is_code(line: &str) -> bool {
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(_), '\\') => drop(characters.next()),
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') => return false,
            _ => {}
        }
    }
    quote.is_none()
}

/// The runs of three or more backticks or tildes in a line: mark, place, length.
fn runs(line: &str) -> Vec<(char, usize, usize)> {
    let mut runs = Vec::new();
    let mut at = 0;
    while let Some(from) = line[at..].find(['`', '~']).map(|from| at + from) {
        let mark = if line[from..].starts_with('`') { '`' } else { '~' };
        let length = line[from..].chars().take_while(|&c| c == mark).count();
        if length >= 3 {
            runs.push((mark, from, length));
        }
        at = from + length;
    }
    runs
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
        let quoted = whole.replace("x + 1", "{'a': x + 1}['a']");
        let helped = whole.replace("def", "def total(xs):\n    # used by f below\n    seen.f(xs)\ndef");
        let commented_fence = whole.replace("def", "# ```\ndef");
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
            // Not as CommonMark has it, and plain to anybody.
            ("<answer>\n```python\ndef f(x):\n    return x + 1\n```\n</answer>", whole),
            ("```python\ndef f(x):\n    return x + 1\n``` This adds one.", whole),
            ("```python\ndef f(x):\n    return x + 1```", whole),
            ("Answer: ```python\ndef f(x):\n    return x + 1\n```", whole),
            ("1. Write:\n   ```python\ndef f(x):\n    return x + 1\n   ```", whole),
            ("    return x + 1```", &body.replace("\n\nassert", "\nassert")),
            ("Here:\n\n    ```python\n    def f(x):\n        return x + 1\n    ```", whole),
            ("```python\n    def f(x):\n        return x + 1\n```", whole),
            (" Sure, here it is:\n```python\ndef f(x):\n    return x + 1\n```", whole),
            ("```python\r\ndef f(x):\n    return x + 1\n```\r\n", whole),
            ("```python:solution.py\ndef f(x):\n    return x + 1\n```", whole),
            ("```python title='a.py'\ndef f(x):\n    return x + 1\n```", whole),
            ("```python\nfrom solution import f\nprint(f(1))\n```\n```python\ndef f(x):\n    return x + 1\n```", whole),
            ("```python\n# ```\ndef f(x):\n    return x + 1\n```", &commented_fence),
            ("    return x + 1  # ~~~\n", &body.replace("x + 1", "x + 1  # ~~~")),
            ("    return x + 1  # about ```\n", &body.replace("x + 1", "x + 1  # about ```")),
            ("    s = \"```\"\n    return x + 1\n", &body.replace("    return", "    s = \"```\"\n    return")),
            ("    s = '~~~'\n    return x + 1\n", &body.replace("    return", "    s = '~~~'\n    return")),
            ("Here's the function: ```python\ndef f(x):\n    return x + 1\n```\nIt adds one.", whole),
            ("Solution #1: ```python\ndef f(x):\n    return x + 1\n```", whole),
            ("```python\ndef f(x):\n    return {'a': x + 1}['a']```\nThis adds one.", &quoted),
            (
                "```python\ndef total(xs):\n    # used by f below\n    seen.f(xs)\n```\n```python\ndef f(x):\n    return x + 1\n```",
                &helped,
            ),
            ("Use ```f```:\n```python\ndef f(x):\n    return x + 1\n```", whole),
            ("```\n\n```\n```python\ndef f(x):\n    return x + 1\n```", whole),
        ] {
            assert_eq!(meant(&tests(), completion), expected, "{completion}");
        }
    }

    #[test]
    fn without_a_head_the_block_is_the_program() {
        let tests = CodeTests { head: String::new(), entry_point: None, checks: "check".to_owned() };
        let tests = CodeTests { checks: "assert set(f(1)) == {2}".to_owned(), ..tests };
        let function = "def f(x):\n    return x + 1\n";
        let program = format!("{function}\n{}", tests.checks);
        for completion in [
            format!("import the function below:\n```python\n{function}```"),
            format!("from math import nothing, so:\n```python\n{function}```"),
            format!("```python\nf(1)\n```\nneeds\n```python\n{function}```"),
            format!("{function}```\nThis adds one."),
        ] {
            assert_eq!(meant(&tests, &completion), program, "{completion}");
        }
        let helper = "def helper(xs):\n    return set(xs)\n";
        let both = format!("```python\n{helper}```\n```python\n{function}```");
        assert_eq!(
            meant(&tests, &both),
            format!("{helper}{program}"),
            "`set` is the tests', and not what is asked for"
        );
        let tested =
            format!("```python\nimport unittest\nclass T(unittest.TestCase):\n    pass\n```\n```python\n{function}```");
        assert_eq!(meant(&tests, &tested), program);
        let with_import = format!("import math\n{program}");
        assert_eq!(meant(&tests, &format!("```python\nimport math\n```\n```python\n{function}```")), with_import);
        assert_eq!(meant(&tests, "f = lambda x: x + 1\n```\n"), "f = lambda x: x + 1\n\nassert set(f(1)) == {2}");
        let docstring = "def f(x):\n  \"\"\"\n  ```\n  f(1)\n  ```\n  \"\"\"\n  return x + 1";
        assert_eq!(meant(&tests, docstring), format!("{docstring}\n{}", tests.checks));
        let tests = CodeTests { checks: "check".to_owned(), ..tests };
        assert_eq!(meant(&tests, "x\n```python\na = 1\n```"), "a = 1\n\ncheck");
        assert_eq!(meant(&tests, "a = 1"), "a = 1\ncheck");
        assert_eq!(meant(&tests, "```"), "\ncheck");
    }

    #[test]
    fn a_longer_name_is_another_function() {
        assert_eq!(definition("def ff(x): pass\ndef f (x): pass", "f"), Some(16));
        assert_eq!(definition("    def f(x): pass", "f"), None);
    }
}
