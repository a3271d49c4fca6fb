//! The stand-in: a host process an engine takes for a process of the container.
//!
//! Engines want a PID. They wait for it, signal it, look at its exit status and read what it holds
//! open. The container's process is in another kernel, so a small process on the host stands in for
//! it: it ends exactly as that one ends, passes on the signals it gets, and holds the streams.
//!
//! A stand-in speaks to its sandbox over one end of a `SOCK_SEQPACKET` pair, its life line: each side
//! sees at once that the other is gone. The messages are defined here; the stand-in's own part is a
//! hat of the executable, because it must be small.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::request::Request;
use crate::watched::watch;

/// Instead of the path of a FIFO: the stream is one of the descriptors that came with the stand-in.
pub const ATTACHED: &str = "attached:";

/// A stand-in's first message once it is set up; in its place comes what went wrong.
pub const READY: &[u8] = &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Length of every message on a life line, bytes.
const MESSAGE: usize = 12;

/// Most bytes of an attachment's description.
const DESCRIPTION: usize = 4096;

/// The life line and three streams.
const MAX_FDS: usize = 4;

/// What a stand-in tells the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It got this signal, which is meant for the container's process.
    Signal(u32),
    /// Its terminal has a new size.
    Resize {
        /// In characters.
        columns: u32,
        /// In characters.
        rows: u32,
    },
}

/// How the container's process ended, and the stand-in shall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(u32),
    /// By this signal.
    Signal(u32),
}

fn message(kind: u32, first: u32, second: u32) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    for (place, word) in bytes.chunks_exact_mut(4).zip([kind, first, second]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn words(bytes: &[u8]) -> Option<[u32; 3]> {
    let bytes: &[u8; MESSAGE] = bytes.try_into().ok()?;
    let mut words = bytes
        .chunks_exact(4)
        .map(|word| word.try_into().map(u32::from_le_bytes).unwrap_or_default());
    Some([words.next()?, words.next()?, words.next()?])
}

impl Report {
    /// As it travels.
    #[must_use]
    pub fn encode(self) -> [u8; MESSAGE] {
        match self {
            Self::Signal(number) => message(1, number, 0),
            Self::Resize { columns, rows } => message(2, columns, rows),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match words(bytes)? {
            [1, number, _] => Some(Self::Signal(number)),
            [2, columns, rows] => Some(Self::Resize { columns, rows }),
            _ => None,
        }
    }
}

impl End {
    fn encode(self) -> [u8; MESSAGE] {
        match self {
            Self::Code(code) => message(1, code, 0),
            Self::Signal(number) => message(2, number, 0),
        }
    }

    /// What was received, if it is an end.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match words(bytes)? {
            [1, code, _] => Some(Self::Code(code)),
            [2, number, _] => Some(Self::Signal(number)),
            _ => None,
        }
    }
}

/// Both ends of a life line: the sandbox's, the stand-in's.
///
/// # Errors
/// Out of descriptors.
pub fn life_line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    Ok(socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

/// What a front end hands over before it asks for a process: who stands in for it, and its streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The container.
    pub id: String,
    /// The process; empty for the container's init process.
    pub exec_id: String,
    /// PID of the stand-in.
    pub pid: u32,
    /// One terminal instead of up to three streams.
    pub terminal: bool,
    /// Which of standard input, output and error follow.
    pub streams: [bool; 3],
}

/// Streams and life line of one process.
#[derive(Debug)]
pub struct Attachment {
    /// PID of the stand-in.
    pub pid: u32,
    /// The sandbox's end.
    pub life: OwnedFd,
    /// Standard input, output and error; of a terminal only the first two, both the terminal.
    pub streams: [Option<OwnedFd>; 3],
}

/// What travels over the socket for stand-ins, with its descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Message {
    /// A stand-in: its life line and then the streams the description names (one for a terminal).
    Attach(Description),
    /// A further container for the machine: the lock of its directory, and the read end of the
    /// command's lifeline.
    Join(Box<Request>),
}

/// Sends a message to the sandbox and waits until it has taken it.
///
/// # Errors
/// When the sandbox is gone or does not take it.
pub fn hand_over(socket: &OwnedFd, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if bytes.len() > DESCRIPTION || !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
    let mut answer = [0; DESCRIPTION];
    let (count, _) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
    match answer.get(..count) {
        Some([0]) => Ok(()),
        None | Some([]) => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(reason) => Err(io::Error::other(
            String::from_utf8_lossy(reason).into_owned(),
        )),
    }
}

/// Takes one message from a connection made by [`hand_over`], gives it to `take` and tells what came
/// of it. Returns what `take` did, once the peer has closed the connection: by then it has asked for the
/// process it handed a stand-in over for, or never will. `None` if `take` refused.
///
/// # Errors
/// When the peer sent something else or nothing, or is gone.
pub async fn receive<T, E: std::error::Error>(
    connection: OwnedFd,
    take: impl FnOnce(Message, Vec<OwnedFd>) -> Result<T, E>,
) -> io::Result<Option<T>> {
    let connection = watch(connection)?;
    let (message, fds) = loop {
        let mut ready = connection.readable().await?;
        if let Ok(received) = ready.try_io(|socket| receive_now(socket.as_fd())) {
            break received?;
        }
    };
    let taken = take(message, fds).map_err(|error| crate::error::chain(&error));
    let answer = taken
        .as_ref()
        .map_or_else(|reason| reason.as_bytes(), |_| &[0]);
    let answer = answer.get(..DESCRIPTION).unwrap_or(answer);
    rustix::net::send(connection.get_ref(), answer, SendFlags::NOSIGNAL)?;
    loop {
        let mut ready = connection.readable().await?;
        let end =
            ready.try_io(|socket| Ok(rustix::net::recv(socket, &mut [0; 1], RecvFlags::DONTWAIT)?));
        if end.is_ok() {
            return Ok(taken.ok());
        }
    }
}

fn receive_now(socket: BorrowedFd<'_>) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; DESCRIPTION];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        flags,
    )?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let text = bytes.get(..received.bytes).unwrap_or_default();
    Ok((serde_json::from_slice(text)?, fds))
}

/// Puts a stand-in and its descriptors together; `None` if one is missing.
#[must_use]
pub fn assemble(description: &Description, fds: Vec<OwnedFd>) -> Option<Attachment> {
    let mut fds = fds.into_iter();
    let life = fds.next()?;
    let streams = if description.terminal {
        let terminal = fds.next()?;
        [Some(terminal.try_clone().ok()?), Some(terminal), None]
    } else {
        let mut streams = [None, None, None];
        for (place, wanted) in streams.iter_mut().zip(description.streams) {
            if wanted {
                *place = Some(fds.next()?);
            }
        }
        streams
    };
    Some(Attachment {
        pid: description.pid,
        life,
        streams,
    })
}

/// The sandbox's end of a life line.
#[derive(Debug)]
pub struct Life(AsyncFd<OwnedFd>);

impl Life {
    /// Must be called within the runtime.
    ///
    /// # Errors
    /// When the descriptor cannot be waited on.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(watch(fd)?))
    }

    /// The next report; `None` once the stand-in is gone.
    pub async fn report(&self) -> Option<Report> {
        loop {
            let mut ready = self.0.readable().await.ok()?;
            let mut bytes = [0; MESSAGE];
            let received = ready
                .try_io(|socket| Ok(rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT)?));
            match received {
                Ok(Ok((0, _)) | Err(_)) => return None,
                Ok(Ok(_)) => {
                    if let Some(report) = Report::decode(&bytes) {
                        return Some(report);
                    }
                }
                Err(_would_block) => {}
            }
        }
    }

    /// Lets the stand-in end.
    pub fn end(&self, end: End) {
        // It may have been killed in the meantime.
        let _ = rustix::net::send(
            self.0.get_ref(),
            &end.encode(),
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn message_sent_is_the_message_read_and_other_bytes_are_none() {
        for report in [
            Report::Signal(15),
            Report::Resize {
                columns: 80,
                rows: 24,
            },
        ] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        for end in [End::Code(3), End::Signal(9)] {
            assert_eq!(End::decode(&end.encode()), Some(end));
        }
        for bytes in [&[][..], &[0; MESSAGE], &[1; 5], &[9; 40]] {
            assert_eq!(Report::decode(bytes), None);
            assert_eq!(End::decode(bytes), None);
        }
    }

    #[test]
    fn attachment_without_the_descriptors_it_names_refused() {
        let description = Description {
            id: "c".into(),
            exec_id: String::new(),
            pid: 1,
            terminal: false,
            streams: [true, true, false],
        };
        let fd = || std::fs::File::open("/dev/null").unwrap().into();

        assert!(assemble(&description, vec![]).is_none());
        assert!(assemble(&description, vec![fd(), fd()]).is_none());
        let whole = assemble(&description, vec![fd(), fd(), fd()]).unwrap();
        assert!(whole.streams[1].is_some() && whole.streams[2].is_none());
    }

    #[tokio::test]
    async fn attachment_handed_over_arrives_with_its_streams() {
        let (ours, theirs) = life_line().unwrap();
        let (life, stand_in) = life_line().unwrap();
        let description = Description {
            id: "c".into(),
            exec_id: "x".into(),
            pid: 7,
            terminal: false,
            streams: [false, true, false],
        };
        let sent = Message::Attach(description);
        let sender = std::thread::spawn(move || {
            let out = std::fs::File::open("/dev/null").unwrap();
            hand_over(&ours, &sent, &[life.as_fd(), out.as_fd()])
        });

        let mut kept = None;
        let keep = |message, fds| {
            let Message::Attach(description) = message else {
                return Err(io::Error::other("another message"));
            };
            kept = assemble(&description, fds);
            Ok(())
        };
        receive(theirs, keep).await.unwrap();

        sender.join().unwrap().unwrap();
        let attachment = kept.unwrap();
        assert_eq!(attachment.pid, 7);
        assert!(attachment.streams[0].is_none() && attachment.streams[1].is_some());
        let life = Life::new(attachment.life).unwrap();
        drop(stand_in);
        assert_eq!(life.report().await, None);
    }
}
