//! Ranks that are processes, on one machine or many, joined by MPI.

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives;

use super::Ranks;
use crate::error::{Result, TrainError};

/// Values in one call: MPI counts in 32 bits, and libraries change to algorithms that pipeline long before.
const BUCKET: usize = 4 << 20;

/// A rank of an MPI job.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Rank among those of the same machine.
    local: usize,
    /// Ends MPI when it is dropped; last, as the communicators must be gone by then.
    _universe: Universe,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mpi({} of {})", self.rank(), self.size())
    }
}

impl Mpi {
    /// Joins the job that a launcher (`mpirun`, `srun`) has started; without one it is a job of one rank. To be called once, on
    /// the thread that will use it.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] when it has been called before.
    pub fn join() -> Result<Self> {
        // The library ends the process by itself where it cannot start.
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| TrainError::Ranks { reason: "this process has joined an MPI job before".into() })?;
        let world = universe.world();
        let local = world.split_shared(world.rank()).rank() as usize;
        Ok(Self { world, local, _universe: universe })
    }

    /// Rank among those of the same machine: the number of the GPU that is this one's.
    pub fn local_rank(&self) -> usize {
        self.local
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        // An all-reduce in its two halves: each rank adds up one stretch, and tells the others. That the one call
        // gives the same bits everywhere the standard does not say.
        let mut whole = Vec::with_capacity(BUCKET.min(values.len()) + self.size());
        for bucket in values.chunks_mut(BUCKET) {
            let stretch = bucket.len().div_ceil(self.size());
            whole.clear();
            whole.extend_from_slice(bucket);
            whole.resize(stretch * self.size(), 0.0);
            let mut own = vec![0.0_f32; stretch];
            self.world.reduce_scatter_block_into(&whole[..], &mut own[..], SystemOperation::sum());
            self.world.all_gather_into(&own[..], &mut whole[..]);
            bucket.copy_from_slice(&whole[..bucket.len()]);
        }
        Ok(())
    }

    fn exchange(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let too_long = || TrainError::Ranks { reason: "a message of more than 2 GB".into() };
        let mut lengths = vec![0_i32; self.size()];
        let length = i32::try_from(own.len()).map_err(|_| too_long())?;
        self.world.all_gather_into(&length, &mut lengths[..]);
        let mut starts = Vec::with_capacity(lengths.len());
        let mut total = 0_i32;
        for &length in &lengths {
            starts.push(total);
            total = total.checked_add(length).ok_or_else(too_long)?;
        }
        let mut all = vec![0_u8; total as usize];
        self.world.all_gather_varcount_into(own, &mut PartitionMut::new(&mut all[..], &lengths[..], &starts[..]));
        let part = |(&start, &length): (&i32, &i32)| all[start as usize..(start + length) as usize].to_vec();
        Ok(starts.iter().zip(&lengths).map(part).collect())
    }

    fn abandon(&self) {
        if self.size() > 1 {
            self.world.abort(1);
        }
    }
}

impl Drop for Mpi {
    /// Ending MPI waits for all ranks: one that panics ends the job instead.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abandon();
        }
    }
}
