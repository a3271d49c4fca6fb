//! The kernel's newer mount interface, as far as it is needed here.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};

use crate::JailError;
use crate::capability::last_errno;

pub(crate) const NOSYMFOLLOW: MountAttrFlags = MountAttrFlags::from_bits_retain(0x0020_0000);

/// A new file system of the given type, not attached anywhere yet.
pub(crate) fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A second view of `path`, not attached anywhere yet.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

/// Adds attributes to a mount (and those below it).
pub(crate) fn restrict(
    mount: impl AsFd,
    attributes: MountAttrFlags,
    recursive: bool,
) -> Result<(), Errno> {
    change(mount, attributes, MountAttrFlags::empty(), recursive)
}

/// Takes attributes from a mount.
pub(crate) fn relax(mount: impl AsFd, attributes: MountAttrFlags) -> Result<(), Errno> {
    change(mount, MountAttrFlags::empty(), attributes, false)
}

fn change(
    mount: impl AsFd,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    recursive: bool,
) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: set.bits().into(),
        attr_clr: clear.bits().into(),
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant, `attr` is read for its own size only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// Attaches a detached mount on the file or directory that `target` refers to.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    move_mount(
        mount.as_fd(),
        c"",
        target.as_fd(),
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Keeps what is mounted from now on in this namespace.
pub(crate) fn private() -> Result<(), Errno> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
}

/// Attaches a detached mount on top of the root. Lookups of absolute paths still start beneath it.
pub(crate) fn attach_over_root(mount: impl AsFd) -> Result<(), Errno> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    attach(mount, root)
}

/// The directory of this process's open descriptors (`/proc/self/fd`), for a jailed process that
/// needs to reopen what it has open and has no `/proc`.
///
/// It belongs to a fresh procfs of the caller's pid namespace that shows processes only, and it is
/// a mount of its own: `..` leads nowhere. To be called before [`Jail::enter`](crate::Jail::enter)
/// by a process that [`spawn`](crate::spawn) placed in its own pid namespace. Threads that do not
/// share the process's descriptor table would see that of the first thread.
///
/// # Errors
/// When procfs cannot be mounted (needs CAP_SYS_ADMIN and an own mount namespace).
pub fn own_descriptors() -> Result<OwnedFd, JailError> {
    let error = |step| {
        move |source: Errno| JailError::Root {
            step,
            path: PathBuf::from("/proc/self/fd"),
            source: source.into(),
        }
    };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = filesystem("proc", &[("subset", "pid")], attributes)
        .map_err(error("mount a procfs for"))?;
    // Only what is attached can be cloned by kernels before 6.15, so attach it for a moment: on
    // top of the root, where no lookup that starts at the root comes across it.
    private().map_err(error("make mounts private for"))?;
    attach_over_root(proc.as_fd()).map_err(error("attach a procfs for"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let descriptors = open_tree(proc.as_fd(), "self/fd", flags).map_err(error("clone"))?;
    rustix::process::fchdir(proc.as_fd()).map_err(error("change to the procfs of"))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(error("detach the procfs of"))?;
    rustix::process::chdir(c"/").map_err(error("change back from the procfs of"))?;
    Ok(descriptors)
}
