//! How this process came to be one of several, and how they deal with what goes wrong on one of them.

use std::cell::Cell;

use l2d_train::TrainError;
use l2d_train::ranks::{Alone, Ranks, agree};

use crate::error::CliError;
use crate::place::Place;

/// Variables in which launchers tell how many processes they have started.
const LAUNCHERS: [(&str, &str); 3] =
    [("OMPI_COMM_WORLD_SIZE", "mpirun (Open MPI)"), ("PMI_SIZE", "mpirun (MPICH)"), ("SLURM_STEP_NUM_TASKS", "srun")];

/// Variables in which they tell which of them this is.
const NUMBERS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];

/// Whether this process speaks before it has joined the others: the first does.
pub(crate) fn speaks() -> bool {
    let number = NUMBERS.iter().find_map(|variable| std::env::var(variable).ok());
    number.is_none_or(|number| number.trim() == "0")
}

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
    let size = joined.ranks.size();
    let as_many = match expected {
        Some(expected) if expected != size => Err(CliError::Usage(format!(
            "--ranks {expected}: there are {size}; start this command with a launcher: mpirun -np {expected} l2d ..., or srun \
             --mpi=pmix --ntasks {expected} l2d ...",
        ))),
        _ => Ok(()),
    };
    settle(&*joined.ranks, as_many)?;
    if size > 1 {
        // Of one commit: another may draw, or compute, otherwise. A build outside a repository knows none.
        agree(&*joined.ranks, &[("commit", env!("L2D_COMMIT").to_owned())])
            .map_err(|error| together_failed(&*joined.ranks, error.into()))?;
    }
    Ok(joined)
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
///
/// # Errors
/// [`CliError::Settled`] on that one, [`CliError::Elsewhere`] on the others.
pub(crate) fn settle<T>(ranks: &dyn Ranks, outcome: Result<T, CliError>) -> Result<T, CliError> {
    let failed = ranks.exchange(&[u8::from(outcome.is_err())])?;
    match (failed.iter().position(|failed| failed == &[1]), outcome) {
        (None, outcome) => outcome,
        (Some(first), Err(error)) if first == ranks.rank() => Err(all_know(error)),
        (Some(_), _) => Err(CliError::Elsewhere),
    }
}

/// An error that every rank has, or has been told of: none waits for this one.
pub(crate) fn all_know(error: CliError) -> CliError {
    match error {
        CliError::Settled(_) | CliError::Elsewhere => error,
        other => CliError::Settled(Box::new(other)),
    }
}

/// Whether a rank has its device, and is in the work it does together with the others.
#[derive(Debug, Default)]
pub(crate) struct Entered(Cell<bool>);

impl Entered {
    /// To be called by each rank that has its device, before anything else.
    ///
    /// # Errors
    /// [`CliError::Elsewhere`] where another has none.
    pub(crate) fn enter(&self, ranks: &dyn Ranks) -> Result<(), CliError> {
        self.0.set(true);
        settle(ranks, Ok(()))
    }
}

/// Runs one of several ranks on the device that is its own. `run` calls [`Entered::enter`] when it has a device.
pub(crate) fn on_device(
    ranks: &dyn Ranks,
    place: &Place,
    local: usize,
    run: impl FnOnce(&Place, &Entered) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let place = settle(ranks, place.of_rank(local))?;
    let entered = Entered::default();
    run(&place, &entered).map_err(|error| {
        if entered.0.get() {
            return alone_failed(ranks, error);
        }
        // The others are entering, and hear of it there.
        settle::<()>(ranks, Err(error)).err().unwrap_or(CliError::Elsewhere)
    })
}

/// What becomes of an error of training, which all ranks do together: one that all have is said by the first rank; of one that
/// this rank alone has the others must hear, before they wait for it.
pub(crate) fn together_failed(ranks: &dyn Ranks, error: CliError) -> CliError {
    let shared = matches!(
        error,
        CliError::Train(TrainError::Diverged { .. } | TrainError::Unequal { .. } | TrainError::Config { .. })
    );
    // The link itself is broken: whoever broke it says why.
    let told = matches!(error, CliError::Train(TrainError::Ranks { .. }));
    match error {
        error if shared && ranks.is_first() => all_know(error),
        _ if shared || told => CliError::Elsewhere,
        error => alone_failed(ranks, error),
    }
}

/// What becomes of an error that this rank may be alone with: it says so, and none waits for it.
pub(crate) fn alone_failed(ranks: &dyn Ranks, error: CliError) -> CliError {
    if ranks.size() == 1 || matches!(error, CliError::Settled(_) | CliError::Elsewhere) {
        return error;
    }
    error.print(&format!("rank {}: ", ranks.rank()));
    // With MPI this ends the process.
    ranks.abandon();
    CliError::Elsewhere
}
