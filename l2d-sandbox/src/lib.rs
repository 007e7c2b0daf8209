//! A cell for Python programs that a language model wrote: they are judged by whether they run to their end, and can do nothing
//! else.
//!
//! [`Sandbox::run`] starts the calling program's own binary again (a [`Launcher`] says how); that process calls [`enter`], which
//! builds the cell and starts Python in it. From outside in:
//!
//! - new user, process, network, mount, IPC and host-name namespaces; as root it becomes nobody first;
//! - a memory file system of its own as the only place to write;
//! - limits on address space, CPU and wall-clock seconds, processes, open files, file sizes; no core files;
//! - Landlock: the system's Python may be read, the own folder written, nothing else is there;
//! - no new privileges, and a seccomp filter without sockets, ptrace, mounts, bpf, keyrings, io_uring and new namespaces;
//! - a clean environment and `python3 -I -B`;
//! - at the end, or when the time is up, the process namespace is killed with everything in it.
//!
//! # What a pass means
//!
//! The driver that runs a program tells its end by a secret number that is fresh for every run; printing, exiting or raising
//! tell nothing. A program that was seen to pass runs once more with an error after its end, which must be seen too: a program
//! that found the secret and leaves early passes twice, and that is [`Verdict::Forged`].
//!
//! Program and tests share one interpreter, as in every harness for these benchmarks. So a program that is written against its
//! tests can still make them pass (an object that is equal to everything, for one), and so can one that is written against this
//! very driver: it can read the secret out of the interpreter's frames and tell the second run from the first by its own
//! constants. Nothing here tells such an answer from a right one.
//!
//! Only Linux has these means; elsewhere [`Sandbox::new`] says so.

mod error;
mod mode;
mod outcome;

#[cfg(target_os = "linux")]
mod cell;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod orders;
#[cfg(target_os = "linux")]
mod python;
#[cfg(target_os = "linux")]
mod sandbox;

#[cfg(target_os = "linux")]
pub use cell::enter;
#[cfg(not(target_os = "linux"))]
pub use elsewhere::{Sandbox, enter};
pub use error::{Error, Result};
pub use mode::{Launcher, Layers, Limits, Mode};
pub use outcome::{Outcome, Verdict};
#[cfg(target_os = "linux")]
pub use sandbox::Sandbox;
