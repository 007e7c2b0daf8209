//! Ranks that are threads of one process: several GPUs of one machine.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Ranks;
use crate::error::{Result, TrainError};

/// What the threads share.
#[derive(Debug)]
struct Table {
    /// What each rank has laid down in this round.
    laid: Vec<Option<Arc<[u8]>>>,
    /// Ranks that have not yet taken what was laid down.
    takers: usize,
    /// A rank that is gone.
    gone: Option<usize>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

/// A rank of several threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

impl Threads {
    /// The links of `size` threads, by rank.
    ///
    /// # Panics
    /// When `size` is 0.
    pub fn new(size: usize) -> Vec<Self> {
        assert!(size > 0, "no rank at all");
        let table = Table { laid: vec![None; size], takers: 0, gone: None };
        let shared = Arc::new(Shared { table: Mutex::new(table), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, size, shared: shared.clone() }).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` holds, or somebody is gone.
    fn when<'a>(
        &self,
        mut table: MutexGuard<'a, Table>,
        ready: impl Fn(&Table) -> bool,
    ) -> Result<MutexGuard<'a, Table>> {
        loop {
            // First: what a rank has said before it stopped is for all to hear.
            if ready(&table) {
                return Ok(table);
            }
            if let Some(rank) = table.gone {
                return Err(TrainError::Ranks { reason: format!("rank {rank} has stopped") });
            }
            table = self.shared.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lays something down, and takes what all have laid down, in the order of the ranks.
    fn round(&self, own: Arc<[u8]>) -> Result<Vec<Arc<[u8]>>> {
        // The round before must be over for everybody.
        let mut table = self.when(self.table(), |table| table.takers == 0)?;
        table.laid[self.rank] = Some(own);
        if table.laid.iter().all(Option::is_some) {
            table.takers = self.size;
            self.shared.changed.notify_all();
        }
        let mut table = self.when(table, |table| table.takers > 0)?;
        let all = table.laid.iter().flatten().cloned().collect();
        table.takers -= 1;
        if table.takers == 0 {
            table.laid.fill(None);
            self.shared.changed.notify_all();
        }
        Ok(all)
    }
}

impl Ranks for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let own: Arc<[u8]> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.round(own)?;
        values.fill(0.0);
        for theirs in all {
            assert_eq!(theirs.len(), values.len() * 4, "ranks sum equally many values");
            for (sum, value) in values.iter_mut().zip(theirs.as_chunks().0) {
                *sum += f32::from_le_bytes(*value);
            }
        }
        Ok(())
    }

    fn exchange(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.round(own.into())?.into_iter().map(|said| said.to_vec()).collect())
    }

    fn abandon(&self) {
        self.table().gone.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

impl Drop for Threads {
    /// A thread that panics takes no further part either.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `work` gives on each of `size` ranks.
    fn on_all<T: Send>(size: usize, work: impl Fn(Threads) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = Threads::new(size).into_iter().map(|ranks| scope.spawn(|| work(ranks))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }

    #[test]
    fn rounds_follow_one_another() {
        for size in [1, 2, 5] {
            let found = on_all(size, |ranks| {
                (0..200)
                    .map(|round| {
                        let mut values = [round as f32, ranks.rank() as f32];
                        ranks.sum(&mut values).expect("all are there");
                        let said = ranks.exchange(&vec![ranks.rank() as u8; ranks.rank()]).expect("all are there");
                        assert!(said.iter().enumerate().all(|(rank, said)| *said == vec![rank as u8; rank]));
                        values
                    })
                    .collect::<Vec<_>>()
            });
            let ranks: usize = (0..size).sum();
            for values in found {
                for (round, values) in values.into_iter().enumerate() {
                    assert_eq!(values, [(round * size) as f32, ranks as f32]);
                }
            }
        }
    }

    #[test]
    fn nobody_waits_for_one_who_is_gone() {
        let found = on_all(3, |ranks| {
            if ranks.rank() == 1 {
                ranks.abandon();
                return String::new();
            }
            ranks.wait().expect_err("one is gone").to_string()
        });
        assert!(found[0].contains("rank 1 has stopped") && found[0] == found[2], "{found:?}");
        let found = on_all(2, |ranks| {
            let one = ranks.rank() == 1;
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                assert!(!one, "out of memory");
                ranks.wait().expect_err("it panicked").to_string()
            }));
            done.unwrap_or_default()
        });
        assert!(found[0].contains("rank 1"), "{found:?}");
    }

    #[test]
    fn what_differs_is_named_on_every_rank() {
        let found = on_all(3, |ranks| {
            let seed = if ranks.rank() == 2 { "seed = 2" } else { "seed = 1" };
            super::super::agree(&ranks, &[("data", "same".into()), ("settings", seed.into())])
                .expect_err("unequal")
                .to_string()
        });
        assert!(found.iter().all(|said| said == &found[0]), "{found:?}");
        assert!(found[0].contains("settings") && found[0].contains("rank 2"), "{}", found[0]);
    }
}
