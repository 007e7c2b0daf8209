//! Tasks with what they need beside rows: a cell for the programs that models write.

use l2d_eval::tasks::by_name;
use l2d_eval::{Task, Tools};
use serde_json::Value;

use crate::args::ScoringArgs;
use crate::error::CliError;

/// Tasks ready to be scored.
pub(super) struct Equipped {
    pub(super) tasks: Vec<Box<dyn Task>>,
    /// Where programs run, for the report; null where there are none.
    pub(super) environment: Value,
}

/// The tasks by name, those whose answers are programs with a sandbox; without one where nothing is `scored`.
pub(super) fn with_sandbox(names: &[String], scoring: &ScoringArgs, scored: bool) -> Result<Equipped, CliError> {
    let bare: Vec<_> = names.iter().map(|name| by_name(name, &Tools::default())).collect::<Result<_, _>>()?;
    if !scored || !bare.iter().any(|task| task.scoring_is_costly()) {
        return Ok(Equipped { tasks: bare, environment: Value::Null });
    }
    Err(CliError::Usage(format!("--sandbox {}: not built in yet", scoring.sandbox)))
}
