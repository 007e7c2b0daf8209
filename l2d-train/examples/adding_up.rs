//! How fast ranks that are threads of one process add up their gradients: the measured rate of `docs/scaling.md`.
//!
//! `cargo run --release -p l2d-train --example adding_up`

use std::time::Instant;

use l2d_train::ranks::{Ranks, Threads};

/// Values of a sum, in 2^20.
const CASES: [(usize, usize); 4] = [(2, 37), (2, 73), (4, 37), (8, 37)];
/// Sums of each case, of which the median counts.
const ROUNDS: usize = 5;

fn main() -> l2d_train::Result<()> {
    for (size, millions) in CASES {
        let count = millions << 20;
        let seconds = std::thread::scope(|scope| {
            let running: Vec<_> =
                Threads::new(size).into_iter().map(|ranks| scope.spawn(move || median(&ranks, count))).collect();
            let ended = running.into_iter().map(|rank| rank.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            ended.collect::<l2d_train::Result<Vec<f64>>>()
        })?;
        let slowest = seconds.into_iter().fold(0.0, f64::max);
        let bytes = 4.0 * count as f64;
        println!("{size} ranks, {:.0} MB: {slowest:.3} s, {:.2} GB/s", bytes / 1e6, bytes / slowest / 1e9);
    }
    Ok(())
}

/// The median of one rank's seconds for a sum.
fn median(ranks: &dyn Ranks, count: usize) -> l2d_train::Result<f64> {
    let mut values = vec![ranks.rank() as f32; count];
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        ranks.wait()?;
        let start = Instant::now();
        ranks.sum(&mut values)?;
        rounds.push(start.elapsed().as_secs_f64());
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[ROUNDS / 2])
}
