//! How this process came to be one of several, and how they deal with what goes wrong on one of them.

use std::cell::Cell;

use l2d_train::TrainError;
use l2d_train::ranks::{Alone, Ranks};

use crate::error::CliError;
use crate::place::Place;

/// Variables in which launchers tell how many processes they have started.
const LAUNCHERS: [(&str, &str); 3] =
    [("OMPI_COMM_WORLD_SIZE", "mpirun (Open MPI)"), ("PMI_SIZE", "mpirun (MPICH)"), ("SLURM_STEP_NUM_TASKS", "srun")];

/// A process that may be one of several.
pub(crate) struct Joined {
    pub(crate) ranks: Box<dyn Ranks>,
    /// Number among those on this machine.
    pub(crate) local: usize,
}

/// Joins the other processes that a launcher has started, if one has.
///
/// # Errors
/// [`CliError::Usage`] where there are not `expected` of them, or where they cannot find one another.
pub(crate) fn join(expected: Option<usize>) -> Result<Joined, CliError> {
    let launched = LAUNCHERS.iter().find_map(|(variable, launcher)| {
        let size: usize = std::env::var(variable).ok()?.parse().ok()?;
        Some((size, *launcher))
    });
    let joined = match launched {
        Some((size, launcher)) if size > 1 => together(size, launcher)?,
        _ => Joined { ranks: Box::new(Alone), local: 0 },
    };
    match expected {
        Some(expected) if expected != joined.ranks.size() => Err(CliError::Usage(format!(
            "--ranks {expected}: there are {}; start this command with a launcher: mpirun -np {expected} l2d ..., or srun \
             --mpi=pmix --ntasks {expected} l2d ...",
            joined.ranks.size()
        ))),
        _ => Ok(joined),
    }
}

#[cfg(feature = "mpi")]
fn together(size: usize, launcher: &str) -> Result<Joined, CliError> {
    let mpi = l2d_train::ranks::Mpi::join()?;
    if mpi.size() != size {
        return Err(CliError::Usage(format!(
            "{launcher} has started {size} processes, and MPI sees {}: launcher and MPI library do not belong together (with \
             Slurm: srun --mpi=pmix, and `srun --mpi=list` says what there is)",
            mpi.size()
        )));
    }
    Ok(Joined { local: mpi.local_rank(), ranks: Box::new(mpi) })
}

#[cfg(not(feature = "mpi"))]
fn together(size: usize, launcher: &str) -> Result<Joined, CliError> {
    Err(CliError::Usage(format!(
        "{launcher} has started {size} processes, and this binary cannot join them: build it with --features mpi (which needs an \
         MPI library), or start it without a launcher; several GPUs of one machine need none (--devices cuda:0-7)"
    )))
}

/// The same outcome on all ranks: where a part of the work has failed on one, the first that failed says so and all stop.
pub(crate) fn settle<T>(ranks: &dyn Ranks, outcome: Result<T, CliError>) -> Result<T, CliError> {
    let failed = ranks.exchange(&[u8::from(outcome.is_err())])?;
    match (failed.iter().position(|failed| failed == &[1]), outcome) {
        (None, outcome) => outcome,
        (Some(first), Err(error)) if first == ranks.rank() => Err(error),
        (Some(_), _) => Err(CliError::Elsewhere),
    }
}

/// Runs one of several ranks on the device that is its own. `run` sets the flag when it has a device: from then on it deals with
/// the others itself.
pub(crate) fn on_device(
    ranks: &dyn Ranks,
    place: &Place,
    local: usize,
    run: impl FnOnce(&Place, &Cell<bool>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let place = settle(ranks, place.of_rank(local))?;
    let entered = Cell::new(false);
    run(&place, &entered).map_err(|error| if entered.get() { error } else { together_failed(ranks, error) })
}

/// What becomes of an error in work that all ranks do together: one that all have is said by the first rank; of one that this
/// rank alone has the others must hear, before they wait for it.
pub(crate) fn together_failed(ranks: &dyn Ranks, error: CliError) -> CliError {
    let shared = matches!(
        error,
        CliError::Train(TrainError::Diverged { .. } | TrainError::Unequal { .. } | TrainError::Config { .. })
            | CliError::Elsewhere
    );
    // The link itself is broken: whoever broke it says why.
    let told = matches!(error, CliError::Train(TrainError::Ranks { .. }));
    if ranks.size() == 1 || (shared && ranks.is_first()) {
        return error;
    }
    if shared || told {
        return CliError::Elsewhere;
    }
    eprintln!("error: rank {}: {error}", ranks.rank());
    // With MPI this ends the process.
    ranks.abandon();
    CliError::Elsewhere
}
