//! New namespaces, and what is in them.

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use super::Missing;
use crate::orders::Orders;

/// Nobody, inside and, where root starts the cell, outside.
pub(crate) const NOBODY: u32 = 65534;

/// Files and folders that may be made.
const FILES: u32 = 4096;

/// Makes root nobody. Root's processes are not counted, and its files are its own.
pub(super) fn leave_root() -> Result<(), Missing> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let missing = Missing::of("another user");
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[]).map_err(&missing)?;
    setresgid(group, group, group).map_err(&missing)?;
    setresuid(user, user, user).map_err(&missing)?;
    // After that the kernel hides this process from itself, and the maps of a user namespace could not be written.
    prctl::set_dumpable(true).map_err(&missing)
}

/// Enters new namespaces as nobody.
pub(super) fn enter() -> Result<(), Missing> {
    let missing = Missing::of("namespaces");
    let (user, group) = (geteuid(), getegid());
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .map_err(&missing)?;
    for (file, content) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{NOBODY} {user} 1")),
        ("gid_map", format!("{NOBODY} {group} 1")),
    ] {
        std::fs::write(format!("/proc/self/{file}"), content)
            .map_err(|error| Missing { layer: "namespaces", reason: format!("/proc/self/{file}: {error}") })?;
    }
    Ok(())
}

/// Makes all that is mounted read-only: Landlock guards contents, but not the modes, times and attributes of files that
/// belong to whoever started this.
fn read_only() -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: a path that ends with a zero byte, and a structure of the size that is told; both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Makes the first process's file system and host name its own.
pub(super) fn furnish(orders: &Orders) -> Result<(), Missing> {
    // Where the machine runs out of memory all the same, what is in here goes first.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if orders.layers.namespaces {
        let missing = Missing::of("namespaces");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(&missing)?;
        read_only().map_err(&missing)?;
        match nix::unistd::sethostname("cell") {
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(missing(errno)),
        }
    }
    if orders.layers.private_folder {
        // Empty files have no size, and would fill the kernel's memory.
        let options = format!("size={},nr_inodes={FILES},mode=700", orders.limits.file_size);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), &orders.folder, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(Missing::of("the private folder"))?;
    }
    Ok(())
}
