//! The box around a final answer.

/// What stands in the last box of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boxed<'a> {
    /// In `\boxed{...}`, braces balanced.
    Box(&'a str),
    /// In `\fbox{...}`, where there is no `\boxed` at all.
    Frame(&'a str),
    /// One token after `\boxed `, without braces.
    Bare(&'a str),
}

impl<'a> Boxed<'a> {
    /// The answer, whatever is drawn around it.
    pub(crate) fn inner(self) -> &'a str {
        match self {
            Self::Box(inner) | Self::Frame(inner) | Self::Bare(inner) => inner,
        }
    }
}

/// The last box of a text; `None` where there is none, or its braces never close.
pub(crate) fn last_boxed(text: &str) -> Option<Boxed<'_>> {
    if let Some(at) = text.rfind(r"\boxed") {
        let rest = &text[at + r"\boxed".len()..];
        if let Some(bare) = rest.strip_prefix(' ') {
            let end = bare.find(|c: char| c.is_whitespace() || c == '$').unwrap_or(bare.len());
            if !bare.starts_with('{') {
                return (end > 0).then(|| Boxed::Bare(bare[..end].trim_end_matches(['.', ','])));
            }
        }
        return balanced(rest).map(Boxed::Box);
    }
    let at = text.rfind(r"\fbox")?;
    balanced(&text[at + r"\fbox".len()..]).map(Boxed::Frame)
}

/// What stands between the first brace and the one that closes it.
fn balanced(text: &str) -> Option<&str> {
    let start = text.find('{')?;
    let mut depth = 0usize;
    for (at, c) in text[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(&text[start + 1..start + at]);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_counts() {
        for (text, expected) in [
            (r"so \boxed{1} and \boxed{\frac{1}{2}}.", Some(Boxed::Box(r"\frac{1}{2}"))),
            (r"\boxed{}", Some(Boxed::Box(""))),
            (r"\boxed 8.", Some(Boxed::Bare("8"))),
            (r"$\boxed 17$", Some(Boxed::Bare("17"))),
            (r"\fbox{7}", Some(Boxed::Frame("7"))),
            (r"\boxed{3} \fbox{7}", Some(Boxed::Box("3"))),
            (r"\boxed{never", None),
            (r"\boxed", None),
            ("7", None),
        ] {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }
}
