//! From LaTeX to an expression. Anything that is not plainly an expression is none.

use std::collections::BTreeSet;

use num_rational::BigRational;

/// The longest text that is looked at, and how deep it may be nested: answers are short, and a longer one is an attack on the
/// time it takes to read it.
const LONGEST: usize = 400;
const DEEPEST: usize = 40;

/// An expression of numbers, variables, roots and functions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expression {
    /// Exactly; whether it was written as a decimal so long that it stands for something rounded.
    Number(BigRational, bool),
    /// A letter.
    Variable(String),
    /// The circle's number.
    Pi,
    /// The base of the natural logarithm.
    E,
    /// The imaginary unit.
    I,
    Negative(Box<Expression>),
    Sum(Box<Expression>, Box<Expression>),
    Product(Box<Expression>, Box<Expression>),
    Quotient(Box<Expression>, Box<Expression>),
    Power(Box<Expression>, Box<Expression>),
    /// Index and radicand.
    Root(Box<Expression>, Box<Expression>),
    Absolute(Box<Expression>),
    Factorial(Box<Expression>),
    /// To the base 10 for a bare `\log`.
    Logarithm(Box<Expression>, Box<Expression>),
    Function(Function, Box<Expression>),
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Ln,
    Exp,
}

const FUNCTIONS: [(&str, Function); 11] = [
    ("sin", Function::Sin),
    ("cos", Function::Cos),
    ("tan", Function::Tan),
    ("cot", Function::Cot),
    ("sec", Function::Sec),
    ("csc", Function::Csc),
    ("arcsin", Function::Arcsin),
    ("arccos", Function::Arccos),
    ("arctan", Function::Arctan),
    ("ln", Function::Ln),
    ("exp", Function::Exp),
];

const GREEK: [&str; 16] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "nu", "rho", "sigma", "tau", "phi", "chi",
    "psi", "omega",
];

/// Every command that is understood.
const KNOWN: [&str; 37] = [
    "frac", "dfrac", "tfrac", "sqrt", "cdot", "times", "div", "pi", "log", "overline", "sin", "cos", "tan", "cot",
    "sec", "csc", "arcsin", "arccos", "arctan", "ln", "exp", "alpha", "beta", "gamma", "delta", "epsilon", "theta",
    "lambda", "mu", "nu", "rho", "sigma", "tau", "phi", "chi", "psi", "omega",
];

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Number(String),
    Letter(char),
    Command(String),
    Sign(char),
}

impl Expression {
    /// Reads an expression; `None` for anything else, and for letters alone, which are as often a word.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let tokens = tokens(text)?;
        let letters = tokens.iter().filter(|token| matches!(token, Token::Letter(_))).count();
        if (letters == tokens.len() && letters > 1) || word(&tokens) {
            return None;
        }
        let mut parser = Parser { tokens, at: 0, depth: 0 };
        let expression = parser.sum()?;
        (parser.at == parser.tokens.len()).then_some(expression)
    }

    /// A number.
    pub(crate) fn number(number: BigRational) -> Self {
        Self::Number(number, false)
    }

    /// The names of its variables.
    pub(crate) fn variables(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        self.visit(&mut |part| {
            if let Self::Variable(name) = part {
                names.insert(name.clone());
            }
        });
        names
    }

    /// Whether it holds a decimal that stands for something rounded.
    pub(crate) fn is_rounded(&self) -> bool {
        let mut rounded = false;
        self.visit(&mut |part| rounded |= matches!(part, Self::Number(_, true)));
        rounded
    }

    fn visit(&self, see: &mut dyn FnMut(&Self)) {
        see(self);
        match self {
            Self::Number(..) | Self::Variable(_) | Self::Pi | Self::E | Self::I => {}
            Self::Negative(a) | Self::Absolute(a) | Self::Factorial(a) | Self::Function(_, a) => a.visit(see),
            Self::Sum(a, b)
            | Self::Product(a, b)
            | Self::Quotient(a, b)
            | Self::Power(a, b)
            | Self::Root(a, b)
            | Self::Logarithm(a, b) => {
                a.visit(see);
                b.visit(see);
            }
        }
    }
}

fn boxed(a: Expression) -> Box<Expression> {
    Box::new(a)
}

/// More than three letters in a row are a word, and no product.
fn word(tokens: &[Token]) -> bool {
    let mut run = 0;
    tokens.iter().any(|token| {
        run = if matches!(token, Token::Letter(_)) { run + 1 } else { 0 };
        run > 3
    })
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    if text.len() > LONGEST {
        return None;
    }
    let text = text.replace(r"\left", "").replace(r"\right", "");
    let mut chars = text.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        match c {
            _ if c.is_whitespace() => {}
            '0'..='9' | '.' => {
                let mut number = c.to_string();
                while let Some(&next) = chars.peek().filter(|next| next.is_ascii_digit() || **next == '.') {
                    number.push(next);
                    chars.next();
                }
                tokens.push(Token::Number(number));
            }
            'a'..='z' | 'A'..='Z' => tokens.push(Token::Letter(c)),
            '\\' => {
                let mut name = String::new();
                while let Some(&next) = chars.peek().filter(|next| next.is_ascii_alphabetic()) {
                    name.push(next);
                    chars.next();
                }
                if name.is_empty() {
                    // Thin spaces; any other sign after a backslash is not understood.
                    match chars.next()? {
                        ',' | ';' | ':' | '!' | ' ' => {}
                        _ => return None,
                    }
                } else {
                    // Normal forms have lost the spaces that end a command: `\pi r` is `\pir`.
                    let known =
                        KNOWN.iter().filter(|known| name.starts_with(**known)).max_by_key(|known| known.len())?;
                    tokens.push(Token::Command((*known).to_owned()));
                    tokens.extend(name[known.len()..].chars().map(Token::Letter));
                }
            }
            '+' | '-' | '*' | '/' | '^' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '!' | '_' => {
                tokens.push(Token::Sign(c))
            }
            '−' => tokens.push(Token::Sign('-')),
            _ => return None,
        }
    }
    (!tokens.is_empty()).then_some(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn sign(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(&Token::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn command(&mut self, name: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Command(found)) if found == name);
        self.at += usize::from(found);
        found
    }

    /// Runs `inner` one level deeper.
    fn nested(&mut self, inner: impl FnOnce(&mut Self) -> Option<Expression>) -> Option<Expression> {
        if self.depth == DEEPEST {
            return None;
        }
        self.depth += 1;
        let found = inner(self);
        self.depth -= 1;
        found
    }

    fn sum(&mut self) -> Option<Expression> {
        self.nested(|parser| {
            let mut sum = parser.signed()?;
            loop {
                if parser.sign('+') {
                    sum = Expression::Sum(boxed(sum), boxed(parser.product()?));
                } else if parser.sign('-') {
                    sum = Expression::Sum(boxed(sum), boxed(Expression::Negative(boxed(parser.product()?))));
                } else {
                    return Some(sum);
                }
            }
        })
    }

    fn signed(&mut self) -> Option<Expression> {
        let mut negative = false;
        while self.sign('-') || self.sign('+') {
            negative ^= self.tokens.get(self.at - 1) == Some(&Token::Sign('-'));
        }
        let product = self.product()?;
        Some(if negative { Expression::Negative(boxed(product)) } else { product })
    }

    fn product(&mut self) -> Option<Expression> {
        let mut product = self.power()?;
        loop {
            if self.sign('*') || self.command("cdot") || self.command("times") {
                let factor = self.factor_with_sign()?;
                product = Expression::Product(boxed(product), boxed(factor));
            } else if self.sign('/') || self.command("div") {
                let factor = self.factor_with_sign()?;
                product = Expression::Quotient(boxed(product), boxed(factor));
            } else if self.begins_a_factor() {
                product = self.beside(product)?;
            } else {
                return Some(product);
            }
        }
    }

    /// `2 * -3`.
    fn factor_with_sign(&mut self) -> Option<Expression> {
        if self.sign('-') {
            return Some(Expression::Negative(boxed(self.power()?)));
        }
        self.power()
    }

    /// Two factors without a sign between them; a whole number before a fraction of whole numbers is added to it.
    fn beside(&mut self, product: Expression) -> Option<Expression> {
        let digits =
            |token: Option<&Token>| matches!(token, Some(Token::Number(n)) if n.bytes().all(|b| b.is_ascii_digit()));
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        // Two numbers in a row are no product, and after a power the whole part would be its exponent.
        if matches!(before, Some(Token::Number(_))) && matches!(self.peek(), Some(Token::Number(_))) {
            return None;
        }
        let alone = matches!(product, Expression::Number(..)) && digits(before);
        let fraction =
            matches!(self.peek(), Some(Token::Command(name)) if matches!(name.as_str(), "frac" | "dfrac" | "tfrac"));
        let factor = self.power()?;
        let whole = |part: &Expression| matches!(part, Expression::Number(n, _) if n.is_integer());
        Some(match &factor {
            Expression::Quotient(a, b) if alone && fraction && whole(a) && whole(b) => {
                Expression::Sum(boxed(product), boxed(factor))
            }
            _ => Expression::Product(boxed(product), boxed(factor)),
        })
    }

    fn begins_a_factor(&self) -> bool {
        match self.peek() {
            Some(Token::Number(_) | Token::Letter(_)) => true,
            Some(Token::Sign(sign)) => matches!(sign, '(' | '[' | '{'),
            Some(Token::Command(name)) => !matches!(name.as_str(), "cdot" | "times" | "div" | "pm" | "mp"),
            None => false,
        }
    }

    fn power(&mut self) -> Option<Expression> {
        self.nested(|parser| {
            let mut base = parser.base()?;
            loop {
                if parser.sign('!') {
                    base = Expression::Factorial(boxed(base));
                } else if parser.sign('^') {
                    let exponent = parser.argument()?;
                    base = Expression::Power(boxed(base), boxed(exponent));
                } else {
                    return Some(base);
                }
            }
        })
    }

    /// What stands in braces, or one token.
    fn argument(&mut self) -> Option<Expression> {
        if self.sign('{') {
            let inner = self.sum()?;
            return self.sign('}').then_some(inner);
        }
        if self.sign('-') {
            return Some(Expression::Negative(boxed(self.argument()?)));
        }
        match self.peek() {
            // `x^10` and `\frac12` mean their first digit.
            Some(Token::Number(digits)) if digits.len() > 1 => None,
            _ => self.base(),
        }
    }

    /// The base of a logarithm: `\log_28` is that of 8 to the base 2.
    fn subscript(&mut self) -> Option<Expression> {
        let Some(Token::Number(digits)) = self.peek().filter(|token| matches!(token, Token::Number(n) if n.len() > 1))
        else {
            return self.argument();
        };
        let (first, rest) = digits.split_at(1);
        let base = Expression::number(BigRational::from_integer(first.parse().ok()?));
        self.tokens[self.at] = Token::Number(rest.to_owned());
        Some(base)
    }

    fn base(&mut self) -> Option<Expression> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Token::Number(digits) => self.number(&digits),
            Token::Letter('e') => Some(Expression::E),
            Token::Letter('i') => Some(Expression::I),
            Token::Letter(letter) => self.variable(letter.to_string()),
            Token::Sign('(') => self.closed_by(')'),
            Token::Sign('[') => self.closed_by(']'),
            Token::Sign('{') => self.closed_by('}'),
            Token::Sign('|') => {
                let inner = self.sum()?;
                self.sign('|').then(|| Expression::Absolute(boxed(inner)))
            }
            Token::Sign(_) => None,
            Token::Command(name) => self.named(&name),
        }
    }

    fn closed_by(&mut self, close: char) -> Option<Expression> {
        let inner = self.sum()?;
        self.sign(close).then_some(inner)
    }

    /// With its subscript, which is part of its name.
    fn variable(&mut self, name: String) -> Option<Expression> {
        if !self.sign('_') {
            return Some(Expression::Variable(name));
        }
        let mut subscript = String::new();
        let braced = self.sign('{');
        loop {
            match self.peek()?.clone() {
                Token::Number(digits) => subscript.push_str(&digits),
                Token::Letter(letter) => subscript.push(letter),
                Token::Sign('}') if braced => {
                    self.at += 1;
                    return Some(Expression::Variable(format!("{name}_{subscript}")));
                }
                _ => return None,
            }
            self.at += 1;
            if !braced {
                return Some(Expression::Variable(format!("{name}_{subscript}")));
            }
        }
    }

    /// A number, with the digits under a bar after it repeating for ever.
    fn number(&mut self, digits: &str) -> Option<Expression> {
        if self.peek() == Some(&Token::Sign('_')) {
            // In another base.
            return None;
        }
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if fraction.contains('.') || whole.len() + fraction.len() == 0 {
            return None;
        }
        let of = |numerator: String, zeros: usize| {
            let denominator = format!("1{}", "0".repeat(zeros)).parse().ok()?;
            Some(BigRational::new(numerator.parse().ok()?, denominator))
        };
        let number = of(format!("0{whole}{fraction}"), fraction.len())?;
        if digits.contains('.') && self.command("overline") {
            let repeating = match (self.sign('{'), self.peek()?.clone()) {
                (true, Token::Number(digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => digits,
                _ => return None,
            };
            self.at += 1;
            let ones = format!("{}{}", "9".repeat(repeating.len()), "0".repeat(fraction.len())).parse().ok()?;
            let rest = BigRational::new(repeating.parse().ok()?, ones);
            return self.sign('}').then(|| Expression::Number(number + rest, false));
        }
        Some(Expression::Number(number, fraction.len() > 5))
    }

    fn named(&mut self, name: &str) -> Option<Expression> {
        match name {
            "frac" | "dfrac" | "tfrac" => {
                let (a, b) = self.two_arguments()?;
                Some(Expression::Quotient(boxed(a), boxed(b)))
            }
            "sqrt" => {
                let index = if self.sign('[') {
                    self.closed_by(']')?
                } else {
                    Expression::number(BigRational::from_integer(2.into()))
                };
                let radicand = self.argument()?;
                Some(Expression::Root(boxed(index), boxed(radicand)))
            }
            "pi" => Some(Expression::Pi),
            "log" => {
                let base = if self.sign('_') {
                    self.subscript()?
                } else {
                    Expression::number(BigRational::from_integer(10.into()))
                };
                let of = self.applied_to()?;
                Some(Expression::Logarithm(boxed(base), boxed(of)))
            }
            _ if GREEK.contains(&name) => self.variable(name.to_owned()),
            _ => {
                let (_, function) = FUNCTIONS.iter().find(|(known, _)| *known == name)?;
                // `\sin^2 x`; an inverse is written otherwise.
                let power = if self.sign('^') { Some(self.argument()?) } else { None };
                if matches!(&power, Some(Expression::Negative(_))) {
                    return None;
                }
                let applied = Expression::Function(*function, boxed(self.applied_to()?));
                Some(match power {
                    Some(power) => Expression::Power(boxed(applied), boxed(power)),
                    None => applied,
                })
            }
        }
    }

    /// What a function stands before: a bracket, or factors without a sign up to the next function.
    fn applied_to(&mut self) -> Option<Expression> {
        if matches!(self.peek(), Some(Token::Sign('(' | '[' | '{'))) {
            return self.power();
        }
        let mut product = self.power()?;
        while matches!(self.peek(), Some(Token::Number(_) | Token::Letter(_)))
            || matches!(self.peek(), Some(Token::Command(name)) if name == "pi" || GREEK.contains(&name.as_str()))
        {
            let factor = self.power()?;
            product = Expression::Product(boxed(product), boxed(factor));
        }
        Some(product)
    }

    fn two_arguments(&mut self) -> Option<(Expression, Expression)> {
        // `\frac12`: one token of two digits.
        if let Some(Token::Number(digits)) = self.peek().cloned()
            && digits.len() == 2
            && digits.bytes().all(|b| b.is_ascii_digit())
        {
            self.at += 1;
            let digit = |at: usize| {
                digits[at..=at].parse::<u32>().ok().map(|n| Expression::number(BigRational::from_integer(n.into())))
            };
            return Some((digit(0)?, digit(1)?));
        }
        Some((self.argument()?, self.argument()?))
    }
}
