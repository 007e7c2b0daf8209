//! What there is on systems without the means: an error.

use std::path::Path;
use std::process::ExitCode;

use crate::error::{Error, Result};
use crate::mode::{Launcher, Layers, Limits, Mode};
use crate::outcome::Outcome;

/// A cell, which this system cannot build.
#[derive(Debug)]
pub enum Sandbox {}

impl Sandbox {
    /// Refuses.
    ///
    /// # Errors
    /// [`Error::System`], always.
    pub fn new(_mode: Mode, _limits: Limits, _launcher: Launcher, _python: Option<&Path>) -> Result<Self> {
        Err(Error::System)
    }

    /// Never called: there is no cell.
    pub fn layers(&self) -> &Layers {
        match *self {}
    }

    /// Never called: there is no cell.
    pub fn python_version(&self) -> &str {
        match *self {}
    }

    /// Never called: there is no cell.
    ///
    /// # Errors
    /// None.
    pub fn run(&self, _program: &str) -> Result<Outcome> {
        match *self {}
    }
}

/// Nothing starts this here.
pub fn enter() -> ExitCode {
    ExitCode::FAILURE
}
