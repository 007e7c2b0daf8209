//! MATH as Minerva scored it (Lewkowycz et al. 2022, arXiv 2206.14858, appendix D), in the form lm-evaluation-harness 0.4.13
//! gives it. Earlier versions of the harness differ: they compare texts only after sympy has read them.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::symbolic::{self, Expression};

/// What stands for an answer that was not given.
const NONE: &str = "[invalidanswer]";

/// Words that are no part of an answer.
const REMOVED: &[&str] = &[
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    r"\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    r"\text{s}",
    r"\text{.}",
    "\\text{\ns}",
    r"\text{}^2",
    r"\text{}^3",
    "\\text{\n}",
    r"\text{}",
    r"\mathrm{th}",
    r"^\circ",
    r"^{\circ}",
    r"\;",
    r",\!",
    "{,}",
    "\"",
    r"\dots",
];

const SUBSTITUTIONS: &[(&str, &str)] = &[
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    (r"\$", ""),
    (r"\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (r",\text{and}", ","),
    (r"\text{and}", ","),
    (r"\text{m}", r"\text{}"),
];

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a valid pattern")
}

static FINAL: LazyLock<Regex> =
    LazyLock::new(|| regex(r"Final Answer: The final answer is(.*?). I hope it is correct."));
static WORD: LazyLock<Regex> = LazyLock::new(|| {
    let words: Vec<&str> = REMOVED.iter().copied().filter(|word| is_word(word)).collect();
    regex(&format!(r"\b(?:{})\b", words.join("|")))
});
static COMMAND: LazyLock<Regex> = LazyLock::new(|| regex(r"\\[a-zA-Z]+"));
static IN_DOLLARS: LazyLock<Regex> = LazyLock::new(|| regex(r"(.*?)(\$)(.*?)(\$)(.*)"));
static WRAPPED: LazyLock<[Regex; 3]> =
    LazyLock::new(|| [r"\\text\{(.*?)\}", r"\\textbf\{(.*?)\}", r"\\overline\{(.*?)\}"].map(regex));
static BOXED: LazyLock<Regex> = LazyLock::new(|| regex(r"\\boxed\{(.*)\}"));
static FRACTION: LazyLock<Regex> = LazyLock::new(|| regex(r"frac([^{])(.)"));
static INDEXED_ROOT: LazyLock<Regex> = LazyLock::new(|| regex(r"sqrt(\[[^\]]*\])(\w)"));
static ROOT: LazyLock<Regex> = LazyLock::new(|| regex(r"sqrt([^{\[])"));
static THOUSANDS: LazyLock<Regex> = LazyLock::new(|| regex(r"^-?[0-9]{1,3}(,[0-9]{3})+$"));

fn is_word(expression: &str) -> bool {
    expression.bytes().all(|b| b.is_ascii_alphabetic())
}

/// The answer of a completion, between the words that Minerva's examples end with.
pub(crate) fn minerva_answer(completion: &str) -> String {
    let text = format!("{completion}I hope it is correct.");
    FINAL.captures(&text).map_or_else(|| NONE.to_owned(), |found| found[1].trim().to_owned())
}

/// The normal form.
pub(crate) fn minerva_normal(answer: &str) -> String {
    let mut s = answer.rsplit('=').next().unwrap_or_default().to_owned();
    // Words first: afterwards nothing tells where they begin.
    s = words_removed(&s);
    for (from, to) in SUBSTITUTIONS {
        s = s.replace(from, to);
    }
    for expression in REMOVED {
        s = if is_word(expression) { outside_commands(&s, expression) } else { s.replace(expression, "") };
    }
    s = IN_DOLLARS.replace_all(&s, "$$$3$$").into_owned();
    for wrapped in &*WRAPPED {
        s = wrapped.replace_all(&s, "$1").into_owned();
    }
    s = BOXED.replace_all(&s, "$1").into_owned();
    s = FRACTION.replace_all(&s, "frac{$1}{$2}").into_owned();
    s = INDEXED_ROOT.replace_all(&s, "sqrt$1{$2}").into_owned();
    s = ROOT.replace_all(&s, "sqrt{$1}").into_owned();
    s = s.replace('$', "");
    if THOUSANDS.is_match(&s) { s.replace(',', "") } else { s }
}

/// Without the words to be removed, but for those that are a command's name.
fn words_removed(text: &str) -> String {
    let keep_commands = |found: &Captures<'_>| -> String {
        let whole = found.get(0).expect("a match");
        if text[..whole.start()].ends_with('\\') { whole.as_str().to_owned() } else { String::new() }
    };
    match WORD.replace_all(text, keep_commands) {
        Cow::Borrowed(same) => same.to_owned(),
        Cow::Owned(changed) => changed,
    }
}

/// Without a word wherever it stands, but for the names of commands.
fn outside_commands(text: &str, word: &str) -> String {
    let mut s = String::new();
    let mut from = 0;
    for command in COMMAND.find_iter(text) {
        s.push_str(&text[from..command.start()].replace(word, ""));
        s.push_str(command.as_str());
        from = command.end();
    }
    s.push_str(&text[from..].replace(word, ""));
    s
}

/// Whether two answers in normal form are the same: as texts, else as expressions (theirs are sympy's).
pub(crate) fn minerva_equal(a: &str, b: &str) -> bool {
    let read = |text: &str| Expression::parse(as_far_as_read(text));
    (!a.is_empty() && a == b) || matches!((read(a), read(b)), (Some(a), Some(b)) if symbolic::same(&a, &b))
}

/// What sympy's reader takes of a text: it stops, without a word, at a brace that was never opened and at a comma that parts no
/// thousands. So `0,1` is 0 there.
fn as_far_as_read(text: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        let digits = text[at + c.len_utf8()..].bytes().take_while(u8::is_ascii_digit).count();
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return &text[..at],
            '}' => depth -= 1,
            ',' if depth == 0 && digits != 3 => return &text[..at],
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_stands_between_the_words() {
        assert_eq!(minerva_answer("so.\nFinal Answer: The final answer is $5$. I hope it is correct."), "$5$");
        assert_eq!(minerva_answer("Final Answer: The final answer is $5$. "), "$5$", "cut off before the last words");
        assert_eq!(minerva_answer(r"\boxed{5}"), NONE);
    }

    #[test]
    fn normal_forms() {
        for (answer, normal) in [
            ("x = 5", "5"),
            (r"$\frac12$", r"\frac{1}{2}"),
            (r"2\pi cm", r"2\pi"),
            (r"\left(1,2\right)", r"\left(1,2\right)"),
            ("1,000,000", "1000000"),
            ("0,1", "0,1"),
            (r"\text{even}", "even"),
            (r"\sqrt3", r"\sqrt{3}"),
            (r"\sqrt[3]8", r"\sqrt[3]{8}"),
            (r"15\text{ cm}^2", "15"),
            ("10 dollars", "10"),
        ] {
            assert_eq!(minerva_normal(answer), normal, "{answer}");
        }
    }
}
