//! The golden numbers of the reference implementation, on the CPU. l2d-cli's conformance tests run the same files on every other
//! backend: each takes from here the backend (`B`, with automatic differentiation `AB`).

use l2d_testkit::{TestAutodiff as AB, TestBackend as B};

mod diffusion;
mod lm;
