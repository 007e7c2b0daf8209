//! The process that builds the cell, and what happens inside.
//!
//! Three processes: the builder, which enters the namespaces and watches the clock; the first process of the new process
//! namespace, which collects what dies; and Python, which locks itself in before it begins. Each is a fork of the one before.

mod confine;
mod filter;
mod namespaces;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pipe2, setsid};

pub(crate) use self::namespaces::NOBODY;
use crate::mode::Layers;
use crate::orders::{Orders, Told};

/// What runs a program; see its own comments.
const DRIVER: &str = include_str!("../driver.py");
/// The most a program's end may be told in.
const TOLD: usize = 4096;

/// A part of the cell that could not be built.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) layer: &'static str,
    pub(crate) reason: String,
}

impl Missing {
    pub(crate) fn of(layer: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self { layer, reason: errno.desc().to_owned() }
    }
}

/// What the program that [`Launcher`](crate::Launcher) starts must do at once, before it has threads: read its orders, build the
/// cell, run Python in it, and tell what became of it.
pub fn enter() -> ExitCode {
    let told = match orders() {
        Ok(orders) => build(&orders)
            .unwrap_or_else(|missing| Told::NoLayer { layer: missing.layer.to_owned(), reason: missing.reason }),
        Err(reason) => Told::NoLayer { layer: "its orders".to_owned(), reason },
    };
    match serde_json::to_string(&told).map(|line| std::io::stderr().write_all(line.as_bytes())) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The first line of standard input, byte by byte: what follows is the driver's.
fn orders() -> Result<Orders, String> {
    let mut line = Vec::new();
    // Unbuffered: std's own handle would read ahead.
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?);
    let mut byte = [0];
    while input.read(&mut byte).map_err(|error| error.to_string())? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    serde_json::from_slice(&line).map_err(|error| error.to_string())
}

fn build(orders: &Orders) -> Result<Told, Missing> {
    let missing = Missing::of("the cell's first process");
    forget_signals().map_err(&missing)?;
    // SAFETY: closes descriptors that this process was handed by accident; nothing here owns one above the standard three.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if orders.layers != Layers::NONE {
        namespaces::leave_root()?;
    }
    if orders.layers.namespaces {
        namespaces::enter()?;
    }
    // Not before: the kernel forgets the signal with every other user.
    die_with(orders.parent).map_err(&missing)?;
    if !orders.layers.namespaces {
        // Whatever loses its parent becomes ours, to be found and ended.
        prctl::set_child_subreaper(true).map_err(&missing)?;
    }
    let (status, status_end) = pipe2(OFlag::O_CLOEXEC).map_err(&missing)?;
    let (told, told_end) = pipe2(OFlag::O_CLOEXEC).map_err(&missing)?;
    // SAFETY: this process has one thread.
    let first = match unsafe { fork() }.map_err(&missing)? {
        ForkResult::Child => {
            drop((status, told));
            first_process(orders, status_end, told_end)
        }
        ForkResult::Parent { child } => child,
    };
    drop((status_end, told_end));
    let line = wait_for(&status, orders.limits.wall, orders.limits.memory_together);
    // In a namespace of its own this ends everything in it.
    let _ = kill(first, Signal::SIGKILL);
    let _ = waitpid(first, None);
    if !orders.layers.namespaces {
        end_orphans();
    }
    let line = match line {
        Ok(line) => line,
        Err(end) => return Ok(end),
    };
    match serde_json::from_str(line.lines().next().unwrap_or_default()) {
        Ok(Told::Ended { status, .. }) => Ok(Told::Ended { status, told: drained(told) }),
        Ok(other) => Ok(other),
        Err(_) => Err(Missing { layer: "the cell's first process", reason: "it ended without a word".to_owned() }),
    }
}

/// Undoes what whoever started this had set about signals: ignored ends of children could not be waited for, and an ignored end
/// of CPU time would be none.
fn forget_signals() -> Result<(), Errno> {
    for kind in [Signal::SIGCHLD, Signal::SIGXCPU] {
        // SAFETY: the default action runs no code of ours.
        unsafe { signal(kind, SigHandler::SigDfl) }?;
    }
    SigSet::all().thread_unblock()
}

/// Ends this process when its parent ends.
fn die_with(parent: i32) -> Result<(), Errno> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have ended before the line above.
    if getppid().as_raw() == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

/// What is written to a pipe until it closes.
///
/// # Errors
/// [`Told::TimedOut`] when the time is up, [`Told::TooMuchMemory`] when the processes below this one have more in use than `memory`.
fn wait_for(pipe: &OwnedFd, limit: Duration, memory: u64) -> Result<String, Told> {
    /// How often the memory is looked at.
    const LOOK: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + limit;
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Told::TimedOut);
        }
        let timeout = PollTimeout::try_from(left.min(LOOK).as_millis().max(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if in_use_below() > memory => return Err(Told::TooMuchMemory),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            // Not the program's fault: nothing was told.
            Err(_) => return Ok(String::new()),
        }
        let mut buffer = [0; 4096];
        match nix::unistd::read(pipe, &mut buffer) {
            Ok(0) | Err(_) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Ok(count) => text.extend_from_slice(&buffer[..count]),
        }
        // A whole line is all there will be.
        if text.contains(&b'\n') {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
}

/// Bytes of memory that all processes below this one have in use.
fn in_use_below() -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    let mut open = vec![getpid().as_raw()];
    let mut pages = 0;
    while let Some(process) = open.pop() {
        // Each thread has the children that it started.
        for thread in std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            open.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
        if process != getpid().as_raw() {
            let used = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
            pages += used.split_whitespace().nth(1).and_then(|resident| resident.parse().ok()).unwrap_or(0);
        }
    }
    pages * page
}

/// What lies in a pipe now.
fn drained(pipe: OwnedFd) -> String {
    let _ = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let mut text = Vec::new();
    let mut buffer = [0; TOLD];
    while text.len() < TOLD {
        match nix::unistd::read(&pipe, &mut buffer) {
            Ok(count) if count > 0 => text.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    text.truncate(TOLD);
    String::from_utf8_lossy(&text).into_owned()
}

/// Ends processes that lost their parent to us, and theirs.
fn end_orphans() {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(_) => return,
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The first process: prepares the folder, starts Python and tells how it ended.
fn first_process(orders: &Orders, status: OwnedFd, told: OwnedFd) -> ! {
    let tell = |told: &Told| {
        let line = serde_json::to_string(told).unwrap_or_default() + "\n";
        let _ = nix::unistd::write(&status, line.as_bytes());
    };
    let leave = |missing: Missing| -> ! {
        tell(&Told::NoLayer { layer: missing.layer.to_owned(), reason: missing.reason });
        exit(1)
    };
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // The builder may have ended before the line above: then nobody reads what is told, and nobody watches the clock.
    let mut pipe = [PollFd::new(status.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut pipe, PollTimeout::ZERO).is_err()
        || pipe[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR))
    {
        exit(1);
    }
    let _ = setsid();
    let own = getpid();
    if let Err(missing) = namespaces::furnish(orders) {
        leave(missing);
    }
    // SAFETY: this process has one thread, as it is a fork of one that has.
    let python = match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            // Without a namespace nothing else ends it with the first process.
            let _ = prctl::set_pdeathsig(Signal::SIGKILL);
            if getppid() != own {
                exit(1);
            }
            let missing = become_python(orders, &told);
            leave(missing)
        }
        Ok(ForkResult::Parent { child }) => child,
        Err(errno) => leave(Missing { layer: "the cell's first process", reason: errno.desc().to_owned() }),
    };
    drop(told);
    loop {
        let mut status = 0;
        // SAFETY: waits for any child and writes one integer.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if ended == python.as_raw() {
            tell(&Told::Ended { status, told: String::new() });
            exit(0);
        }
        if ended < 0 && Errno::last() != Errno::EINTR {
            exit(1);
        }
    }
}

/// Locks this process in and becomes Python. Returns only where that fails.
fn become_python(orders: &Orders, told: &OwnedFd) -> Missing {
    match locked_in(orders, told) {
        Ok(never) => match never {},
        Err(missing) => missing,
    }
}

fn locked_in(orders: &Orders, told: &OwnedFd) -> Result<std::convert::Infallible, Missing> {
    let own = Missing::of("Python's process");
    let text = |text: &[u8]| {
        CString::new(text).map_err(|_| Missing { layer: "Python's process", reason: "a zero byte".to_owned() })
    };
    let folder = orders.folder.as_os_str().as_bytes();
    let python = text(orders.python.as_os_str().as_bytes())?;
    let mut arguments = vec![python.clone()];
    for argument in ["-I", "-B", "-c", DRIVER] {
        arguments.push(text(argument.as_bytes())?);
    }
    let mut environment = Vec::new();
    for variable in ["PATH=/usr/bin:/bin", "LANG=C.UTF-8", "LC_ALL=C.UTF-8"] {
        environment.push(text(variable.as_bytes())?);
    }
    for name in ["HOME=", "TMPDIR="] {
        environment.push(text(&[name.as_bytes(), folder].concat())?);
    }
    nix::unistd::chdir(&orders.folder).map_err(&own)?;
    // SAFETY: the descriptors are open; both standard streams and the third become Python's.
    let moved = unsafe { libc::dup2(1, 2) >= 0 && libc::dup2(told.as_raw_fd(), 3) >= 0 };
    if !moved {
        return Err(own(Errno::last()));
    }
    confine::limit(orders)?;
    if orders.layers.landlock {
        confine::landlock(orders)?;
    }
    if orders.layers.seccomp {
        filter::apply(orders.layers.namespaces)?;
    }
    nix::unistd::execve(&python, &arguments, &environment).map_err(Missing::of("Python"))
}

/// Ends this process and nothing else: no handlers, no buffers of the one it is a fork of.
fn exit(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}
