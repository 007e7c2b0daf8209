//! Memory that is used again: a training step takes and returns a gigabyte in pieces of a few megabytes, and asking the
//! system for it every time costs more than some of the arithmetic.

use l2d_core::cpu::dense::Right;

/// Free pieces of memory.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// With the step in which each was last in use.
    free: Vec<(u64, Vec<f32>)>,
    step: u64,
    /// For operands of products that are packed, used and forgotten.
    pub(super) right: Right,
}

impl Buffers {
    /// `len` numbers of whatever value: for results that are written, not added to.
    pub(super) fn take(&mut self, len: usize) -> Vec<f32> {
        let fits = |capacity: usize| capacity >= len && capacity <= 2 * len.max(1024);
        let best = (0..self.free.len())
            .filter(|&i| fits(self.free[i].1.capacity()))
            .min_by_key(|&i| self.free[i].1.capacity());
        match best {
            Some(i) => {
                let mut buffer = self.free.swap_remove(i).1;
                buffer.resize(len, 0.0);
                buffer
            }
            None => vec![0.0; len],
        }
    }

    /// `len` zeros.
    pub(super) fn zeros(&mut self, len: usize) -> Vec<f32> {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Gives a piece back.
    pub(super) fn give(&mut self, buffer: Vec<f32>) {
        if buffer.capacity() > 0 {
            self.free.push((self.step, buffer));
        }
    }

    /// Call after each step: what two steps in a row had no use for goes back to the system.
    pub(super) fn end_step(&mut self) {
        let step = self.step;
        self.free.retain(|&(used, _)| used + 1 >= step);
        self.step += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_goes_when_it_is_not_needed() {
        let mut buffers = Buffers::default();
        let first = buffers.take(100_000);
        let address = first.as_ptr();
        buffers.give(first);
        let again = buffers.take(90_000);
        assert_eq!((again.as_ptr(), again.len()), (address, 90_000));
        buffers.give(again);
        let small = buffers.take(100);
        assert_ne!(small.as_ptr(), address, "a small request leaves a large piece alone");
        for _ in 0..3 {
            buffers.end_step();
        }
        assert!(buffers.free.is_empty());
    }
}
