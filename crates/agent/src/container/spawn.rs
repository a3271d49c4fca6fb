//! Cloning the child, and the pipes between it and the agent.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::unistd::Pid;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{
    Child, ContainerError,
    failure::During,
    init::Channel,
    sys::{self, Cloned},
};

/// Both pipes, all four ends.
#[derive(Debug)]
pub struct Pipes {
    status: OwnedFd,
    gate: OwnedFd,
    /// The child's ends.
    pub child: Channel,
}

impl Pipes {
    /// Two new pipes.
    pub fn new() -> Result<Self, ContainerError> {
        let ((status, child_status), (child_gate, gate)) = (pipe()?, pipe()?);
        Ok(Self {
            status,
            gate,
            child: Channel {
                status: child_status,
                gate: child_gate,
            },
        })
    }

    /// Closes the child's ends and hands the agent's over.
    pub fn into_child(self, pid: Pid, terminal: Option<OwnedFd>) -> Child {
        Child {
            pid,
            terminal,
            status: self.status,
            gate: Some(self.gate),
        }
    }
}

/// A pipe between the agent and a process: read end, write end.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), ContainerError> {
    pipe_with(PipeFlags::CLOEXEC)
        .while_trying(|| "make a pipe to the container's process".to_owned())
}

/// Clones a child into a control group; it runs `child` and nothing else. If
/// that returns, the process ends.
pub fn spawn(
    flags: u64,
    cgroup: BorrowedFd<'_>,
    child: impl FnOnce(),
) -> Result<(Pid, OwnedFd), ContainerError> {
    // SAFETY: the agent is single-threaded (see the module's documentation).
    let cloned = unsafe { sys::clone3(flags, Some(cgroup)) }
        .while_trying(|| "clone the container's process".to_owned())?;
    match cloned {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => {
            child();
            sys::exit_now(1)
        }
    }
}
