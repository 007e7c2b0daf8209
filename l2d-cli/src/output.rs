//! Standard output: what a command is for, as against what it says about its work on standard error.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

use crate::error::CliError;

/// [`print_line`] with a format string.
macro_rules! say {
    ($($argument:tt)*) => { $crate::output::print_line(format_args!($($argument)*)) };
}
pub(crate) use say;

/// Prints a line. A reader that has gone (`| head`) ends the command quietly, as other Unix tools end.
///
/// # Errors
/// [`CliError::OutputClosed`] where nobody reads any more; [`CliError::Io`] where the line cannot be written.
pub(crate) fn print_line(line: Arguments<'_>) -> Result<(), CliError> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::OutputClosed,
        _ => CliError::io("standard output", error),
    })
}
