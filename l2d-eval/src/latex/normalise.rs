//! The normal form of MATH's own scorer (Hendrycks et al. 2021, arXiv 2103.03874), which every other one begins with.

/// What becomes of units, `\text{ cm}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Units {
    /// They are cut off; with more than one there is no normal form.
    One,
    /// The text before the first is left.
    Any,
}

/// The normal form; `None` where the published procedure fails (it then compares the texts as they are).
pub(crate) fn normalise(text: &str, units: Units) -> Option<String> {
    let mut s = text.replace('\n', "");
    for (from, to) in [
        (r"\!", ""),
        (r"\\", r"\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        (r"\left", ""),
        (r"\right", ""),
        (r"^{\circ}", ""),
        (r"^\circ", ""),
        (r"\$", ""),
    ] {
        s = s.replace(from, to);
    }
    let parts: Vec<&str> = s.split(r"\text{ ").collect();
    if parts.len() > 2 && units == Units::One {
        return None;
    }
    s = parts[0].replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if s.starts_with('.') {
        s.insert(0, '0');
    }
    if let Some((name, value)) = s.split_once('=')
        && name.chars().count() <= 2
        && !value.contains('=')
    {
        s = value.to_owned();
    }
    s = braced_roots(&s)?.replace(' ', "");
    s = braced_fractions(&s);
    if s == "0.5" {
        s = r"\frac{1}{2}".to_owned();
    }
    Some(slash_as_fraction(&s).unwrap_or(s))
}

/// `\sqrt3` as `\sqrt{3}`; `None` where nothing follows a root.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split(r"\sqrt");
    let mut s = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let first = part.chars().next()?;
        s.push_str(r"\sqrt");
        if first == '{' {
            s.push_str(part);
        } else {
            s.push_str(&format!("{{{first}}}{}", &part[first.len_utf8()..]));
        }
    }
    Some(s)
}

/// `\frac12` and `\frac1{2}` as `\frac{1}{2}`. Where too little follows, the text stays as it is.
fn braced_fractions(text: &str) -> String {
    let mut parts = text.split(r"\frac");
    let mut s = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        s.push_str(r"\frac");
        if part.starts_with('{') {
            s.push_str(part);
            continue;
        }
        let mut chars = part.chars();
        let (Some(a), Some(b)) = (chars.next(), chars.next()) else { return text.to_owned() };
        let rest = chars.as_str();
        s.push_str(&if b == '{' { format!("{{{a}}}{{{rest}") } else { format!("{{{a}}}{{{b}}}{rest}") });
    }
    s
}

/// `a/b` of two whole numbers as `\frac{a}{b}`.
fn slash_as_fraction(text: &str) -> Option<String> {
    let (a, b) = text.split_once('/')?;
    let whole = |part: &str| part.parse::<i128>().is_ok_and(|number| number.to_string() == part);
    (whole(a) && whole(b)).then(|| format!(r"\frac{{{a}}}{{{b}}}"))
}

/// `a_{12}` as `a_12`.
pub(crate) fn without_subscript_braces(text: &str) -> String {
    let mut s = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("_{") {
        let inner = &rest[at + 2..];
        let Some(end) = inner.find('}').filter(|&end| !inner[..end].contains('{')) else {
            s.push_str(&rest[..at + 2]);
            rest = inner;
            continue;
        };
        s.push_str(&rest[..at + 1]);
        s.push_str(&inner[..end]);
        rest = &inner[end + 1..];
    }
    s + rest
}

/// Without commas, unless they may part the coordinates of a point.
pub(crate) fn without_commas(text: &str) -> String {
    if text.contains('(') { text.to_owned() } else { text.replace(',', "") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_that_are_published() {
        for (text, expected) in [
            (r"\frac12", r"\frac{1}{2}"),
            (r"\frac1{72}", r"\frac{1}{72}"),
            (r"\dfrac{3}{4}", r"\frac{3}{4}"),
            (r"\tfrac{-1}{2}", r"\frac{-1}{2}"),
            ("0.5", r"\frac{1}{2}"),
            (".5", r"\frac{1}{2}"),
            ("-3/4", r"\frac{-3}{4}"),
            ("a/b", "a/b"),
            ("1/2/3", "1/2/3"),
            (r"x = 5", "5"),
            ("abc = 5", "abc=5"),
            (r"5\text{ cm}", "5"),
            (r"90^\circ", "90"),
            (r"90^{\circ}", "90"),
            (r"10\%", "10"),
            (r"\$5", "5"),
            (r"\sqrt3", r"\sqrt{3}"),
            (r"2\sqrt{3} + \sqrt2", r"2\sqrt{3}+\sqrt{2}"),
            (r"\left( 3, 4 \right)", "(3,4)"),
            (r"1\!000", "1000"),
            (r"\frac", r"\frac"),
            ("", ""),
        ] {
            assert_eq!(normalise(text, Units::One).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(normalise(r"1\text{ m} 2\text{ cm}", Units::One), None);
        assert_eq!(normalise(r"1\text{ m} 2\text{ cm}", Units::Any).as_deref(), Some("1"));
        assert_eq!(normalise(r"\sqrt", Units::One), None);
    }

    #[test]
    fn subscripts_and_commas() {
        assert_eq!(without_subscript_braces("a_{12} + b_{1} _{"), "a_12 + b_1 _{");
        assert_eq!(without_subscript_braces("a_{b_{1}}"), "a_{b_1}");
        assert_eq!((without_commas("1,000").as_str(), without_commas("(1,2)").as_str()), ("1000", "(1,2)"));
    }
}
