//! Tests whose binary is what the sandbox starts again.

use std::process::ExitCode;
use std::time::Duration;

use l2d_sandbox::{Error, Launcher, Limits, Mode, Outcome, Sandbox, Verdict, enter};
use libtest_mimic::{Arguments, Failed, Trial};

/// The argument by which this binary knows that it is to build a cell.
pub(crate) const AGAIN: &str = "__sandbox";

/// Builds a cell where that is asked for, else runs the tests.
pub(crate) fn main(trials: Vec<(&'static str, fn() -> Result<(), Failed>)>) -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(AGAIN) {
        return enter();
    }
    let trials =
        trials.into_iter().map(|(name, test)| Trial::test(name, move || where_there_is_a_cell(test))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs a test where this system has all of the cell. Elsewhere it is skipped, unless `L2D_REQUIRE_SANDBOX` is set.
fn where_there_is_a_cell(test: fn() -> Result<(), Failed>) -> Result<(), Failed> {
    let probe = Sandbox::new(Mode::Required, Limits::default(), launcher(), None);
    match probe {
        Err(error @ (Error::Layer { .. } | Error::Python(_))) if std::env::var_os("L2D_REQUIRE_SANDBOX").is_none() => {
            println!("skipped: {error}");
            Ok(())
        }
        _ => test(),
    }
}

pub(crate) fn launcher() -> Launcher {
    Launcher::current_exe([AGAIN]).expect("this file")
}

pub(crate) fn sandbox(limits: Limits) -> Sandbox {
    Sandbox::new(Mode::Required, limits, launcher(), None).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn run(program: &str) -> Outcome {
    // Busy machines are slow; what must end in time asks for less.
    let limits = Limits { wall: Duration::from_secs(20), cpu: Duration::from_secs(20), ..Limits::default() };
    sandbox(limits).run(program).unwrap_or_else(|error| panic!("{error}"))
}

/// The program's error; it must have failed.
pub(crate) fn failure(program: &str) -> String {
    let outcome = run(program);
    match outcome.verdict {
        Verdict::Failed { error } => error,
        other => panic!("{other:?}: {}", outcome.output),
    }
}

/// A program of assertions about what cannot be done.
pub(crate) fn passes(program: &str) {
    let outcome = run(program);
    assert_eq!(outcome.verdict, Verdict::Passed, "{}", outcome.output);
}
