//! A pseudo-terminal of the container's own devpts instance.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use oci_spec::runtime::Box as ConsoleSize;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, makedev, openat, openat2},
    io::Errno,
    process::ioctl_tiocsctty,
    termios::{Winsize, tcsetwinsize},
};

use super::{
    ContainerError,
    failure::{During, Step},
    mounts::Mount,
    sys,
};

const DEVPTS_MAGIC: i64 = 0x1cd1;

/// The agent's side of a new terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The master.
    pub master: OwnedFd,
    /// The slave's path inside the container.
    pub path: CString,
}

/// Width and height: the caller's, or the specification's where it names none.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    columns: u16,
    rows: u16,
}

impl Size {
    /// See [`Size`].
    pub fn new(columns: u16, rows: u16, spec: Option<ConsoleSize>) -> Result<Self, ContainerError> {
        match spec {
            Some(size) if columns == 0 && rows == 0 => {
                let number = |value: u64| {
                    u16::try_from(value).map_err(|_| {
                        ContainerError::invalid("process.consoleSize", "it is larger than 65535")
                    })
                };
                Ok(Self {
                    columns: number(size.width())?,
                    rows: number(size.height())?,
                })
            }
            _ => Ok(Self { columns, rows }),
        }
    }
}

/// Makes a terminal for a container that does not exist yet: its devpts is made
/// ahead, so that the master is at hand before the child is.
pub fn for_new_container(mounts: &mut [Mount], size: Size) -> Result<Terminal, ContainerError> {
    let devpts = mounts
        .iter_mut()
        .rev()
        .find(|mount| mount.is_new(c"devpts") && mount.destination() == c"/dev/pts")
        .ok_or_else(|| {
            ContainerError::invalid(
                "process.terminal",
                "a terminal needs a mount of type devpts at /dev/pts",
            )
        })?;
    let devpts = devpts.make_now()?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(devpts, "ptmx", flags, Mode::empty())
        .while_trying(|| "open a new terminal".to_owned())?;
    set_up(master, size)
}

/// Makes a terminal in the devpts of the container whose init process is `pid`.
/// What is at its `/dev/pts` is the container's doing, so it is looked at first.
pub fn for_container(pid: nix::unistd::Pid, size: Size) -> Result<Terminal, ContainerError> {
    let step = || "open a terminal in the container's /dev/pts".to_owned();
    let root = format!("/proc/{pid}/root");
    let root =
        openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).while_trying(step)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let node = openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), resolve).while_trying(step)?;
    let stat = fstat(&node).while_trying(step)?;
    let is_ptmx = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(5, 2)
        && fstatfs(&node).while_trying(step)?.f_type == DEVPTS_MAGIC;
    if !is_ptmx {
        return Err(ContainerError::system(step(), Errno::NOTTY));
    }
    // The very node that was looked at, whatever is at its path by now.
    let node = format!("/proc/self/fd/{}", node.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    set_up(
        openat(CWD, node, flags, Mode::empty()).while_trying(step)?,
        size,
    )
}

fn set_up(master: OwnedFd, size: Size) -> Result<Terminal, ContainerError> {
    let step = || "set a new terminal up".to_owned();
    let path = rustix::pty::ptsname(&master, Vec::new()).while_trying(step)?;
    rustix::pty::unlockpt(&master).while_trying(step)?;
    let Size { columns, rows } = size;
    if columns != 0 || rows != 0 {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).while_trying(step)?;
    }
    Ok(Terminal { master, path })
}

/// In the child: opens the slave and makes it the controlling terminal of this
/// new session.
pub fn take(master: BorrowedFd<'_>) -> Step<OwnedFd> {
    let slave =
        sys::terminal_peer(master).during(|| "open the slave of the terminal".to_owned())?;
    ioctl_tiocsctty(slave.as_fd()).during(|| "make the terminal the controlling one".to_owned())?;
    Ok(slave)
}
