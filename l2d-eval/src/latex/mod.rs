//! Answers written in LaTeX: found in a text, brought into a normal form, compared.

mod boxed;
mod minerva;
mod normalise;
mod symbolic;
mod value;

pub(crate) use boxed::{Boxed, last_boxed};
pub(crate) use minerva::{minerva_answer, minerva_equal, minerva_normal};
pub(crate) use normalise::{Units, normalise, without_commas, without_subscript_braces};
pub(crate) use value::{Value, same_value};
