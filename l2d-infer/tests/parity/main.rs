//! The golden numbers of the reference implementation, on the CPU. l2d-cli's conformance tests run the same files on every other
//! backend: each takes from here the backend (`B`) and whether our CPU kernels belong to it.

use l2d_testkit::TestBackend as B;

const CPU: bool = true;

mod decode;
mod trajectories;
