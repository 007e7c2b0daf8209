//! Tasks with what they need beside rows: a cell for the programs that models write.

use std::sync::Arc;

use l2d_eval::tasks::by_name;
use l2d_eval::{BoxError, CodeRunner, CodeVerdict, Task, Tools};
use l2d_sandbox::{Launcher, Limits, Mode, Sandbox, Verdict};
use serde_json::{Value, json};

use crate::args::ScoringArgs;
use crate::error::CliError;

/// Tasks ready to be scored.
pub(super) struct Equipped {
    pub(super) tasks: Vec<Box<dyn Task>>,
    /// Where programs run, for the report; null where there are none.
    pub(super) environment: Value,
}

/// The argument by which this program, started again, knows that it is to build a cell.
pub(crate) const AGAIN: &str = "__sandbox";

/// The sandbox, as the harness asks for it.
struct Cell {
    sandbox: Sandbox,
    identity: String,
}

impl CodeRunner for Cell {
    fn run(&self, program: &str) -> Result<CodeVerdict, BoxError> {
        Ok(match self.sandbox.run(program)?.verdict {
            Verdict::Passed => CodeVerdict::Passed,
            Verdict::Failed { error } => CodeVerdict::Failed(error),
            Verdict::TimedOut => CodeVerdict::Failed("timed out".to_owned()),
            Verdict::OutOfMemory => CodeVerdict::Failed("out of memory".to_owned()),
            Verdict::Forged => CodeVerdict::Failed("forged its success".to_owned()),
        })
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }
}

/// The tasks by name, those whose answers are programs with a sandbox; without one where nothing is `scored`.
pub(super) fn with_sandbox(names: &[String], scoring: &ScoringArgs, scored: bool) -> Result<Equipped, CliError> {
    let mode: Mode = scoring.sandbox.parse()?;
    let bare: Vec<_> = names.iter().map(|name| by_name(name, &Tools::default())).collect::<Result<_, _>>()?;
    if !scored || !bare.iter().any(|task| task.scoring_is_costly()) {
        return Ok(Equipped { tasks: bare, environment: Value::Null });
    }
    let limits = Limits::default();
    let python = scoring.python.as_deref();
    let sandbox = Sandbox::new(mode, limits.clone(), Launcher::current_exe([AGAIN])?, python)?;
    if mode != Mode::Required {
        let open = match mode {
            Mode::Off => "are NOT in a sandbox: they can do whatever you can".to_owned(),
            _ => format!("are in as much of a sandbox as this system has: {:?}", sandbox.layers()),
        };
        eprintln!("warning: --sandbox {mode}: programs that the model writes {open}");
    }
    let environment = json!({
        "sandbox": mode,
        "layers": sandbox.layers(),
        "limits": limits,
        "python": sandbox.python_version(),
        "python_executable": sandbox.python(),
    });
    let identity = environment.to_string();
    let tools = Tools { code: Some(Arc::new(Cell { sandbox, identity })) };
    let tasks = names.iter().map(|name| by_name(name, &tools)).collect::<Result<_, _>>()?;
    Ok(Equipped { tasks, environment })
}
