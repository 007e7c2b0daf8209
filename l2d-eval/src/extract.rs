//! Numbers in text.

/// The plain decimal notation of a number, so that equal numbers have equal texts: `1,234.50` and `$1234.5` give
/// `1234.5`, `18.` gives `18`, `-0` gives `0`. `None` where the text is no number. Exact at any length, unlike a float.
pub(crate) fn canonical_number(text: &str) -> Option<String> {
    let bare: String = text.trim().chars().filter(|c| !matches!(c, ',' | '$')).collect();
    let (negative, digits) = match bare.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, bare.as_str()),
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

    proptest! {
        #[test]
        fn canonical_numbers_stay_as_they_are(text in "-?[0-9,.]{0,12}") {
            if let Some(once) = canonical_number(&text) {
                prop_assert_eq!(canonical_number(&once), Some(once.clone()));
                let value: f64 = text.replace(',', "").parse().unwrap();
                prop_assert_eq!(once.parse::<f64>().unwrap(), value);
            }
        }
    }
}
