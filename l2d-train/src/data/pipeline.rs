//! Rows are read on one thread, worked on by several, and come out in their order.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::rows::{Chunk, read};
use crate::error::Result;

/// Pieces of a file that are in memory at a time, for each thread: enough that none waits for a slow one.
const IN_FLIGHT: usize = 6;

enum Done<T> {
    Worked(Result<T>),
    Panicked(Box<dyn Any + Send>),
}

/// Hands every piece of the files to `work` on one of `threads` threads, and the results, in the order of the rows, to
/// `take`. What is in memory is bounded, whatever the size of the files. Ends early when `take` says so.
///
/// # Errors
/// The first one in the order of the rows, be it of reading, of `work` or of `take`.
pub(super) fn run<T: Send>(
    files: &[PathBuf],
    threads: usize,
    work: impl Fn(&Arc<Path>, Chunk) -> Result<T> + Sync,
    mut take: impl FnMut(T) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let threads = threads.max(1);
    let limit = IN_FLIGHT * threads;
    let work = &work;
    thread::scope(|scope| {
        // A piece needs a permit from before it is read until its result is taken.
        let (permit, returned) = sync_channel::<()>(limit);
        let (to_work, pieces) = sync_channel::<(usize, Arc<Path>, Chunk)>(limit);
        let (to_take, results) = channel::<(usize, Done<T>)>();
        let failed = to_take.clone();
        scope.spawn(move || {
            let mut number = 0;
            for file in files {
                let path: Arc<Path> = file.as_path().into();
                let outcome = read(file, &mut |chunk| {
                    let sent = permit.send(()).is_ok() && to_work.send((number, path.clone(), chunk)).is_ok();
                    number += usize::from(sent);
                    sent
                });
                if let Err(error) = outcome {
                    let _ = permit.send(()).map(|()| failed.send((number, Done::Worked(Err(error)))));
                    return;
                }
            }
        });
        let pieces = Arc::new(Mutex::new(pieces));
        for _ in 0..threads {
            let (pieces, to_take) = (pieces.clone(), to_take.clone());
            scope.spawn(move || {
                while let Some((number, path, chunk)) = next(&pieces) {
                    // A panic travels with its piece: were its thread just to end, its result would be waited for for ever.
                    let done = match catch_unwind(AssertUnwindSafe(|| work(&path, chunk))) {
                        Ok(result) => Done::Worked(result),
                        Err(panic) => Done::Panicked(panic),
                    };
                    if to_take.send((number, done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(to_take);
        drop(pieces);
        in_order(results, &returned, &mut take)
        // `returned` and `results` are dropped here, and with them every thread's reason to go on.
    })
}

fn next<T>(pieces: &Mutex<Receiver<T>>) -> Option<T> {
    pieces.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn in_order<T>(
    results: Receiver<(usize, Done<T>)>,
    returned: &Receiver<()>,
    take: &mut impl FnMut(T) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut expected = 0;
    for (number, done) in results {
        early.insert(number, done);
        while let Some(done) = early.remove(&expected) {
            expected += 1;
            // One permit was sent for every piece, so there is one to take back.
            let _ = returned.try_recv();
            match done {
                Done::Worked(result) => {
                    if take(result?)?.is_break() {
                        return Ok(());
                    }
                }
                Done::Panicked(panic) => resume_unwind(panic),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::error::TrainError;

    fn file(folder: &Path, lines: usize) -> PathBuf {
        let path = folder.join("rows.jsonl");
        let mut out = std::fs::File::create(&path).expect("created");
        for n in 0..lines {
            writeln!(out, "{{\"n\": {n}}}").expect("written");
        }
        path
    }

    fn numbers(chunk: Chunk) -> Vec<u64> {
        chunk.rows().into_iter().map(|(_, row)| row.expect("a row")["n"].as_u64().expect("a number")).collect()
    }

    #[test]
    fn rows_come_out_in_order_whatever_thread_is_slow() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [file(folder.path(), 20_000)];
        let mut seen = Vec::new();
        let slow = |_: &Arc<Path>, chunk| {
            let rows = numbers(chunk);
            if rows[0].is_multiple_of(512) {
                thread::sleep(std::time::Duration::from_millis(2));
            }
            Ok(rows)
        };
        run(&files, 3, slow, |rows| {
            seen.extend(rows);
            Ok(ControlFlow::Continue(()))
        })
        .expect("read");
        assert!(seen.iter().copied().eq(0..20_000));
    }

    #[test]
    fn the_first_error_in_the_order_of_the_rows_is_the_one_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [file(folder.path(), 5_000), folder.path().join("absent.jsonl")];
        let work = |path: &Arc<Path>, chunk| {
            let rows = numbers(chunk);
            if rows[0] == 1024 {
                // The others are done long before.
                thread::sleep(std::time::Duration::from_millis(50));
            }
            if rows[0] >= 1024 {
                return Err(TrainError::Row { path: path.to_path_buf(), row: rows[0] as usize, reason: "no".into() });
            }
            Ok(rows)
        };
        let error = run(&files, 4, work, |_| Ok(ControlFlow::Continue(()))).expect_err("refused").to_string();
        assert!(error.contains("row 1024"), "{error}");
    }

    #[test]
    fn an_early_end_and_a_panic_leave_no_thread_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [file(folder.path(), 50_000)];
        let mut taken = 0;
        run(
            &files,
            2,
            |_, chunk| Ok(numbers(chunk)),
            |_| {
                taken += 1;
                Ok(ControlFlow::Break(()))
            },
        )
        .expect("read");
        assert_eq!(taken, 1);
        let panics = catch_unwind(AssertUnwindSafe(|| {
            let work = |_: &Arc<Path>, chunk| {
                assert!(numbers(chunk)[0] != 2560, "a broken tokenizer");
                Ok(())
            };
            run(&files, 2, work, |()| Ok(ControlFlow::Continue(())))
        }));
        assert!(panics.is_err());
    }
}
