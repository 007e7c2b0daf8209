//! The outside of the cell: giving orders, listening, judging.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, chown, geteuid};

use crate::cell::NOBODY;
use crate::error::{Error, Result};
use crate::mode::{Launcher, Layers, Limits, Mode};
use crate::orders::{Orders, Told};
use crate::outcome::{Outcome, Verdict};
use crate::python::{Python, barred_to_others};

/// Building the cell and taking it down may take this long beside the program's own time.
const GRACE: Duration = Duration::from_secs(10);
/// The most time that a program can be given.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The time of the first program, which tries the cell out.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most the builder may have to say.
const TOLD: usize = 64 << 10;

/// What a program inside must not be able to do; each line says what it could.
const PROBE: &str = r#"
import os
def could(what, attempt):
    try:
        attempt()
    except OSError:
        return
    raise AssertionError(what)
import socket
could("open a socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
could("read the system's users", lambda: open("/etc/passwd").read())
could("list the system's processes", lambda: os.listdir("/proc"))
could("write outside its folder", lambda: open("/tmp/cell-probe", "w"))
could("change files of others", lambda: os.chmod("/", 0o755))
could("enter new namespaces", lambda: os.unshare(0x10000000) if hasattr(os, "unshare") else (_ for _ in ()).throw(OSError))
assert set(os.environ) <= {"PATH", "LANG", "LC_ALL", "HOME", "TMPDIR"}, "see the environment"
assert os.getuid() != 0, "be root"
assert os.getpid() < 100, "see other processes"
with open("own", "w") as file:
    file.write("x")
assert open("own").read() == "x"
"#;

/// A cell, ready to be built for every program.
#[derive(Debug)]
pub struct Sandbox {
    limits: Limits,
    launcher: Launcher,
    layers: Layers,
    python: Python,
}

/// One run, before it is judged.
struct Run {
    told: Told,
    output: String,
    wall: Duration,
    cpu: Duration,
}

impl Sandbox {
    /// Finds Python (`python`, else the first that can be used in PATH or of the system) and tries the cell with a program that
    /// attempts what must not be possible.
    ///
    /// # Errors
    /// [`Error::Limits`] for more than a day; [`Error::Folder`] where nobody cannot reach the temporary folder; [`Error::Python`] where there
    /// is none; [`Error::Launch`]; under [`Mode::Required`] [`Error::Layer`] with what is missing
    /// and what helps, and [`Error::Leak`] where the cell does not hold.
    pub fn new(mode: Mode, limits: Limits, launcher: Launcher, python: Option<&Path>) -> Result<Self> {
        if limits.wall.max(limits.cpu) > LONGEST {
            return Err(Error::Limits(LONGEST));
        }
        if geteuid().is_root() && mode != Mode::Off {
            let temporary = std::env::temp_dir();
            if let Some(barred) = barred_to_others(&temporary, 0o001) {
                return Err(Error::Folder { temporary, barred });
            }
        }
        sweep(&std::env::temp_dir());
        let python = Python::find(python)?;
        let layers = if mode == Mode::Off { Layers::NONE } else { Layers::ALL };
        let mut sandbox = Self { limits, launcher, layers, python };
        loop {
            let missing = match sandbox.try_out() {
                Err(Error::Layer { layer, .. }) if mode == Mode::BestEffort && sandbox.without(&layer) => continue,
                result => result,
            };
            missing?;
            return Ok(sandbox);
        }
    }

    /// The parts of the cell that are built.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The Python that runs, as it is started: in a virtual environment its link.
    pub fn python(&self) -> &Path {
        &self.python.executable
    }

    /// The version of the Python that runs.
    pub fn python_version(&self) -> &str {
        &self.python.version
    }

    /// Runs a program; see the crate's documentation for what a pass means. Several threads may call this at once.
    ///
    /// # Errors
    /// [`Error::Launch`], [`Error::Layer`] or [`Error::Broken`] where there was no run. That the program fails is an outcome.
    pub fn run(&self, program: &str) -> Result<Outcome> {
        self.run_within(program, &self.limits)
    }

    fn run_within(&self, program: &str, limits: &Limits) -> Result<Outcome> {
        let (run, secret) = self.once(program, limits)?;
        let verdict = judge(&run, &secret, limits);
        if verdict != Verdict::Passed {
            return Ok(Outcome { verdict, wall: run.wall, cpu: run.cpu, output: run.output });
        }
        let canary = fresh()?;
        // An error that needs no name, which a program could have made its own.
        let (again, secret) = self.once(&format!("{program}\n\n{{}}['{canary}']\n"), limits)?;
        // More than once where a fork of the program came to the end as well.
        let expected = format!("KeyError: '{canary}'");
        let verdict = match judge(&again, &secret, limits) {
            Verdict::Passed => Verdict::Forged,
            Verdict::Failed { error } if error.split('!').all(|told| told == expected) => Verdict::Passed,
            // It is not the same every time.
            other => other,
        };
        let (wall, cpu) = (run.wall + again.wall, run.cpu + again.cpu);
        Ok(Outcome { verdict, wall, cpu, output: run.output })
    }

    /// Takes a layer away; `false` where it is no layer that one could do without.
    fn without(&mut self, layer: &str) -> bool {
        let place = match layer {
            // The folder's file system is mounted in a namespace.
            "namespaces" => {
                self.layers.private_folder = false;
                &mut self.layers.namespaces
            }
            "the private folder" => &mut self.layers.private_folder,
            "Landlock" => &mut self.layers.landlock,
            "seccomp" => &mut self.layers.seccomp,
            _ => return false,
        };
        std::mem::take(place)
    }

    fn try_out(&self) -> Result<()> {
        let program = if self.layers == Layers::ALL { PROBE } else { "" };
        // However busy the machine is: this is not about time.
        let patient = Limits { wall: PATIENCE, cpu: PATIENCE, ..self.limits.clone() };
        let outcome = self.run_within(program, &patient)?;
        match outcome.verdict {
            Verdict::Passed => Ok(()),
            Verdict::Failed { error } if error.starts_with("AssertionError: ") => {
                Err(Error::Leak(error.trim_start_matches("AssertionError: ").to_owned()))
            }
            other => Err(Error::Broken(format!("a first program ended with {other:?}: {}", outcome.output.trim()))),
        }
    }

    /// Builds the cell around one run, and gives the secret by which the program's end is told.
    fn once(&self, program: &str, limits: &Limits) -> Result<(Run, String)> {
        let io = |what| move |source| Error::Io { what, source };
        let secret = fresh()?;
        let folder = tempfile::Builder::new().prefix(FOLDER).tempdir().map_err(io("making a folder"))?;
        if geteuid().is_root() && self.layers != Layers::NONE {
            chown(folder.path(), Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))
                .map_err(|errno| Error::Io { what: "giving a folder away", source: errno.into() })?;
        }
        let orders = Orders {
            layers: self.layers,
            limits: limits.clone(),
            python: self.python.executable.clone(),
            readable: self.python.readable(),
            folder: folder.path().to_path_buf(),
            parent: std::process::id() as i32,
        };
        let mut input = tempfile::tempfile().map_err(io("making a file"))?;
        let line = serde_json::to_string(&orders).map_err(|error| Error::Broken(error.to_string()))?;
        write!(input, "{line}\n{secret}\n{program}").and_then(|()| input.rewind()).map_err(io("writing a program"))?;

        let start = Instant::now();
        let launched = Command::new(&self.launcher.program)
            .args(&self.launcher.args)
            .env_clear()
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = launched.map_err(|source| Error::Launch { program: self.launcher.program.clone(), source })?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::Broken("its output is not to be had".to_owned()));
        };
        let mut output = Kept::new(stdout, limits.output);
        let mut said = Kept::new(stderr, TOLD);
        let heard = listen(&mut [&mut output, &mut said], start + limits.wall + GRACE);
        if !heard {
            // The builder watches the clock itself; one that does not is ended, and the cell with it.
            let _ = child.kill();
        }
        let (status, cpu) = wait(child.id());
        let wall = start.elapsed();
        let said = said.text();
        let told = match serde_json::from_str(&said) {
            Ok(Told::NoLayer { layer, reason }) => {
                let remedy = remedy(&layer);
                return Err(Error::Layer { layer, reason, remedy });
            }
            Ok(Told::NoPython(reason)) => return Err(Error::Python(reason)),
            Ok(told) => told,
            // Nothing inside can end the builder or hold it up: neither is the program's failure.
            Err(_) if !heard => return Err(Error::Broken("it does not answer".to_owned())),
            Err(_) if libc::WIFSIGNALED(status) => {
                let signal = libc::WTERMSIG(status);
                return Err(Error::Broken(format!("signal {signal} ended it; is the machine out of memory?")));
            }
            Err(_) => {
                let said = if said.is_empty() { "it said nothing" } else { said.trim() };
                return Err(Error::Broken(format!("{}: {said}", self.launcher.program.display())));
            }
        };
        Ok((Run { told, output: output.text(), wall, cpu }, secret))
    }
}

/// What folders of cells begin with.
const FOLDER: &str = "l2d-cell-";

/// Takes away the empty folders of cells that were killed together with the program around them, once they are older than any run.
fn sweep(temporary: &Path) {
    const OLD: Duration = LONGEST.saturating_mul(2);
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(FOLDER));
        let age = entry.metadata().ok().and_then(|about| about.modified().ok()?.elapsed().ok());
        if ours && age.is_some_and(|age| age > OLD) {
            // Refused where it is not empty, or another's.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// What helps where a layer is missing.
fn remedy(layer: &str) -> &'static str {
    match layer {
        "namespaces" | "the private folder" => {
            "let users make user namespaces (sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile), or ask for best-effort"
        }
        "Landlock" => "use a kernel of 6.2 or newer with Landlock enabled, or ask for best-effort",
        "seccomp" => "use a kernel with seccomp filters, or ask for best-effort",
        "Python" => "check that this user can start it",
        _ => "see what the system said",
    }
}

fn judge(run: &Run, secret: &str, limits: &Limits) -> Verdict {
    let (status, told) = match &run.told {
        Told::Ended { status, told } => (status, told),
        Told::TooMuchMemory => return Verdict::OutOfMemory,
        _ => return Verdict::TimedOut,
    };
    // More than once where a fork of the program came to the end as well.
    let ends = told.len() / secret.len();
    if ends > 0 && *told == secret.repeat(ends) && libc::WIFEXITED(*status) && libc::WEXITSTATUS(*status) == 0 {
        return Verdict::Passed;
    }
    if libc::WIFSIGNALED(*status) {
        return match libc::WTERMSIG(*status) {
            libc::SIGXCPU => Verdict::TimedOut,
            // One that does not listen to that is ended a second later.
            libc::SIGKILL if run.cpu > limits.cpu => Verdict::TimedOut,
            signal => {
                let name = nix::sys::signal::Signal::try_from(signal);
                Verdict::Failed { error: name.map_or_else(|_| format!("signal {signal}"), |name| name.to_string()) }
            }
        };
    }
    match (told.strip_prefix('!'), libc::WEXITSTATUS(*status)) {
        (Some("MemoryError"), _) => Verdict::OutOfMemory,
        (Some(error), _) => Verdict::Failed { error: error.to_owned() },
        (None, code) if told.is_empty() => Verdict::Failed { error: format!("it left with exit code {code}") },
        // Only a program that tries to be taken for a driver says anything else.
        (None, _) => Verdict::Forged,
    }
}

/// 128 random bits in hexadecimal.
fn fresh() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Broken(format!("no randomness: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The end of what a pipe gives, however much that is.
struct Kept<R> {
    pipe: R,
    bytes: Vec<u8>,
    limit: usize,
    open: bool,
}

impl<R> Kept<R> {
    fn new(pipe: R, limit: usize) -> Self {
        Self { pipe, bytes: Vec::new(), limit, open: true }
    }

    fn text(&self) -> String {
        let from = self.bytes.len().saturating_sub(self.limit);
        String::from_utf8_lossy(&self.bytes[from..]).into_owned()
    }
}

trait Listened {
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
    fn take(&mut self);
}

impl<R: Read + AsFd> Listened for Kept<R> {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.open.then(|| self.pipe.as_fd())
    }

    fn take(&mut self) {
        let mut buffer = [0; 16 << 10];
        match self.pipe.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(count) => {
                self.bytes.extend_from_slice(&buffer[..count]);
                if self.bytes.len() > 2 * self.limit.max(buffer.len()) {
                    self.bytes.drain(..self.bytes.len() - self.limit);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => self.open = false,
        }
    }
}

/// Takes what pipes give until all are closed; `false` when the time is up before.
fn listen(pipes: &mut [&mut dyn Listened], deadline: Instant) -> bool {
    loop {
        let open: Vec<usize> = (0..pipes.len()).filter(|&i| pipes[i].descriptor().is_some()).collect();
        if open.is_empty() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut polled: Vec<PollFd<'_>> =
            open.iter().filter_map(|&i| pipes[i].descriptor()).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
        let ready: Vec<bool> = match poll(&mut polled, timeout) {
            Ok(0) => return false,
            Ok(_) => polled.iter().map(|fd| fd.any().unwrap_or(false)).collect(),
            Err(_) => continue,
        };
        for (&place, ready) in open.iter().zip(ready) {
            if ready {
                pipes[place].take();
            }
        }
    }
}

/// Waits for a child, and gives how it ended and the CPU time of it and of all that it and its children waited for.
fn wait(child: u32) -> (i32, Duration) {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid one.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: waits for a child of this process that nothing else waits for, and writes to two places of ours.
    while unsafe { libc::wait4(child as i32, &raw mut status, 0, &raw mut usage) } < 0
        && nix::errno::Errno::last() == nix::errno::Errno::EINTR
    {}
    let time =
        |time: libc::timeval| Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64);
    (status, time(usage.ru_utime) + time(usage.ru_stime))
}
