//! Numbers in text, and where text ends.

/// A completion as far as a harness would have let it go on: up to the first of its stop strings.
pub(crate) fn until<'a>(text: &'a str, stops: &[&str]) -> &'a str {
    let end = stops.iter().filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}

/// The plain decimal notation of a number, so that equal numbers have equal texts: `1,234.50` and `$1234.5` give
/// `1234.5`, `18.` gives `18`, `-0` gives `0`. `None` where the text is no number. Exact at any length, unlike a float.
pub(crate) fn canonical_number(text: &str) -> Option<String> {
    let bare: String = text.trim().chars().filter(|c| !matches!(c, ',' | '$')).collect();
    // The end of a sentence.
    let bare = bare.strip_suffix('.').map_or(bare.as_str(), |rest| if rest.is_empty() { "." } else { rest });
    let (negative, digits) = match bare.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, bare),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if negative && !(whole == "0" && fraction.is_empty()) { "-" } else { "" };
    Some(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_numbers_have_equal_texts() {
        for (text, expected) in [
            ("18", "18"),
            ("18.", "18"),
            ("18.00.", "18"),
            ("-12.5.", "-12.5"),
            ("5.0", "5"),
            ("-12.50", "-12.5"),
            ("1,234", "1234"),
            ("$1,234.50", "1234.5"),
            (".5", "0.5"),
            ("007", "7"),
            ("-0.0", "0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
        ] {
            assert_eq!(canonical_number(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", ",", ".", "-", "1.2.3", "--1", "1e3", "3/4", "five", "٣"] {
            assert_eq!(canonical_number(text), None, "{text}");
        }
    }

    #[test]
    fn a_completion_ends_at_the_first_stop_string() {
        let stops = ["Question:", "</s>"];
        assert_eq!(until("#### 18\n\nQuestion: #### 99</s>", &stops), "#### 18\n\n");
        assert_eq!(until("a</s>Question:", &stops), "a");
        assert_eq!((until("as it is", &stops), until("", &stops)), ("as it is", ""));
    }

    proptest! {
        #[test]
        fn canonical_numbers_stay_as_they_are(text in "-?[0-9,.]{0,12}") {
            if let Some(once) = canonical_number(&text) {
                prop_assert_eq!(canonical_number(&once), Some(once.clone()));
                let bare = text.replace(',', "");
                let value: f64 = bare.strip_suffix('.').unwrap_or(&bare).parse().unwrap();
                prop_assert_eq!(once.parse::<f64>().unwrap(), value);
            }
        }
    }
}
