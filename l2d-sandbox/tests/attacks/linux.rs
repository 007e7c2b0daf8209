//! What a hostile program tries, and what becomes of it.

#[path = "../common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{failure, launcher, passes, run, sandbox};
use l2d_sandbox::{Limits, Mode, Sandbox, Verdict};
use libtest_mimic::Failed;

type Test = Result<(), Failed>;

/// Defines `refused(attempt)`: the attempt must fail with an error of the operating system.
const REFUSED: &str = "
def refused(attempt):
    try:
        got = attempt()
    except OSError:
        return
    raise AssertionError(f'not refused: {got!r}')
";

/// Defines `call(number, *arguments)`: a system call by its number, which must be refused: with EPERM, as unknown (ENOSYS), or as no user of
/// this namespace (EINVAL).
const CALL: &str = "
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
intel = platform.machine() == 'x86_64'
def call(numbers, *arguments):
    got = libc.syscall(numbers[0] if intel else numbers[1], *arguments)
    assert got == -1 and ctypes.get_errno() in (1, 22, 38), (numbers, got, ctypes.get_errno())
";

fn bounded(limits: Limits, program: &str, longest: Duration) -> Verdict {
    let cell = sandbox(limits);
    let start = Instant::now();
    let verdict = cell.run(program).unwrap_or_else(|error| panic!("{error}")).verdict;
    assert!(start.elapsed() < longest, "{:?}", start.elapsed());
    verdict
}

fn a_fork_bomb_stays_small() -> Test {
    let program = "
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except BlockingIOError:
    pass
assert 0 < made < 40, made
while True:
    try:
        os.fork()
    except BlockingIOError:
        pass
";
    assert_eq!(bounded(Limits::default(), program, Duration::from_secs(25)), Verdict::TimedOut);
    Ok(())
}

fn an_endless_loop_ends() -> Test {
    assert_eq!(bounded(Limits::default(), "while True: pass", Duration::from_secs(25)), Verdict::TimedOut);
    let short = Limits { wall: Duration::from_secs(24), cpu: Duration::from_secs(1), ..Limits::default() };
    assert_eq!(bounded(short.clone(), "while True: pass", Duration::from_secs(25)), Verdict::TimedOut);
    let deaf = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass";
    assert_eq!(bounded(short, deaf, Duration::from_secs(25)), Verdict::TimedOut);
    Ok(())
}

fn an_endless_sleep_ends() -> Test {
    let program = "
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(1000)
";
    assert_eq!(bounded(Limits::default(), program, Duration::from_secs(25)), Verdict::TimedOut);
    Ok(())
}

fn a_hundred_gigabytes_are_refused() -> Test {
    assert_eq!(run("x = bytearray(100 << 30)").verdict, Verdict::OutOfMemory);
    assert_eq!(run("x = [0]\nwhile True: x += x").verdict, Verdict::OutOfMemory);
    Ok(())
}

fn many_processes_share_one_bound_of_memory() -> Test {
    let program = "
import os, time
for number in range(6):
    if os.fork() == 0:
        held = bytearray(b'x') * (50 << 20)
        time.sleep(60)
time.sleep(60)
";
    let limits = Limits { memory_together: 200 << 20, wall: Duration::from_secs(20), ..Limits::default() };
    assert_eq!(bounded(limits.clone(), program, Duration::from_secs(15)), Verdict::OutOfMemory);
    // Orphans count as well, and what stays below does not.
    let orphans = program.replace("if os.fork() == 0:", "if os.fork() == 0 and (os.fork() == 0 or os._exit(0)):");
    assert_eq!(bounded(limits.clone(), &orphans, Duration::from_secs(15)), Verdict::OutOfMemory);
    let few = "import os, time\nif os.fork() == 0:\n    held = bytearray(b'x') * (50 << 20)\n    time.sleep(0.3)\n    os._exit(0)\nos.wait()";
    assert_eq!(bounded(limits, few, Duration::from_secs(15)), Verdict::Passed);
    Ok(())
}

fn folders_of_killed_cells_are_swept() -> Test {
    let make = |name: &str, days: u64| {
        let folder = std::env::temp_dir().join(format!("l2d-cell-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("made");
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        std::fs::File::open(&folder).expect("opened").set_modified(long_ago).expect("dated");
        folder
    };
    let (old, new) = (make("old", 3), make("new", 1));
    drop(sandbox(Limits::default()));
    assert!(!old.exists() && new.exists());
    std::fs::remove_dir(new).expect("removed");
    Ok(())
}

fn endless_output_is_cut() -> Test {
    let cell = sandbox(Limits::default());
    let outcome = cell.run("while True: print('x' * 100000)")?;
    assert_eq!(outcome.verdict, Verdict::TimedOut);
    assert!(outcome.output.len() <= Limits::default().output, "{}", outcome.output.len());
    // Much output is no failure.
    assert_eq!(run("for _ in range(300): print('x' * 10000)").verdict, Verdict::Passed);
    Ok(())
}

fn files_and_folders_stay_small() -> Test {
    passes(
        "
import errno
def fill(name):
    with open(name, 'wb') as file:
        while True:
            file.write(b'x' * (1 << 20))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
written = 0
try:
    fill('one')
except OSError as error:
    assert error.errno in (errno.EFBIG, errno.ENOSPC), error
else:
    raise AssertionError
try:
    for name in range(10):
        fill(str(name))
except OSError as error:
    assert error.errno in (errno.EFBIG, errno.ENOSPC), error
import os
for name in os.listdir('.'):
    os.remove(name)
try:
    for name in range(100000):
        open(f'empty{name}', 'w').close()
except OSError as error:
    assert error.errno == errno.ENOSPC and name < 10000, (name, error)
else:
    raise AssertionError
",
    );
    Ok(())
}

fn the_home_folder_and_the_system_are_closed() -> Test {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let here = std::env::current_dir().expect("a folder");
    passes(&format!(
        "{REFUSED}
import os
for path in ['/etc/passwd', '/etc/shadow', '/proc/self/status', '/proc/1/environ', '/proc/cpuinfo', '/sys/kernel/notes',
             '/dev/mem', '/dev/kmsg', {here:?} + '/Cargo.toml']:
    refused(lambda: open(path).read())
for path in ['/', {home:?}, {here:?}, '/proc', '/sys', '/dev', '/tmp', '/var', '/etc']:
    refused(lambda: os.listdir(path))
"
    ));
    Ok(())
}

fn the_environment_is_empty() -> Test {
    // SAFETY: set before any other thread of this test is there to read it.
    unsafe { std::env::set_var("SECRET_TOKEN", "hunter2") };
    passes(
        "
import os
assert set(os.environ) <= {'PATH', 'LANG', 'LC_ALL', 'HOME', 'TMPDIR'}, dict(os.environ)
assert os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']
import sys
assert not any('SECRET' in argument for argument in sys.argv)
",
    );
    Ok(())
}

fn nothing_outside_is_written() -> Test {
    let victim = tempfile::NamedTempFile::new()?;
    std::fs::write(victim.path(), "untouched")?;
    // Even one that belongs to whoever the program runs as.
    if nix::unistd::geteuid().is_root() {
        let nobody = (nix::unistd::Uid::from_raw(65534), nix::unistd::Gid::from_raw(65534));
        nix::unistd::chown(victim.path(), Some(nobody.0), Some(nobody.1))?;
    }
    let path = victim.path().display();
    passes(&format!(
        "{REFUSED}
import os
refused(lambda: open('{path}', 'w'))
refused(lambda: open('{path}', 'a'))
refused(lambda: os.truncate('{path}', 0))
refused(lambda: os.open('{path}', os.O_RDONLY | os.O_TRUNC))
refused(lambda: os.remove('{path}'))
refused(lambda: os.rename('{path}', 'mine'))
refused(lambda: os.link('{path}', 'mine'))
refused(lambda: os.mkdir('/tmp/made-by-a-candidate'))
refused(lambda: open('/tmp/made-by-a-candidate', 'w'))
refused(lambda: os.chmod('/usr', 0o777))
refused(lambda: os.chmod('{path}', 0o777))
refused(lambda: os.utime('{path}', (0, 0)))
refused(lambda: os.setxattr('{path}', 'user.mine', b'x'))
"
    ));
    assert_eq!(std::fs::read_to_string(victim.path())?, "untouched");
    assert!(!PathBuf::from("/tmp/made-by-a-candidate").exists());
    Ok(())
}

fn links_lead_nowhere() -> Test {
    let outside = tempfile::tempdir()?;
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "untouched")?;
    std::fs::set_permissions(outside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let path = outside.path().display();
    passes(&format!(
        "{REFUSED}
import os, shutil
os.symlink('{path}', 'out')
refused(lambda: os.listdir('out'))
refused(lambda: open('out/victim').read())
refused(lambda: open('out/new', 'w'))
# Whoever cleans up must not follow it: the folder itself becomes a link where that is allowed.
here = os.getcwd()
os.makedirs('deep/er')
os.chmod('deep', 0)
try:
    os.chdir('/')
    os.rmdir(here)
except OSError:
    pass
try:
    os.symlink('{path}', here)
except OSError:
    pass
"
    ));
    assert_eq!(std::fs::read_to_string(&victim)?, "untouched");
    Ok(())
}

fn nothing_is_left_in_the_temporary_folder() -> Test {
    let cells = || {
        let entries = std::fs::read_dir(std::env::temp_dir()).expect("a folder").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("l2d-cell-")).collect::<Vec<_>>()
    };
    let folder =
        failure("import os\nos.makedirs('a/b'); os.chmod('a', 0)\nraise ValueError(os.path.basename(os.getcwd()))");
    let folder = folder.strip_prefix("ValueError: ").expect("its name").to_owned();
    assert!(folder.starts_with("l2d-cell-"), "{folder}");
    assert!(!cells().contains(&folder));
    Ok(())
}

fn sockets_are_refused() -> Test {
    passes(&format!(
        "{REFUSED}
import socket
for family in ['AF_INET', 'AF_INET6', 'AF_UNIX', 'AF_NETLINK', 'AF_PACKET']:
    for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW]:
        refused(lambda: socket.socket(getattr(socket, family), kind))
refused(socket.socketpair)
refused(lambda: socket.create_connection(('127.0.0.1', 22), 1))
"
    ));
    Ok(())
}

fn other_processes_are_out_of_reach() -> Test {
    let parent = std::process::id();
    passes(&format!(
        "{REFUSED}{CALL}
import os, signal
refused(lambda: os.kill({parent}, signal.SIGKILL))
refused(lambda: os.kill({parent}, 0))
import resource
refused(lambda: resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)))
refused(lambda: os.setpriority(os.PRIO_PROCESS, 0, 5))
refused(lambda: os.kill(os.getppid() + 1000, 0))
# The first process of the cell cannot be killed from inside.
try:
    os.kill(1, signal.SIGKILL)
except OSError:
    pass
call((101, 117), 16, {parent}, 0, 0)        # ptrace attach
call((101, 117), 0, 0, 0, 0)                # ptrace traceme
call((310, 270), {parent}, 0, 0, 0, 0, 0)   # process_vm_readv
call((434, 434), {parent}, 0)               # pidfd_open
assert os.getpid() < 100
"
    ));
    // This very process is still there to say so.
    Ok(())
}

fn nothing_survives_the_end() -> Test {
    let mark = format!("survivor-{}", std::process::id());
    let program = format!(
        "
import os, signal, sys, time
for _ in range(2):
    if os.fork():
        break
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
else:
    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', '{mark}'])
time.sleep(0.3)
LAST
"
    );
    let alive = || {
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| String::from_utf8_lossy(line).contains(&mark)).count()
    };
    let short = sandbox(Limits { wall: Duration::from_secs(2), ..Limits::default() });
    assert_eq!(short.run(&program.replace("LAST", "time.sleep(100)"))?.verdict, Verdict::TimedOut);
    assert_eq!(alive(), 0);
    assert_eq!(run(&program.replace("LAST", "pass")).verdict, Verdict::Passed);
    assert_eq!(alive(), 0);
    Ok(())
}

/// Whatever it tries, a program whose tests fail does not pass.
fn success_cannot_be_forged() -> Test {
    let attempts = [
        "print('passed'); print('True')",
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os\nfor fd in range(256):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
        "import os\nfor fd in range(256):\n    try: os.close(fd)\n    except OSError: pass\nos._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0); exit()",
        "import builtins; builtins.AssertionError = type('E', (Exception,), {}); builtins.exec = lambda *a: None",
        "import sys; sys.modules['__main__']._main = lambda: None; sys.modules['__main__']._tell = lambda *a: None",
        "import sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()):\n        if isinstance(v, (bytes, list)) and v:\n            import os; os.write(3, v if isinstance(v, bytes) else v[0]); os._exit(0)\n    f = f.f_back",
        "import gc, os\nfor o in gc.get_objects():\n    if isinstance(o, list) and len(o) == 1 and isinstance(o[0], bytes) and len(o[0]) == 32:\n        os.write(3, o[0]); os._exit(0)",
        "import sys\nsys.settrace(lambda *a: None); sys.setprofile(lambda *a: None); sys.excepthook = lambda *a: None",
        "import threading, os\nthreading.Timer(0.1, os._exit, [0]).start()\nimport time; time.sleep(1)",
        "import os\nif os.fork() == 0:\n    os._exit(0)\nos.wait()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os, sys\nos.write(1, b'x'); os.lseek(0, 0, 0); secret = os.read(0, 100)\nos.write(3, secret); os._exit(0)",
        // The secret does lie on the driver's stack of operands. Taken from there it is seen to be taken.
        "import gc, os, sys\nf = sys._getframe()\nwhile f:\n    for o in gc.get_referents(f):\n        if isinstance(o, bytes) and len(o) == 32:\n            os.write(3, o); os._exit(0)\n    f = f.f_back",
        "class A(str): pass\nraise AssertionError",
    ];
    let cell = sandbox(Limits { wall: Duration::from_secs(10), ..Limits::default() });
    for attempt in attempts {
        let outcome = cell.run(&format!("{attempt}\nassert False, 'the test'\n"))?;
        match outcome.verdict {
            Verdict::Failed { .. } | Verdict::Forged => {}
            other => panic!("{other:?}: {attempt}"),
        }
    }
    Ok(())
}

fn a_secret_that_was_found_is_a_forgery() -> Test {
    let program = "
import gc, os, sys
frame = sys._getframe()
while frame:
    for found in gc.get_referents(frame):
        if isinstance(found, bytes) and len(found) == 32:
            os.write(3, found)
            os._exit(0)
    frame = frame.f_back
assert False
";
    let verdict = run(program).verdict;
    assert!(matches!(verdict, Verdict::Forged | Verdict::Failed { .. }), "{verdict:?}");
    let verdict = run("import os\nos.write(3, b'0' * 32)\nos._exit(0)").verdict;
    assert_eq!(verdict, Verdict::Forged, "a wrong secret");
    Ok(())
}

fn unpickling_runs_nothing_outside() -> Test {
    let victim = tempfile::tempdir()?;
    let path = victim.path().join("made");
    let program = format!(
        "
import os, pickle
class Trick:
    def __reduce__(self):
        return os.system, ('touch {0} /tmp/made-by-a-pickle; cat /etc/passwd',)
print(pickle.loads(pickle.dumps(Trick())))
class Leave:
    def __reduce__(self):
        return os._exit, (0,)
pickle.loads(pickle.dumps(Leave()))
",
        path.display()
    );
    let outcome = run(&program);
    assert!(matches!(outcome.verdict, Verdict::Failed { .. }), "{outcome:?}");
    assert!(!outcome.output.contains("root:"), "{}", outcome.output);
    assert!(!path.exists() && !PathBuf::from("/tmp/made-by-a-pickle").exists());
    Ok(())
}

fn the_kernels_doors_are_shut() -> Test {
    passes(&format!(
        "{CALL}
import os
call((165, 40), b'none', b'/tmp', b'tmpfs', 0, 0)   # mount
call((155, 41), b'.', b'.')                         # pivot_root
call((161, 51), b'.')                               # chroot
call((272, 97), 0x10000000)                         # unshare, a user namespace
call((272, 97), 0x40000000)                         # unshare, a network namespace
call((56, 220), 0x10000011, 0, 0, 0, 0)             # clone with a user namespace
call((435, 435), 0, 0)                              # clone3
call((308, 268), 0, 0)                              # setns
call((321, 280), 0, 0, 0)                           # bpf
call((298, 241), 0, 0, -1, -1, 0)                   # perf_event_open
call((250, 219), 0, 0, 0, 0, 0)                     # keyctl
call((248, 217), b'user', b'a', b'b', 1, -1)        # add_key
call((425, 425), 1, 0)                              # io_uring_setup
call((323, 282), 0)                                 # userfaultfd
call((41, 198), 2, 1, 0)                            # socket
call((29, 194), 0, 1 << 30, 0o1600)                 # shmget
call((319, 279), b'x', 0)                           # memfd_create
call((467, 467), 0, b'/', 0, 0, 0)                  # open_tree_attr, which is newer than the list
if intel:
    for number in (41, 101, 165, 425):              # the same by their x32 numbers
        call((number | 0x40000000,) * 2, 0, 0, 0, 0)
call((105, 146), 0)                                 # setuid(0)
",
    ));
    Ok(())
}

fn a_crash_is_a_failure() -> Test {
    assert_eq!(failure("import ctypes\nctypes.string_at(0)"), "SIGSEGV");
    assert_eq!(failure("import os\nos.abort()"), "SIGABRT");
    // No core is dumped anywhere.
    passes("import resource\nassert resource.getrlimit(resource.RLIMIT_CORE) == (1, 1)");
    Ok(())
}

fn descriptors_of_the_parent_do_not_come_along() -> Test {
    // Without close-on-exec, as a careless library would leave it.
    let file = std::fs::File::open("/etc/passwd")?;
    // SAFETY: duplicates an open descriptor; the copy lives until the test ends.
    let open = unsafe { nix::libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), 200) };
    assert_eq!(open, 200);
    passes(
        "
import os
for fd in range(4, 128):
    try:
        os.fstat(fd)
    except OSError:
        continue
    raise AssertionError(fd)
try:
    os.fstat(200)
except OSError:
    pass
else:
    raise AssertionError
assert os.read(0, 10) == b''
",
    );
    Ok(())
}

/// Ends when whoever started it ends, however suddenly.
fn a_cell_ends_with_its_parent() -> Test {
    let mark = format!("left-behind-{}", std::process::id());
    let alive = || {
        let processes = std::fs::read_dir("/proc").expect("processes").flatten();
        let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| String::from_utf8_lossy(line).ends_with(&format!("{mark}\0"))).count()
    };
    let mut parent = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "in_a_process_that_is_killed"])
        .env("L2D_SANDBOX_MARK", &mark)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    while alive() == 0 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(alive() > 0, "it never ran");
    parent.kill()?;
    parent.wait()?;
    let begun = Instant::now();
    while alive() > 0 && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(alive(), 0);
    Ok(())
}

/// Run by the test before, to be killed.
fn in_a_process_that_is_killed() -> Test {
    let Ok(mark) = std::env::var("L2D_SANDBOX_MARK") else { return Ok(()) };
    let limits = Limits { wall: Duration::from_secs(60), ..Limits::default() };
    sandbox(limits).run(&format!(
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(50)', '{mark}'])"
    ))?;
    Ok(())
}

/// Ignored signals and limits that were there before change nothing for the better or the worse.
fn what_was_set_before_does_no_harm() -> Test {
    let inside = std::process::Command::new("/bin/sh")
        .args(["-c", "trap '' CHLD XCPU; ulimit -n 64; exec \"$0\" --exact in_a_process_where_much_was_set"])
        .arg(std::env::current_exe()?)
        .env("L2D_SANDBOX_SET", "1")
        .output()?;
    let said = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&inside.stderr));
    Ok(())
}

/// Run by the test before.
fn in_a_process_where_much_was_set() -> Test {
    if std::env::var_os("L2D_SANDBOX_SET").is_none() {
        return Ok(());
    }
    passes("import resource\nassert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 64)");
    let short = Limits { wall: Duration::from_secs(24), cpu: Duration::from_secs(1), ..Limits::default() };
    assert_eq!(bounded(short, "while True: pass", Duration::from_secs(20)), Verdict::TimedOut);
    Ok(())
}

/// In a process without the right to make namespaces nothing runs, unless one asks for what there is.
fn without_namespaces_nothing_runs() -> Test {
    let inside = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "in_a_process_without_namespaces"])
        .env("L2D_SANDBOX_NO_NAMESPACES", "1")
        .output()?;
    let said = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&inside.stderr));
    Ok(())
}

/// Run by the test before, alone in its process: the filter stays for good.
fn in_a_process_without_namespaces() -> Test {
    if std::env::var_os("L2D_SANDBOX_NO_NAMESPACES").is_none() {
        return Ok(());
    }
    let rules = [(nix::libc::SYS_unshare, Vec::new())].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that has filters");
    let (allow, refuse) = (seccompiler::SeccompAction::Allow, seccompiler::SeccompAction::Errno(1));
    let filter = seccompiler::SeccompFilter::new(rules, allow, refuse, arch).expect("a filter");
    let filter: seccompiler::BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&filter).expect("applied");

    let error = Sandbox::new(Mode::Required, Limits::default(), launcher(), None).expect_err("no namespaces");
    let said = error.to_string();
    assert!(said.contains("namespaces is not to be had here") && said.contains("best-effort"), "{said}");
    let cell = Sandbox::new(Mode::BestEffort, Limits::default(), launcher(), None)?;
    let layers = cell.layers();
    assert!(!layers.namespaces && !layers.private_folder && layers.landlock && layers.seccomp, "{layers:?}");
    assert_eq!(cell.run("assert 1 + 1 == 2")?.verdict, Verdict::Passed);
    let read = cell.run("open('/etc/passwd')")?.verdict;
    assert!(matches!(read, Verdict::Failed { .. }), "{read:?}");
    Ok(())
}

pub(crate) fn main() -> ExitCode {
    common::main(vec![
        ("a_fork_bomb_stays_small", a_fork_bomb_stays_small),
        ("an_endless_loop_ends", an_endless_loop_ends),
        ("an_endless_sleep_ends", an_endless_sleep_ends),
        ("a_hundred_gigabytes_are_refused", a_hundred_gigabytes_are_refused),
        ("many_processes_share_one_bound_of_memory", many_processes_share_one_bound_of_memory),
        ("folders_of_killed_cells_are_swept", folders_of_killed_cells_are_swept),
        ("endless_output_is_cut", endless_output_is_cut),
        ("files_and_folders_stay_small", files_and_folders_stay_small),
        ("the_home_folder_and_the_system_are_closed", the_home_folder_and_the_system_are_closed),
        ("the_environment_is_empty", the_environment_is_empty),
        ("nothing_outside_is_written", nothing_outside_is_written),
        ("links_lead_nowhere", links_lead_nowhere),
        ("nothing_is_left_in_the_temporary_folder", nothing_is_left_in_the_temporary_folder),
        ("sockets_are_refused", sockets_are_refused),
        ("other_processes_are_out_of_reach", other_processes_are_out_of_reach),
        ("nothing_survives_the_end", nothing_survives_the_end),
        ("success_cannot_be_forged", success_cannot_be_forged),
        ("a_secret_that_was_found_is_a_forgery", a_secret_that_was_found_is_a_forgery),
        ("unpickling_runs_nothing_outside", unpickling_runs_nothing_outside),
        ("the_kernels_doors_are_shut", the_kernels_doors_are_shut),
        ("a_crash_is_a_failure", a_crash_is_a_failure),
        ("descriptors_of_the_parent_do_not_come_along", descriptors_of_the_parent_do_not_come_along),
        ("a_cell_ends_with_its_parent", a_cell_ends_with_its_parent),
        ("in_a_process_that_is_killed", in_a_process_that_is_killed),
        ("what_was_set_before_does_no_harm", what_was_set_before_does_no_harm),
        ("in_a_process_where_much_was_set", in_a_process_where_much_was_set),
        ("without_namespaces_nothing_runs", without_namespaces_nothing_runs),
        ("in_a_process_without_namespaces", in_a_process_without_namespaces),
    ])
}
