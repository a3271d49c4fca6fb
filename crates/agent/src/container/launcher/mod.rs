//! The launcher: a copy of the agent that starts further processes of one container.
//!
//! A process is started in a container by a child that joins its namespaces. Were each of these a copy
//! of the agent, each would cost both of them a page fault for every page they go on to touch. So one
//! copy is made at the first request and kept; its children share its memory ([`sharing`](super::sharing))
//! until they run their program. They are the agent's children, not the launcher's.
//!
//! The launcher belongs to the agent: its namespaces, control group and credentials are the agent's, and
//! nothing in the container can see or stop it. Only its bounding set of capabilities is already that
//! of the processes it starts, because taking capabilities out takes a system call for each.
//!
//! On the socket: the agent sends a length (4 bytes) and an OCI process object of that length, with
//! descriptors: status pipe, control group, and three streams or a terminal's master. The launcher
//! answers with an [`Answer`] and, when it can take the next request, with one byte. It ends when the
//! agent closes the socket.

mod serve;

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::unistd::Pid;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType, recv, send, sendmsg, socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
    process::{Signal, pidfd_send_signal},
};

use super::{
    Container, ContainerError,
    failure::During,
    sys::{self, Cloned},
};

/// How long the launcher may take for what it does itself, which does not depend on the container.
const PATIENCE: Duration = Duration::from_secs(10);

/// Descriptors of a request: status, control group, at most three streams.
const MAX_FDS: usize = 5;

/// What the launcher sends when it has started a process, or failed to.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// In the agent's PID namespace; 0 for a failure.
    pid: i32,
    /// Where it failed.
    step: Step,
    /// The kernel's answer.
    errno: i32,
}

/// What the launcher does for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Join,
    Clone,
    Understand,
}

/// The agent's end of a launcher.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
    pub pidfd: OwnedFd,
    /// Whether it is known to be free, without a look.
    free: bool,
    /// The capabilities its processes can have, bit n for number n.
    pub bounding: u64,
}

/// What a launcher is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Free,
    /// Its last child has not yet run its program.
    Busy,
    Gone,
}

/// Why no process was started.
#[derive(Debug)]
pub enum LaunchError {
    /// The launcher is no more, which another one may repair.
    Gone(io::Error),
    /// It was refused.
    Refused(ContainerError),
}

impl Launcher {
    /// Starts one for `container`, whose processes can have the capabilities `bounding`.
    ///
    /// # Errors
    /// Out of memory, processes or descriptors.
    pub fn new(container: &Container, bounding: u64) -> Result<Self, ContainerError> {
        let step = || "start the launcher of the container's processes".to_owned();
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .while_trying(step)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(PATIENCE)).while_trying(step)?;
        }
        // SAFETY: the agent is single-threaded (see the module's documentation).
        match unsafe { sys::clone3(0, None) }.while_trying(step)? {
            Cloned::Parent { pidfd, .. } => Ok(Self {
                socket,
                pidfd,
                free: true,
                bounding,
            }),
            Cloned::Child => serve::serve(container, bounding, theirs.as_fd()),
        }
    }

    /// Starts a process and returns its PID; does not wait for its program.
    ///
    /// To be called when the launcher is free. `io` are three streams, or the master of a terminal.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(
        &mut self,
        process: &[u8],
        status: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        io: &[BorrowedFd<'_>],
    ) -> Result<Pid, LaunchError> {
        let answer = self
            .send(process, status, cgroup, io)
            .and_then(|()| self.answer())
            .map_err(|error| self.give_up(error))?;
        if answer.pid > 0 {
            self.free = false;
            return Ok(Pid::from_raw(answer.pid));
        }
        let step = match answer.step {
            Step::Join => "join the container's PID namespace",
            Step::Clone => "clone the container's process",
            Step::Understand => "read the process once more",
        };
        Err(LaunchError::Refused(ContainerError::system(
            step,
            io::Error::from_raw_os_error(answer.errno),
        )))
    }

    fn send(
        &self,
        process: &[u8],
        status: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        io: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let length = u32::try_from(process.len()).map_err(|_| Errno::TOOBIG)?;
        let length = length.to_ne_bytes();
        let fds: Vec<_> = [status, cgroup].iter().chain(io).copied().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::INVAL.into());
        }
        let parts = [IoSlice::new(&length), IoSlice::new(process)];
        let sent = sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
        // A stream's first part takes the length along in any case: it is the first to be copied.
        let mut rest = process
            .get(sent.saturating_sub(length.len())..)
            .unwrap_or_default();
        while !rest.is_empty() {
            let sent = send(&self.socket, rest, SendFlags::NOSIGNAL)?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    fn answer(&self) -> io::Result<Answer> {
        let mut bytes = [0; Answer::BYTES];
        let mut have = 0;
        while let Some(room) = bytes.get_mut(have..).filter(|room| !room.is_empty()) {
            match recv(&self.socket, room, RecvFlags::empty()) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, _)) => have += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Answer::decode(bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What did not answer shall not do so later.
    fn give_up(&self, error: io::Error) -> LaunchError {
        // It may be dead.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        LaunchError::Gone(error)
    }

    /// Whether it can take a request.
    pub fn state(&mut self) -> State {
        if self.free {
            return State::Free;
        }
        match recv(&self.socket, &mut [0_u8; 1], RecvFlags::DONTWAIT) {
            Ok((1, _)) => {
                self.free = true;
                State::Free
            }
            Err(Errno::AGAIN | Errno::INTR) => State::Busy,
            Ok(_) | Err(_) => State::Gone,
        }
    }
}

impl Answer {
    const BYTES: usize = 12;

    fn started(pid: Pid) -> Self {
        Self {
            pid: pid.as_raw(),
            step: Step::Clone,
            errno: 0,
        }
    }

    fn failed(step: Step, error: &io::Error) -> Self {
        Self {
            pid: 0,
            step,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    fn encode(self) -> [u8; Self::BYTES] {
        let step = match self.step {
            Step::Join => 0_i32,
            Step::Clone => 1,
            Step::Understand => 2,
        };
        let mut bytes = [0; Self::BYTES];
        let words = [self.pid, step, self.errno].map(i32::to_ne_bytes);
        for (to, from) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from);
        }
        bytes
    }

    fn decode(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<4>();
        let [pid, step, errno] = *words else {
            return None;
        };
        Some(Self {
            pid: i32::from_ne_bytes(pid),
            step: match i32::from_ne_bytes(step) {
                0 => Step::Join,
                1 => Step::Clone,
                2 => Step::Understand,
                _ => return None,
            },
            errno: i32::from_ne_bytes(errno),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_survives_its_encoding() {
        for step in [Step::Join, Step::Clone, Step::Understand] {
            let answer = Answer::failed(step, &Errno::NOMEM.into());

            let again = Answer::decode(answer.encode()).unwrap();

            assert_eq!(
                (again.pid, again.step, again.errno),
                (0, step, libc::ENOMEM)
            );
        }
    }
}
