//! What an answer stands for: exact numbers and lists of them, anything else as its text.

use num_rational::BigRational;

use super::normalise::{Units, normalise};
use super::symbolic::{self, Expression};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// Exactly.
    Number(BigRational),
    /// Parts between brackets, in order where the brackets say so.
    List(Brackets, Vec<Value>),
    /// In normal form.
    Text(String),
}

/// What stands around a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brackets {
    /// None: the solutions of something, in any order.
    None,
    /// `\{ \}`: in any order.
    Set,
    /// Points and intervals: the opening and the closing bracket.
    Ordered(char, char),
}

impl Value {
    /// Reads the inside of a box.
    pub(crate) fn read(text: &str) -> Self {
        let bare = text.trim().trim_matches('$').trim().trim_end_matches('.');
        let guarded = guarded(bare);
        let normal = normalise(&guarded, Units::Any).unwrap_or(guarded).replace(INDEXED_ROOT, r"\sqrt[");
        Self::of_normal(&plain(&normal))
    }

    fn of_normal(s: &str) -> Self {
        Self::nested(s, DEEPEST)
    }

    /// Lists in lists, down to `depth` of them: a completion may open as many brackets as it likes.
    fn nested(s: &str, depth: usize) -> Self {
        let Some(depth) = depth.checked_sub(1) else { return Self::Text(s.to_owned()) };
        let within = |part: &str| Self::nested(part, depth);
        if let Some(number) = number(s) {
            return Self::Number(number);
        }
        let brackets = [(r"\{", r"\}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]")];
        for (open, close) in brackets {
            if let Some(inner) = s.strip_prefix(open).and_then(|rest| rest.strip_suffix(close))
                && let Some(parts) = parts(inner)
            {
                let kind = match (open.chars().next(), close.chars().next()) {
                    (Some('\\'), _) => Brackets::Set,
                    (Some(open), Some(close)) => Brackets::Ordered(open, close),
                    _ => Brackets::None,
                };
                if parts.len() > 1 || kind == Brackets::Set {
                    return Self::List(kind, parts.into_iter().map(within).collect());
                }
            }
        }
        // Both of a pair.
        if let Some((before, after)) = s.split_once(r"\pm")
            && !after.contains(r"\pm")
            && !after.starts_with(|c: char| c.is_ascii_alphabetic())
        {
            let of = |sign: &str| within(format!("{before}{sign}{after}").trim_start_matches('+'));
            return Self::List(Brackets::None, vec![of("+"), of("-")]);
        }
        match parts(s) {
            Some(parts) if parts.len() > 1 => Self::List(Brackets::None, parts.into_iter().map(within).collect()),
            _ => Self::Text(s.to_owned()),
        }
    }
}

/// Lists in lists that are read as such.
const DEEPEST: usize = 32;

/// Stands for `\sqrt[` while the published procedure, which takes the bracket for what is under the root, is at work.
const INDEXED_ROOT: &str = "\u{1}[";

/// An answer, kept from what the published procedure would lose: the index of a root, the second of two solutions, the number
/// on the left of an equation.
fn guarded(text: &str) -> String {
    let mut s = text.replace(r"\sqrt[", INDEXED_ROOT);
    for word in ["or", "and"] {
        s = s.replace(&format!(r"\text{{ {word} }}"), ",");
    }
    match s.split_once('=') {
        Some((left, right)) if left.trim().len() <= 2 && left.contains(|c: char| c.is_ascii_digit()) => {
            format!("{right}={left}")
        }
        _ => s,
    }
}

/// Whether two answers stand for the same.
pub(crate) fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::List(ours, a), Value::List(theirs, b)) if ours == theirs && a.len() == b.len() => {
            if matches!(ours, Brackets::Ordered(..)) {
                return a.iter().zip(b).all(|(a, b)| same_value(a, b));
            }
            let mut left: Vec<&Value> = b.iter().collect();
            a.iter().all(|a| left.iter().position(|b| same_value(a, b)).map(|at| left.swap_remove(at)).is_some())
        }
        _ => a == b || same_expression(a, b),
    }
}

/// Whether two answers are one expression, or one equation whichever way round.
fn same_expression(a: &Value, b: &Value) -> bool {
    if let (Value::Text(a), Value::Text(b)) = (a, b)
        && let (Some((a, c)), Some((b, d))) = (a.split_once('='), b.split_once('='))
    {
        let same = |a: &str, b: &str| a == b || same_expression(&Value::of_normal(a), &Value::of_normal(b));
        return (same(a, b) && same(c, d)) || (same(a, d) && same(c, b));
    }
    let read = |value: &Value| match value {
        Value::Number(number) => Some(Expression::number(number.clone())),
        Value::Text(text) => Expression::parse(text),
        Value::List(..) => None,
    };
    matches!((read(a), read(b)), (Some(a), Some(b)) if symbolic::same(&a, &b))
}

/// Without what only sets the type: `\text{east}` is `east`, `1{,}000` and `1,000` are `1000`.
fn plain(s: &str) -> String {
    let mut s = s.replace("{,}", ",").replace(r"\,", "").replace(r"\;", "").replace(r"\ ", "").replace(r"\%", "");
    for command in [r"\text", r"\textbf", r"\mathrm", r"\mbox", r"\mathbf"] {
        if let Some(inner) = s.strip_prefix(command).and_then(|rest| rest.strip_prefix('{')?.strip_suffix('}'))
            && !inner.contains(['{', '}'])
        {
            s = inner.trim_matches(['(', ')']).to_owned();
        }
    }
    if thousands(&s) { s.replace(',', "") } else { s }
}

/// `-12,345,678.9`.
fn thousands(s: &str) -> bool {
    let s = s.strip_prefix('-').unwrap_or(s);
    let whole = s.split_once('.').map_or(s, |(whole, fraction)| if digits(fraction) { whole } else { "" });
    let mut groups = whole.split(',');
    let first = groups.next().unwrap_or_default();
    let rest: Vec<&str> = groups.collect();
    (1..=3).contains(&first.len())
        && digits(first)
        && !rest.is_empty()
        && rest.iter().all(|g| g.len() == 3 && digits(g))
}

fn digits(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit())
}

/// A whole number, a decimal, `\frac{a}{b}`, `a/b` or a mixed number, exactly.
fn number(s: &str) -> Option<BigRational> {
    // Longer ones are no answers but attacks on the time it takes to compare them.
    if s.len() > 400 {
        return None;
    }
    let (negative, s) = match s.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, s.strip_prefix('+').unwrap_or(s)),
    };
    let magnitude = unsigned(s)?;
    Some(if negative { -magnitude } else { magnitude })
}

fn unsigned(s: &str) -> Option<BigRational> {
    if let Some(at) = s.find(r"\frac{") {
        let (numerator, rest) = s[at + r"\frac{".len()..].split_once("}{")?;
        let quotient = quotient(numerator, rest.strip_suffix('}')?)?;
        if at == 0 {
            return Some(quotient);
        }
        let whole = &s[..at];
        return digits(whole).then(|| decimal(whole)).flatten().map(|whole| whole + quotient);
    }
    match s.split_once('/') {
        Some((numerator, denominator)) => quotient(numerator, denominator),
        None => decimal(s),
    }
}

fn quotient(numerator: &str, denominator: &str) -> Option<BigRational> {
    let signed = |s: &str| match s.strip_prefix('-') {
        Some(rest) => decimal(rest).map(|x| -x),
        None => decimal(s),
    };
    let (numerator, denominator) = (signed(numerator)?, signed(denominator)?);
    (*denominator.numer() != 0.into()).then(|| numerator / denominator)
}

fn decimal(s: &str) -> Option<BigRational> {
    let (whole, fraction) = s.split_once('.').unwrap_or((s, ""));
    if (whole.is_empty() && fraction.is_empty()) || !(whole.to_owned() + fraction).bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let numerator = format!("{whole}{fraction}").parse().ok()?;
    let denominator = format!("1{}", "0".repeat(fraction.len())).parse().ok()?;
    Some(BigRational::new(numerator, denominator))
}

/// The parts between commas that stand in no bracket; `None` where brackets do not match.
fn parts(s: &str) -> Option<Vec<&str>> {
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (at, c) in s.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&s[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&s[start..]);
    (depth == 0 && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn same(a: &str, b: &str) -> bool {
        let (a, b) = (Value::read(a), Value::read(b));
        assert!(same_value(&a, &a) && same_value(&b, &b), "a value is its own");
        assert_eq!(same_value(&a, &b), same_value(&b, &a), "whichever way round");
        same_value(&a, &b)
    }

    #[test]
    fn equal_answers() {
        for (a, b) in [
            ("1/2", "0.5"),
            (r"\frac{2}{4}", r"\frac12"),
            (r"1\frac{1}{2}", "1.5"),
            (r"-\frac{3}{4}", "-0.75"),
            (r"\frac{-3}{4}", "-3/4"),
            ("1,000", "1000"),
            ("1{,}000{,}000", "1000000"),
            (r"1\,000", "1000.0"),
            ("12,345.50", "12345.5"),
            ("007", "7"),
            ("-0", "0"),
            (r"\text{east}", "east"),
            (r"\text{(B)}", r"\text{B}"),
            (r"(1,2)", r"\left( 1.0, \frac{4}{2} \right)"),
            (r"[0, 1)", r"\left[0,1\right)"),
            (r"\{1, 2, 3\}", r"\{3,1,2\}"),
            ("1, -2", "-2,1"),
            ("x=3", "3"),
            (r"50\%", "50"),
            (r"30^\circ", "30"),
            ("$5$", "5."),
            (r"2\sqrt3", r"2\sqrt{3}"),
            ("123456789012345678901234567890/3", "41152263004115226300411522630"),
        ] {
            assert!(same(a, b), "{a} and {b}");
        }
    }

    /// `tests/fixtures/math_pairs.tsv`; all that are judged otherwise at once.
    #[test]
    fn pairs_of_the_table() {
        let table = include_str!("../../tests/fixtures/math_pairs.tsv");
        let mut counts = [0, 0];
        let mut wrong = Vec::new();
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let [a, b, kind, reason] = line.split('\t').collect::<Vec<_>>().try_into().expect("four columns");
            let expected = kind == "equal";
            assert!(expected || kind == "unequal", "{kind}");
            counts[usize::from(expected)] += 1;
            if same(a, b) != expected {
                wrong.push(format!("{a}  {b}  must be {kind}: {reason}"));
            }
        }
        assert!(counts.iter().all(|count| *count >= 100), "{counts:?}");
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), counts[0] + counts[1], wrong.join("\n"));
    }

    #[test]
    fn unequal_answers() {
        for (a, b) in [
            ("0.3", "1/3"),
            ("0.333", r"\frac{1}{3}"),
            ("5", "-5"),
            ("(1,2)", "(2,1)"),
            ("(0,1)", "[0,1]"),
            ("(0,1)", "[0,1)"),
            (r"\{1,2\}", r"\{1,2,3\}"),
            (r"\{1,1,2\}", r"\{1,2,2\}"),
            ("1,2", "12"),
            ("1,0000", "10000"),
            ("1/0", "2/0"),
            ("east", "west"),
            ("", "0"),
            ("x+1", "x+2"),
        ] {
            assert!(!same(a, b), "{a} and {b}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_compared_without_harm(a in r"[-+*/^_(){}\[\]|!.,=0-9a-z\\ ]{0,60}", b in r"(\\frac|\\sqrt|\\pm|\{|\}|\(|\)|\^|[0-9x]){0,40}") {
            same(&a, &b);
            same(&b, &b);
        }

        #[test]
        fn sums_of_products_are_the_same_in_any_order(terms in prop::collection::vec((1_u32..50, 0_usize..4), 1..6)) {
            let term = |(factor, name): &(u32, usize)| format!("{factor}{}", ["x", "y^2", r"\sqrt{3}", r"\pi"][*name]);
            let forward: Vec<String> = terms.iter().map(term).collect();
            let backward: Vec<String> = terms.iter().rev().map(term).collect();
            prop_assert!(same(&forward.join("+"), &backward.join("+")));
            let more = format!("{}+1", forward.join("+"));
            prop_assert!(!same(&forward.join("+"), &more));
        }
    }

    #[test]
    fn hostile_texts_take_no_time() {
        let start = std::time::Instant::now();
        for piece in ["{", "(", r"\frac", r"\sqrt{", "^", "^{9", "-", "!", "9!", "|", "x^9", r"\pm", ",", "9"] {
            let text = piece.repeat(10_000 / piece.len());
            same(&text, &text);
            same(&text, "1");
            // Below the length that is read at all.
            let text = piece.repeat(390 / piece.len());
            same(&text, "x");
        }
        // Far deeper than a stack.
        same(&format!("{}1{}", "(1,".repeat(20_000), ")".repeat(20_000)), "1");
        for tower in ["9^{9^{9^{9}}}", "9!!!!!!", r"\sqrt[9]{9^{9^9}}", "(9^{299})^{299}"] {
            same(tower, "1");
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
