//! System calls that the crates in use have no safe wrapper for.

use std::{
    ffi::{CStr, c_int, c_long, c_ulong},
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

use nix::unistd::Pid;

use super::sharing;
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// Turns the libc convention (-1 and `errno`) into a result.
fn check(result: c_long) -> io::Result<c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Gives a descriptor up to `execve`, which closes it for nothing: in a guest
/// each `close` has a price.
pub(super) fn leak(fd: OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: the descriptor is open and nobody owns it any more, so it stays
    // open for the rest of the process' life.
    unsafe { BorrowedFd::borrow_raw(fd.into_raw_fd()) }
}

/// Makes the descriptor `number` another name of `fd`, whatever it was before.
pub(super) fn renumber(fd: BorrowedFd<'_>, number: c_int) -> io::Result<BorrowedFd<'static>> {
    // SAFETY: integers only. What had the number is a copy in a process of which nothing but what
    // it is renumbered for follows; its owner's value is never dropped there.
    check(unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) }.into())?;
    // SAFETY: the descriptor was just opened, and nobody owns it.
    Ok(unsafe { BorrowedFd::borrow_raw(number) })
}

/// What [`clone3`] made.
pub(super) enum Cloned {
    /// In the new process.
    Child,
    /// In the calling process.
    Parent {
        /// The child, in the caller's PID namespace.
        pid: Pid,
        /// A handle on it, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Forks with `flags` (namespaces), optionally into a control group. Handled
/// signals are at their defaults in the child.
///
/// # Safety
/// The calling process must be single-threaded, or the child must restrict
/// itself to async-signal-safe functions.
pub(super) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    // Not in libc's size or type for both.
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    const CLONE_PIDFD: u64 = 0x1000;
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | CLONE_CLEAR_SIGHAND | CLONE_PIDFD;
    args.pidfd = std::ptr::from_mut(&mut pidfd).expose_provenance() as u64;
    args.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    }
    // SAFETY: `args` is a valid structure of the size given and outlives the
    // call; without CLONE_VM the child gets its own copy of all memory. The
    // caller answers for being single-threaded.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<libc::clone_args>(),
        )
    })?;
    match c_int::try_from(pid) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent {
                pid: Pid::from_raw(pid),
                pidfd,
            })
        }
        Err(_) => Err(io::Error::from_raw_os_error(libc::EOVERFLOW)),
    }
}

/// `mount_setattr(2)` of the mount at `path` below `dir`; of `dir` itself for
/// an empty path.
pub(super) fn mount_setattr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    propagation: MountPropagationFlags,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set.bits().into(),
        attr_clr: clear.bits().into(),
        propagation: propagation.bits().into(),
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: both pointers are valid for the call and the size is the structure's.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// `prctl(2)` with one integer argument.
pub(super) fn prctl(option: c_int, argument: c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take integers and touch no memory.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into())?;
    Ok(())
}

/// Adds one capability to the ambient set.
pub(super) fn raise_ambient(capability: u8) -> io::Result<()> {
    let raise = c_ulong::from(libc::PR_CAP_AMBIENT_RAISE.unsigned_abs());
    // SAFETY: integers only.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, c_ulong::from(capability), 0, 0) };
    check(result.into()).map(drop)
}

/// Joins the namespaces `flags` of the process behind `pidfd`, or the one that
/// a file of `/proc/<pid>/ns` stands for.
pub(super) fn setns(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into())?;
    Ok(())
}

/// Opens the slave of a terminal's master without going through the file system.
pub(super) fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    let fd = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    let fd = c_int::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the process a session keyring of its own. A kernel without keyrings
/// has nothing to separate.
pub(super) fn new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<u8>(),
        )
    };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result.map(drop),
    }
}

/// `ioprio_set(2)` of the calling process.
pub(super) fn set_io_priority(value: c_int) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// `sched_setattr(2)` of the calling process.
pub(super) fn set_scheduler(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the pointer is valid and the structure says its own size.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            0,
            std::ptr::from_ref(attributes),
            0,
        )
    })?;
    Ok(())
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)`.
pub(super) fn set_seccomp_filter(filter: &[libc::sock_filter], flags: u64) -> io::Result<()> {
    let len = u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog {
        len,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program points to `len` instructions that the kernel only reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&program),
        )
    })?;
    Ok(())
}

/// Runs another program in this process; returns only on failure.
pub(super) fn execve(
    program: &CStr,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> io::Error {
    sharing::leave_in_order();
    // SAFETY: callers pass arrays that end in a null pointer, made by
    // `program::pointers`, of strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    sharing::go_on();
    io::Error::last_os_error()
}

/// Ends the process without running anything of the parent's: no destructors,
/// no exit handlers.
pub(super) fn exit_now(code: c_int) -> ! {
    sharing::leave_in_order();
    // SAFETY: does not return and runs nothing.
    unsafe { libc::_exit(code) }
}

/// Closes the descriptors from `first` to `last`.
pub(super) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: integers only. What is closed are copies in a process of which nothing but
    // `execve` or `_exit` follows; their owners' values are never dropped here.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}
