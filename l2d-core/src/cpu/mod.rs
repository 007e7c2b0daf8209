//! Decoding kernels for the CPU: packed weights, matrix products over few rows, attention over a paged cache.
//!
//! burn's CPU backend is made for large tensors: a product of one row runs on one thread and below the memory's speed, and
//! its sum is ordered otherwise than that of the same row among others. These kernels are made for decoding:
//!
//! - A product reads each weight once, in the order it lies in memory, on all threads.
//! - Every number is a sum in one fixed order, whatever the number of rows, of threads, and the instruction set: a row's
//!   result is the same bits alone, in a batch, and on another computer with fused multiply-add.
//! - Quantised weights are decoded in registers to the same f32 the checkpoint reader gives, so they lose nothing that the
//!   file had not lost.
//!
//! Nothing here knows a model. Tensors enter and leave as host data, which burn's CPU backends hand over without a copy; a
//! model on a GPU has no packed weights and never comes here.

mod attention;
mod blocks;
pub mod dense;
mod elementwise;
mod extension;
mod lanes;
mod packed;
mod pages;
mod product;
mod threads;

pub use blocks::{BlockKind, Blocks};
pub use elementwise::softmax_weights;
pub use extension::DecodeOps;
pub use packed::{LowRank, PackedFormat, PackedMatrix, WeightFormat};
pub use pages::{CacheFormat, PageShape, PagedSequence, Place, attend};
pub use threads::num_threads;
