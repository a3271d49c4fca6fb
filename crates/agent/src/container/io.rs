//! What a process reads from and writes to, and the agent's ends of it.

use std::os::fd::OwnedFd;

use nix::unistd::Pid;

/// The standard streams of a process to be created.
#[derive(Debug)]
pub enum Io {
    /// The process' ends of three streams. They are given to the container's
    /// user, so that it can open `/dev/stdout` again.
    Pipes {
        /// Becomes descriptor 0.
        stdin: OwnedFd,
        /// Becomes descriptor 1.
        stdout: OwnedFd,
        /// Becomes descriptor 2.
        stderr: OwnedFd,
    },
    /// A pseudo-terminal of the container's own devpts instance, which becomes
    /// the controlling terminal and all three streams.
    Terminal {
        /// Width in characters; with `rows` 0 the specification's
        /// `process.consoleSize` is used.
        columns: u16,
        /// Height in characters.
        rows: u16,
    },
}

impl Io {
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Io::Terminal { .. })
    }
}

/// A new process: the agent's handles on it.
///
/// The init process of a container waits to be started:
/// 1. Read `status` into [`Reports`](super::Reports) until that says ready, or to the end of the
///    file: then the set-up failed.
/// 2. Write one byte to `gate`: the process runs its program.
/// 3. Read `status` to the end of the file; [`Reports::end`](super::Reports::end) then says whether
///    `execve` failed and how.
///
/// Closing `gate` without writing makes the process exit. A further process has no gate and begins
/// with the last step. A failed process exits by itself; it must be reaped in any case.
#[derive(Debug)]
pub struct Child {
    /// In the guest's root PID namespace.
    pub pid: Pid,
    /// The master side of the terminal, for [`Io::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// Read end of the pipe with the process' reports. Blocking.
    pub status: OwnedFd,
    /// Write end of the pipe whose first byte lets the process go on. Blocking. `None` for a
    /// further process.
    pub gate: Option<OwnedFd>,
}
