//! Ranks that are threads of one process: several GPUs of one machine.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Ranks;
use crate::error::{Result, TrainError};

/// What a rank lays down.
#[derive(Debug, Clone)]
enum Laid {
    Message(Arc<[u8]>),
    Values(Arc<[f32]>),
}

/// What the threads share.
#[derive(Debug)]
struct Table {
    /// What each rank has laid down in this round.
    laid: Vec<Option<Laid>>,
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

    /// A round of values.
    fn values(&self, own: &[f32]) -> Result<Vec<Arc<[f32]>>> {
        let values = |laid| match laid {
            Laid::Values(values) => Ok(values),
            Laid::Message(_) => Err(out_of_step()),
        };
        self.round(Laid::Values(own.into()))?.into_iter().map(values).collect()
    }

    /// Lays something down, and takes what all have laid down, in the order of the ranks.
    fn round(&self, own: Laid) -> Result<Vec<Laid>> {
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
        // Each adds up one stretch and tells the others: every value is added up once, by one rank.
        let all = self.values(values)?;
        assert!(all.iter().all(|theirs| theirs.len() == values.len()), "ranks sum equally many values");
        let length = values.len().div_ceil(self.size).max(1);
        let from = (self.rank * length).min(values.len());
        let stretch = from..(from + length).min(values.len());
        let own = &mut values[stretch.clone()];
        own.fill(0.0);
        for theirs in &all {
            for (sum, value) in own.iter_mut().zip(&theirs[stretch.clone()]) {
                *sum += value;
            }
        }
        drop(all);
        let sums = self.values(own)?;
        for (part, sum) in values.chunks_mut(length).zip(sums) {
            part.copy_from_slice(&sum);
        }
        Ok(())
    }

    fn exchange(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let message = |laid| match laid {
            Laid::Message(said) => Ok(said.to_vec()),
            Laid::Values(_) => Err(out_of_step()),
        };
        self.round(Laid::Message(own.into()))?.into_iter().map(message).collect()
    }

    fn abandon(&self) {
        self.table().gone.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

/// Ranks do not all do the same.
fn out_of_step() -> TrainError {
    TrainError::Ranks { reason: "the ranks are out of step: one adds up while another speaks".into() }
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

    #[test]
    fn every_value_is_added_up_by_one_rank_in_the_order_of_the_ranks() {
        for (size, count) in [(2, 7), (3, 7), (5, 3), (4, 0), (3, 1000)] {
            let value = |rank: usize, place: usize| ((rank * 31 + place * 7) as f32).sin() * 10f32.powi(rank as i32);
            let expected: Vec<f32> =
                (0..count).map(|place| (0..size).fold(0.0, |sum, rank| sum + value(rank, place))).collect();
            let found = on_all(size, |ranks| {
                let mut values: Vec<f32> = (0..count).map(|place| value(ranks.rank(), place)).collect();
                ranks.sum(&mut values).expect("all are there");
                values
            });
            assert!(found.iter().all(|values| *values == expected), "{size} ranks, {count} values");
        }
    }

    #[test]
    fn a_rank_out_of_step_is_told() {
        let found = on_all(2, |ranks| match ranks.rank() {
            0 => ranks.wait().map_err(|error| error.to_string()),
            _ => ranks.sum(&mut [1.0]).map_err(|error| error.to_string()),
        });
        assert!(found.iter().all(|said| said.as_ref().is_err_and(|said| said.contains("out of step"))), "{found:?}");
    }
}
