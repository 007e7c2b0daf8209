//! Whether two expressions are the same: exactly where both are rational, else by their values at fixed points.
//!
//! What is not understood is not equal. So is what may be equal: a long decimal beside a root, different variables, a root of
//! a square beside what was squared.

mod evaluate;
mod parse;

use num_complex::Complex64;

use self::evaluate::{exact, value};
pub(crate) use self::parse::Expression;

/// Values at which expressions with variables are compared: two above 0, two below, three in the plane. Variable number `k`
/// takes a point's value turned by `k`, so that no two are alike.
const POINTS: [(f64, f64); 7] = [
    (0.7316, 0.0),
    (2.4142, 0.0),
    (-0.8531, 0.0),
    (-1.9173, 0.0),
    (0.5413, 1.1327),
    (-1.3719, 0.4177),
    (1.6201, -0.7919),
];

/// As far apart as rounding may put two ways of computing one number.
const TOLERANCE: f64 = 1e-11;

/// Points at which both must have a value.
const NEEDED: usize = 2;

/// Whether two expressions are the same.
pub(crate) fn same(a: &Expression, b: &Expression) -> bool {
    if a == b {
        return true;
    }
    let variables = a.variables();
    if variables != b.variables() {
        return false;
    }
    if variables.is_empty() {
        return match (exact(a), exact(b)) {
            (Some(a), Some(b)) => a == b,
            // A number like log_2 8 may be whole; that a decimal of many digits comes near to a root tells nothing.
            (Some(number), None) | (None, Some(number)) => {
                evaluate::is_short(&number) && alike(value(a, &[]), value(b, &[]))
            }
            (None, None) => !a.is_rounded() && !b.is_rounded() && alike(value(a, &[]), value(b, &[])),
        };
    }
    if a.is_rounded() || b.is_rounded() {
        return false;
    }
    let mut compared = 0;
    for (index, &(re, im)) in POINTS.iter().enumerate() {
        let at: Vec<(&str, Complex64)> =
            variables.iter().enumerate().map(|(k, name)| (name.as_str(), point(re, im, k, index))).collect();
        match (value(a, &at), value(b, &at)) {
            (Some(a), Some(b)) => {
                if !alike(Some(a), Some(b)) {
                    return false;
                }
                compared += 1;
            }
            (None, None) => {}
            _ => return false,
        }
    }
    compared >= NEEDED
}

/// The value of variable number `k` at a point; real where the point is.
fn point(re: f64, im: f64, k: usize, index: usize) -> Complex64 {
    let stretch = 1.0 + 0.3719 * k as f64 + 0.0113 * (k * index) as f64;
    Complex64::new(re * stretch, if im == 0.0 { 0.0 } else { im / stretch })
}

fn alike(a: Option<Complex64>, b: Option<Complex64>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    (a - b).norm() <= TOLERANCE * a.norm().max(b.norm())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(a: &str, b: &str) -> bool {
        let (Some(a), Some(b)) = (Expression::parse(a), Expression::parse(b)) else { return false };
        assert!(same(&a, &a) && same(&b, &b), "{a:?} {b:?}");
        assert_eq!(same(&a, &b), same(&b, &a));
        same(&a, &b)
    }

    #[test]
    fn one_expression_in_two_forms() {
        for (a, b) in [
            (r"2\sqrt{2}", r"\sqrt{8}"),
            (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
            ("x^2+2x+1", "(x+1)^2"),
            (r"\frac{x^2-1}{x-1}", "x+1"),
            (r"3\pi", r"\pi\cdot3"),
            (r"\frac{\pi}{6}", r"\pi/6"),
            (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"),
            (r"\log_{2}8", "3"),
            (r"\sin^2x+\cos^2x", r"\frac{x}{x}"),
            ("(2x+3)(x-1)", "2x^2+x-3"),
            ("5!", "120"),
            ("2^{10}", "1024"),
            ("(1+i)^2", "2i"),
            (r"|x|^2", "x^2"),
            (r"e^{\pi i}", "-1"),
            ("2ab", "2ba"),
            (r"\alpha+\beta", r"\beta+\alpha"),
            (r"2\frac{1}{2}", r"\frac{5}{2}"),
            (r"0.\overline{3}", r"\frac{1}{3}"),
        ] {
            if a == r"|x|^2" {
                assert!(!equal(a, b), "not in the plane");
            } else {
                assert!(equal(a, b), "{a} and {b}");
            }
        }
    }

    #[test]
    fn different_expressions_and_what_is_none() {
        for (a, b) in [
            ("x+1", "x+2"),
            ("x", "y"),
            (r"\sqrt{x^2}", "x"),
            (r"\sqrt{2}", "1.41421356237"),
            (r"\sqrt{2}", "1.414213562373095"),
            (r"\frac{1}{3}", "0.3333333333333333"),
            (r"\pi", "3.14159265358979"),
            ("2x", "x^2"),
            ("east", "seat"),
            ("no", "on"),
            ("1/0", "2/0"),
            ("", ""),
            ("x<1", "x<1"),
            (r"10^{10^{10}}", r"10^{10^{11}}"),
        ] {
            assert!(!equal(a, b), "{a} and {b}");
        }
    }
}
