//! Names near a mistyped one.

/// How alike two names must be, by Jaro-Winkler, to be named first.
const ALIKE: f64 = 0.7;

/// The names as one list for an error, those that are like `name` first.
pub(crate) fn list<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<(f64, &str)> = known
        .into_iter()
        .map(|other| {
            let alike = strsim::jaro_winkler(name, other);
            (if alike >= ALIKE { alike } else { 0.0 }, other)
        })
        .collect();
    // Stable: what is not alike stays in its order.
    known.sort_by(|a, b| b.0.total_cmp(&a.0));
    known.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_like_the_name_comes_first() {
        assert_eq!(list("humanevl", ["gsm8k", "math", "mbpp", "humaneval"]), "humaneval, gsm8k, math, mbpp");
        assert_eq!(list("xyz", ["b", "a"]), "b, a");
    }
}
