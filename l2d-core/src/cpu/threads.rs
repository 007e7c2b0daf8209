//! A team of threads for work of a few microseconds.
//!
//! A forward pass of one row is a few hundred products, each shorter than it takes to wake a sleeping thread. So helpers
//! spin for a moment after their last piece of work and sleep only then, and nobody waits for a sleeper: the caller does
//! whatever pieces no helper has come for.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long a helper looks for more work before it sleeps: longer than the pauses within a forward pass, short beside the
/// time between two tokens that anybody would notice as load.
const PATIENCE: Duration = Duration::from_micros(200);

/// The team of this process.
static TEAM: OnceLock<Team> = OnceLock::new();

struct Team {
    helpers: usize,
    /// Held by whoever has given out work. Others do theirs alone.
    leader: Mutex<()>,
    /// The work at hand; written by the leader while `entered` is shut.
    job: JobCell,
    /// Counts jobs given out: a change wakes helpers.
    given: AtomicUsize,
    /// Helpers inside the job, plus `SHUT` while there is none to be entered.
    entered: AtomicUsize,
    /// The next piece.
    next: AtomicUsize,
    /// Helpers asleep.
    asleep: Mutex<usize>,
    wake: Condvar,
}

const SHUT: usize = 1 << (usize::BITS - 1);

struct JobCell(std::cell::UnsafeCell<Option<Job>>);

// SAFETY: written only by the leader while no helper is inside and none can enter (`entered == SHUT`); read only by those
// inside.
unsafe impl Sync for JobCell {}

/// A borrowed closure and the number of its pieces. The leader does not return before all helpers have left.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    pieces: usize,
}

// SAFETY: the closure is `Sync`, and the leader keeps it alive while anybody can reach it.
unsafe impl Send for Job {}

/// Threads that share the work, the caller included.
pub(super) fn count() -> usize {
    team().helpers + 1
}

/// Calls `work(0) .. work(pieces - 1)`, each once, in no order, on several threads; returns when all are done.
///
/// While another caller's work is running this one's is done by the caller alone: threads that decode side by side share
/// the machine already.
pub(super) fn run(pieces: usize, work: impl Fn(usize) + Sync) {
    let team = team();
    let lead = || match team.leader.try_lock() {
        Ok(leader) => Some(leader),
        // A piece of an earlier leader panicked; the job was shut behind it, and the team is as good as before.
        Err(TryLockError::Poisoned(leader)) => Some(leader.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let leader = (pieces > 1 && team.helpers > 0).then(lead).flatten();
    match leader {
        Some(_leader) => team.lead(pieces, &work),
        None => (0..pieces).for_each(work),
    }
}

/// Threads that compute at once: as many as `RAYON_NUM_THREADS` says, as rayon has it, else one for each core.
pub fn num_threads() -> usize {
    std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|count| count.parse().ok())
        .filter(|&count: &usize| count > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn team() -> &'static Team {
    TEAM.get_or_init(|| {
        let threads = num_threads();
        // Helpers are never joined: they hold nothing, and end with the process.
        let started = (1..threads)
            .map_while(|number| {
                let name = format!("l2d-cpu-{number}");
                std::thread::Builder::new().name(name).spawn(|| TEAM.wait().help()).ok()
            })
            .count();
        Team {
            helpers: started,
            leader: Mutex::new(()),
            job: JobCell(std::cell::UnsafeCell::new(None)),
            given: AtomicUsize::new(0),
            entered: AtomicUsize::new(SHUT),
            next: AtomicUsize::new(0),
            asleep: Mutex::new(0),
            wake: Condvar::new(),
        }
    })
}

impl Team {
    fn lead(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is changed, and nobody calls the closure after this function: `Shutter` sees to it.
        let work: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let job = Job { work, pieces };
        // SAFETY: shut, so nobody reads.
        unsafe { *self.job.0.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        // Not a store: a helper that came too late for the last job may just be counting itself in and out.
        self.entered.fetch_and(!SHUT, Ordering::Release);
        let shutter = Shutter(self);
        self.given.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence of a helper about to sleep: either it sees the new count, or we see it asleep.
        fence(Ordering::SeqCst);
        if *self.asleep.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            self.wake.notify_all();
        }
        self.work_on(job);
        drop(shutter);
    }

    /// Takes pieces until none is left.
    fn work_on(&self, job: Job) {
        // SAFETY: the leader waits for all who are inside before its closure ends.
        let work = unsafe { &*job.work };
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= job.pieces {
                return;
            }
            work(piece);
        }
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            // Enter, unless the job has been shut meanwhile.
            let before = self.entered.fetch_add(1, Ordering::Acquire);
            if before & SHUT == 0 {
                // SAFETY: inside, so the leader neither writes nor returns.
                if let Some(job) = unsafe { *self.job.0.get() } {
                    // A panic in a piece would leave the leader waiting for ever.
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work_on(job)));
                    if outcome.is_err() {
                        std::process::abort();
                    }
                }
            }
            self.entered.fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns the new count of jobs once it differs from `seen`.
    fn wait_for_job(&self, seen: usize) -> usize {
        let given = || self.given.load(Ordering::Acquire);
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if given() != seen {
                    return given();
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > PATIENCE {
                break;
            }
        }
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        *asleep += 1;
        fence(Ordering::SeqCst);
        while given() == seen {
            asleep = self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        *asleep -= 1;
        given()
    }
}

/// Shuts the job and waits until nobody is inside, also when a piece of the leader's own panics.
struct Shutter<'a>(&'a Team);

impl Drop for Shutter<'_> {
    fn drop(&mut self) {
        self.0.entered.fetch_or(SHUT, Ordering::AcqRel);
        let mut turns = 0u32;
        while self.0.entered.load(Ordering::Acquire) != SHUT {
            turns += 1;
            // The helper inside may have lost its processor to another program.
            if turns.is_multiple_of(1 << 12) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

/// A pointer that several threads write through, each to its own places.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);

// SAFETY: users write disjoint places, as they say where they do.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// From a pointer; who writes through it answers for it.
    pub(super) fn new_from(pointer: *mut T) -> Self {
        Self(pointer)
    }

    pub(super) fn get(self) -> *mut T {
        self.0
    }

    /// The places from number `offset` on.
    ///
    /// # Safety
    /// There must be so many.
    pub(super) unsafe fn at(self, offset: usize) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { self.0.add(offset) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_piece_is_done_once() {
        // Several leaders at once, long and short jobs, pauses in which helpers fall asleep.
        std::thread::scope(|scope| {
            for leader in 0..3u64 {
                scope.spawn(move || {
                    for round in 0..300 {
                        let pieces = [0, 1, 2, 7, 300][round % 5];
                        let done: Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
                        run(pieces, |piece| {
                            done[piece].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                        if round % 50 == 0 {
                            std::thread::sleep(Duration::from_micros(300 * leader));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn work_inside_work_is_done_too() {
        let total = AtomicU32::new(0);
        run(8, |_| {
            run(8, |_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 64);
    }
}
