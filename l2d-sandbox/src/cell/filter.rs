//! The filter on system calls: what no solution of a benchmark needs and an attack would.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter, sock_filter,
};

use super::Missing;

/// Calls that are refused whatever their arguments.
const REFUSED: &[libc::c_long] = &[
    // Sockets, loopback and local ones included.
    libc::SYS_socket,
    libc::SYS_socketpair,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_setpriority,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
    // File systems and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    // Memory that no limit of a process counts.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    // Kernel interfaces with a history.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    // The machine itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Calls that change modes, owners, times and attributes of files, which Landlock does not guard: refused where the file system
/// is not mounted read-only.
const ATTRIBUTES: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
];

/// The kinds of namespaces that `clone` could make.
const NEW_NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The first number that had no call when this list was made (Linux 6.10; the numbers are the same on every machine from 424 on).
/// It and all above are unknown here: what later kernels add, and the x32 interface of the old calls, whose numbers begin at 2³⁰.
const UNKNOWN: u32 = 463;

/// Filters this process's calls from now on; `read_only` where nothing but its own folder is mounted for writing.
pub(super) fn apply(read_only: bool) -> Result<(), Missing> {
    let missing = |reason: String| Missing { layer: "seccomp", reason };
    let programs = programs(read_only).map_err(|error| missing(error.to_string()))?;
    for program in &programs {
        apply_filter(program).map_err(|error| missing(error.to_string()))?;
    }
    Ok(())
}

fn programs(read_only: bool) -> Result<[BpfProgram; 3], seccompiler::Error> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let attributes: &[libc::c_long] = if read_only { &[] } else { ATTRIBUTES };
    for &call in REFUSED.iter().chain(attributes) {
        refused.insert(call, Vec::new());
    }
    // Limits of another process.
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?;
    let other = vec![SeccompRule::new(vec![other])?];
    refused.insert(libc::SYS_prlimit64, other);
    let mut namespaces = Vec::new();
    for &kind in NEW_NAMESPACES {
        let kind = kind as u32 as u64;
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(kind), kind)?;
        namespaces.push(SeccompRule::new(vec![condition])?);
    }
    refused.insert(libc::SYS_clone, namespaces);
    // Its flags lie in memory, where a filter cannot look. Told that there is no such call, the C library uses `clone`.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let program = |rules, errno: i32| -> Result<BpfProgram, seccompiler::Error> {
        let arch = std::env::consts::ARCH.try_into()?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?;
        Ok(filter.try_into()?)
    };
    Ok([newer(), program(unknown, libc::ENOSYS)?, program(refused, libc::EPERM)?])
}

/// Tells of calls from [`UNKNOWN`] on that there are none.
fn newer() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let answer = |k| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    vec![
        // The call's number is the first thing in what a filter is given.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, UNKNOWN),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ]
}
