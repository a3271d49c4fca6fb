//! The channel by which a machine is commanded: one request, one answer, each one packet of JSON on a
//! `SOCK_SEQPACKET` socket. A descriptor may come with a request. Whoever closes it ends the machine.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair,
};
use serde::{Deserialize, Serialize};

use crate::DeviceKind;
use crate::counts::Metrics;

/// Longest packet.
const LONGEST: usize = 16 * 1024;

/// How long a machine may take to answer: as long as it waits for its processors, and some more.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a machine can be told to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Pause,
    Resume,
    Status,
    Metrics,
    /// The guest is to make do with so many bytes of memory.
    Resize(u64),
    Memory,
    Registers,
    /// The descriptor that comes with this is a connection to the back end of one more device.
    Plug(DeviceKind),
    /// The device of that number is no more.
    Unplug(u8),
}

/// Its answers.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Running(bool),
    Metrics(Metrics),
    /// Bytes.
    Memory(u64),
    /// A line for each processor.
    Registers(Vec<String>),
    /// The number of the new device.
    Plugged(u8),
    Refused(String),
}

/// A command that a machine did not carry out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It did not answer.
    #[error("Could not reach the machine; it may have ended")]
    Channel(#[source] io::Error),
    /// It answered that it cannot.
    #[error("The machine refused: {0}")]
    Refused(String),
}

/// Both ends of a channel: that of the commander, and that of the machine.
///
/// # Errors
/// When the host gives no socket.
pub fn pair() -> io::Result<(Client, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((
        Client {
            socket: Mutex::new(ours),
        },
        theirs,
    ))
}

/// Commands one machine.
#[derive(Debug)]
pub struct Client {
    socket: Mutex<OwnedFd>,
}

impl Client {
    /// Stops the processors; returns when they stand still.
    ///
    /// # Errors
    /// [`ControlError`]; of a machine taken over by its guest all answers are possible.
    pub fn pause(&self) -> Result<(), ControlError> {
        self.order(Request::Pause)
    }

    /// Lets the processors go on.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn resume(&self) -> Result<(), ControlError> {
        self.order(Request::Resume)
    }

    /// Whether the processors run.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn is_running(&self) -> Result<bool, ControlError> {
        match self.ask(Request::Status)? {
            Answer::Running(running) => Ok(running),
            other => Err(unexpected(other)),
        }
    }

    /// What the machine has cost so far.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn metrics(&self) -> Result<Metrics, ControlError> {
        match self.ask(Request::Metrics)? {
            Answer::Metrics(metrics) => Ok(metrics),
            other => Err(unexpected(other)),
        }
    }

    /// Asks the guest to make do with `bytes` of memory, by its balloon. It follows in its own time, and
    /// takes memory back before it kills for want of it; see [`memory`](Self::memory).
    ///
    /// # Errors
    /// As [`pause`](Self::pause); [`ControlError::Refused`] of a machine without a balloon.
    pub fn resize(&self, bytes: u64) -> Result<(), ControlError> {
        self.order(Request::Resize(bytes))
    }

    /// How much memory the guest has, bytes: without what it says it has given away.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn memory(&self) -> Result<u64, ControlError> {
        match self.ask(Request::Memory)? {
            Answer::Memory(bytes) => Ok(bytes),
            other => Err(unexpected(other)),
        }
    }

    /// What each processor is about: a line for each of the first 16, with its registers. They are stopped
    /// for a moment.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn registers(&self) -> Result<Vec<String>, ControlError> {
        match self.ask(Request::Registers)? {
            Answer::Registers(lines) => Ok(lines),
            other => Err(unexpected(other)),
        }
    }

    /// Gives the machine one more device, whose back end is at the other end of `connection`. Returns its
    /// number; [`place_of`](crate::place_of) says what the guest's kernel has to be told.
    ///
    /// # Errors
    /// As [`pause`](Self::pause); [`ControlError::Refused`] when the machine has no place for one more, or
    /// the back end does not answer as it should.
    pub fn plug(&self, kind: DeviceKind, connection: OwnedFd) -> Result<u8, ControlError> {
        match self.ask_with(Request::Plug(kind), Some(connection))? {
            Answer::Plugged(number) => Ok(number),
            other => Err(unexpected(other)),
        }
    }

    /// Takes away the device of that `number`. The guest should have let go of it: its registers read as
    /// nothing afterwards. Does nothing if there is none.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub fn unplug(&self, number: u8) -> Result<(), ControlError> {
        self.order(Request::Unplug(number))
    }

    fn order(&self, request: Request) -> Result<(), ControlError> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&self, request: Request) -> Result<Answer, ControlError> {
        self.ask_with(request, None)
    }

    fn ask_with(&self, request: Request, fd: Option<OwnedFd>) -> Result<Answer, ControlError> {
        // A panic of another thread leaves at worst an answer unread, which is thrown away below.
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; LONGEST];
        while recv(&*socket, &mut bytes[..], RecvFlags::DONTWAIT).is_ok_and(|(got, _)| got > 0) {}
        send_order(&*socket, request, fd).map_err(ControlError::Channel)?;
        if !readable(&*socket, PATIENCE).map_err(ControlError::Channel)? {
            return Err(ControlError::Channel(io::ErrorKind::TimedOut.into()));
        }
        read(&*socket)
            .and_then(|answer| answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
            .map_err(ControlError::Channel)
    }
}

fn unexpected(answer: Answer) -> ControlError {
    match answer {
        Answer::Refused(reason) => ControlError::Refused(reason),
        other => ControlError::Refused(format!("it answered {other:?} to another question")),
    }
}

fn readable(socket: impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&limit))? > 0)
}

pub(crate) fn write(socket: impl AsFd, packet: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(packet)?;
    send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn send_order(socket: impl AsFd, request: Request, fd: Option<OwnedFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(&request)?;
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let packet = [IoSlice::new(&bytes)];
    sendmsg(socket, &packet, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next order and the descriptor that came with it; none at the end of the channel.
pub(crate) fn read_order(socket: impl AsFd) -> io::Result<Option<(Request, Option<OwnedFd>)>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?
    .bytes;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    match bytes.get(..got) {
        None | Some([]) => Ok(None),
        Some(packet) => Ok(Some((serde_json::from_slice(packet)?, fd))),
    }
}

/// The next packet; none at the end of the channel.
pub(crate) fn read<T: serde::de::DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<T>> {
    let mut bytes = vec![0; LONGEST];
    let (got, _) = recv(socket, &mut bytes[..], RecvFlags::empty())?;
    match bytes.get(..got) {
        None | Some([]) => Ok(None),
        Some(packet) => Ok(Some(serde_json::from_slice(packet)?)),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn request_gets_its_answer() {
        let (client, machine) = pair().unwrap();
        let machine = thread::spawn(move || {
            let request: Request = read(&machine).unwrap().unwrap();
            write(&machine, &Answer::Running(false)).unwrap();
            request
        });
        assert!(!client.is_running().unwrap());
        assert_eq!(machine.join().unwrap(), Request::Status);
    }

    #[test]
    fn answer_left_over_is_not_taken_for_the_next() {
        let (client, machine) = pair().unwrap();
        write(&machine, &Answer::Refused("stale".to_owned())).unwrap();
        let machine = thread::spawn(move || {
            let _: Option<Request> = read(&machine).unwrap();
            write(&machine, &Answer::Done).unwrap();
        });
        client.pause().unwrap();
        machine.join().unwrap();
    }

    #[test]
    fn device_comes_with_its_connection() {
        let (client, machine) = pair().unwrap();
        let machine = thread::spawn(move || {
            let order = read_order(&machine).unwrap().unwrap();
            write(&machine, &Answer::Plugged(7)).unwrap();
            order
        });
        let (connection, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(client.plug(DeviceKind::Net, connection.into()).unwrap(), 7);
        let (request, fd) = machine.join().unwrap();
        assert_eq!(request, Request::Plug(DeviceKind::Net));
        let mut carried = std::os::unix::net::UnixStream::from(fd.unwrap());
        std::io::Write::write_all(&mut carried, b"x").unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(&mut other, &mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn machine_gone_is_an_error() {
        let (client, machine) = pair().unwrap();
        drop(machine);
        assert!(matches!(client.resume(), Err(ControlError::Channel(_))));
    }

    #[test]
    fn answer_that_is_no_json_is_an_error() {
        let (client, machine) = pair().unwrap();
        let machine = thread::spawn(move || {
            let _: Option<Request> = read(&machine).unwrap();
            send(&machine, b"{{{", SendFlags::NOSIGNAL).unwrap();
            machine
        });
        assert!(client.metrics().is_err());
        machine.join().unwrap();
    }
}
