//! Values of expressions: exactly, and as complex numbers of double precision.

use num_complex::Complex64;
use num_rational::BigRational;

use super::parse::{Expression, Function};

/// The largest exponent, factorial and number of bits that are computed exactly: beyond is a question of time, not of answers.
const LARGEST_EXPONENT: i64 = 300;
const MOST_BITS: u64 = 4096;

/// The exact value of an expression without variables; `None` where it is no rational number, or not seen to be one.
pub(super) fn exact(expression: &Expression) -> Option<BigRational> {
    let found = match expression {
        Expression::Number(number, _) => number.clone(),
        Expression::Negative(a) => -exact(a)?,
        Expression::Sum(a, b) => exact(a)? + exact(b)?,
        Expression::Product(a, b) => exact(a)? * exact(b)?,
        Expression::Quotient(a, b) => {
            let (a, b) = (exact(a)?, exact(b)?);
            if b == zero() {
                return None;
            }
            a / b
        }
        Expression::Power(a, b) => power(exact(a)?, whole(&exact(b)?)?)?,
        Expression::Root(index, radicand) => root(whole(&exact(index)?)?, &exact(radicand)?)?,
        Expression::Absolute(a) => {
            let a = exact(a)?;
            if a < zero() { -a } else { a }
        }
        Expression::Factorial(a) => {
            let n = whole(&exact(a)?).filter(|n| (0..=LARGEST_EXPONENT).contains(n))?;
            (1..=n).fold(one(), |product, k| product * BigRational::from_integer(k.into()))
        }
        _ => return None,
    };
    (found.numer().bits() + found.denom().bits() <= MOST_BITS).then_some(found)
}

/// Whether a number is one that somebody would mean exactly: few digits above and below.
pub(super) fn is_short(number: &BigRational) -> bool {
    number.denom().bits() <= 14 && number.numer().bits() <= 30
}

fn zero() -> BigRational {
    BigRational::from_integer(0.into())
}

fn one() -> BigRational {
    BigRational::from_integer(1.into())
}

fn whole(number: &BigRational) -> Option<i64> {
    number.is_integer().then(|| number.numer().to_string().parse().ok()).flatten()
}

fn power(base: BigRational, exponent: i64) -> Option<BigRational> {
    let bits = base.numer().bits().max(base.denom().bits());
    let tame = exponent.abs() <= LARGEST_EXPONENT && bits * exponent.unsigned_abs() <= MOST_BITS;
    if !tame || (exponent <= 0 && base == zero()) {
        return None;
    }
    let magnitude = (0..exponent.abs()).fold(one(), |product, _| product * &base);
    Some(if exponent < 0 { one() / magnitude } else { magnitude })
}

/// The root of a number that has one among the rationals.
fn root(index: i64, radicand: &BigRational) -> Option<BigRational> {
    let index = u32::try_from(index).ok().filter(|index| (1..=20).contains(index))?;
    if *radicand < zero() {
        return None;
    }
    let (numerator, denominator) = (radicand.numer().nth_root(index), radicand.denom().nth_root(index));
    let found = BigRational::new(numerator, denominator);
    (power(found.clone(), i64::from(index))? == *radicand).then_some(found)
}

/// The value at a point; `None` where there is none.
pub(super) fn value(expression: &Expression, at: &[(&str, Complex64)]) -> Option<Complex64> {
    let of = |part: &Expression| value(part, at);
    let found = match expression {
        Expression::Number(number, _) => {
            // By way of decimals: numerator and denominator alone may be too large for a double.
            let ratio = float(number.numer()) / float(number.denom());
            Complex64::from(ratio)
        }
        Expression::Variable(name) => at.iter().find(|(known, _)| known == name).map(|(_, value)| *value)?,
        Expression::Pi => Complex64::from(std::f64::consts::PI),
        Expression::E => Complex64::from(std::f64::consts::E),
        Expression::I => Complex64::I,
        Expression::Negative(a) => -of(a)?,
        Expression::Sum(a, b) => of(a)? + of(b)?,
        Expression::Product(a, b) => of(a)? * of(b)?,
        Expression::Quotient(a, b) => {
            let b = of(b)?;
            if b.norm() < 1e-9 {
                return None;
            }
            of(a)? / b
        }
        Expression::Power(a, b) => raised(of(a)?, of(b)?)?,
        Expression::Root(index, radicand) => {
            let index = of(index)?;
            let odd = index.im == 0.0 && index.re.fract() == 0.0 && index.re % 2.0 != 0.0;
            let radicand = of(radicand)?;
            // The real root of a negative number, as everybody writes it.
            if odd && radicand.im == 0.0 && radicand.re < 0.0 {
                -raised(-radicand, 1.0 / index)?
            } else {
                raised(radicand, 1.0 / index)?
            }
        }
        Expression::Absolute(a) => Complex64::from(of(a)?.norm()),
        Expression::Factorial(a) => Complex64::from(factorial(of(a)?)?),
        Expression::Logarithm(base, a) => logarithm(of(a)?)? / logarithm(of(base)?)?,
        Expression::Function(function, a) => apply(*function, of(a)?)?,
    };
    (found.re.is_finite() && found.im.is_finite()).then_some(found)
}

fn float(number: &impl std::string::ToString) -> f64 {
    number.to_string().parse().unwrap_or(f64::NAN)
}

fn raised(base: Complex64, exponent: Complex64) -> Option<Complex64> {
    if base.norm() == 0.0 {
        return (exponent.re > 0.0).then(|| Complex64::from(0.0));
    }
    if exponent.im == 0.0 && exponent.re.fract() == 0.0 && exponent.re.abs() < 1e6 {
        return Some(base.powi(exponent.re as i32));
    }
    Some(base.powc(exponent))
}

fn factorial(n: Complex64) -> Option<f64> {
    let whole = n.im == 0.0 && n.re.fract() == 0.0 && (0.0..=170.0).contains(&n.re);
    whole.then(|| (1..=n.re as u32).map(f64::from).product())
}

fn logarithm(x: Complex64) -> Option<Complex64> {
    (x.norm() > 0.0).then(|| x.ln())
}

fn apply(function: Function, x: Complex64) -> Option<Complex64> {
    let one = Complex64::from(1.0);
    let over = |x: Complex64| (x.norm() > 1e-9).then(|| one / x);
    Some(match function {
        Function::Sin => x.sin(),
        Function::Cos => x.cos(),
        Function::Tan => x.sin() * over(x.cos())?,
        Function::Cot => x.cos() * over(x.sin())?,
        Function::Sec => over(x.cos())?,
        Function::Csc => over(x.sin())?,
        Function::Arcsin => x.asin(),
        Function::Arccos => x.acos(),
        Function::Arctan => x.atan(),
        Function::Ln => logarithm(x)?,
        Function::Exp => x.exp(),
    })
}
