//! The channel between the sandbox process and the vsock device: which port goes to which
//! descriptor, and what became of it.
//!
//! One message is one packet of an `AF_UNIX` `SOCK_SEQPACKET` pair, [`MESSAGE_LEN`] bytes in
//! native order of a fixed layout, with the descriptors as `SCM_RIGHTS`. Every accepted
//! [`Request::Expect`] or [`Request::Connect`] ends in exactly one [`Event::Closed`] or
//! [`Event::Refused`] as long as the device process lives.

mod plugged;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

pub use plugged::{Plug, Plugged, Slot};

/// Length of every message in bytes.
const MESSAGE_LEN: usize = 16;
/// Most descriptors one message carries: a reader and a writer.
const MAX_FDS: usize = 2;
/// How long [`HostChannel::send`] waits for a device that does not take messages, in seconds.
const SEND_TIMEOUT_S: i64 = 5;

/// What the sandbox process asks of the device.
///
/// `reader` is the descriptor whose bytes go to the guest, `writer` the one that takes what the
/// guest sends; they follow the message in this order. The end of `reader` is the end of the
/// guest's input; a gone reader of `writer` breaks the guest's pipe. For both directions over one
/// socket, pass it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Serve the next connection of the guest to host port `port`, and only that one.
    Expect {
        /// Host port.
        port: u32,
        /// Whether a descriptor to read from follows.
        reader: bool,
        /// Whether a descriptor to write to follows.
        writer: bool,
    },
    /// Forget the expectation of `port`, and break the connections it has, dropping what is
    /// buffered. Answered with [`Event::Closed`] for each.
    Cancel {
        /// Host port.
        port: u32,
    },
    /// Connect to a listening port of the guest. Needs a guest whose driver is up.
    Connect {
        /// Port in the guest.
        guest_port: u32,
        /// Host port the connection comes from; names it in events.
        local_port: u32,
        /// Whether a descriptor to read from follows.
        reader: bool,
        /// Whether a descriptor to write to follows.
        writer: bool,
    },
    /// Write what all devices of the process have done to the pipe that follows, and close it; see
    /// [`crate::tally::Work`].
    Count,
    /// Serve one more device to whoever connects to the listening socket that follows; after it comes what
    /// is behind the device, a tap or what a disk holds.
    Plug(Plugged),
    /// Serve that device no longer, whatever the guest still wants of it.
    Unplug(Slot),
}

/// What the device tells the sandbox process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device is jailed and serves its sockets; requests sent earlier were kept.
    Ready,
    /// The guest connected to an expected port, or accepted a connection.
    Connected {
        /// Host port.
        port: u32,
        /// When, on `CLOCK_MONOTONIC`, in nanoseconds.
        at_ns: u64,
    },
    /// The guest refused a connection, or the device could not take the request (port in use,
    /// unusable descriptor, too many streams).
    Refused {
        /// Host port.
        port: u32,
    },
    /// The connection or expectation is over, and all that the guest sent was written.
    Closed {
        /// Host port.
        port: u32,
    },
}

const EXPECT: u8 = 1;
const CANCEL: u8 = 2;
const CONNECT: u8 = 3;
const COUNT: u8 = 4;
const READY: u8 = 1;
const CONNECTED: u8 = 2;
const REFUSED: u8 = 3;
const CLOSED: u8 = 4;

impl Request {
    fn encode(self) -> [u8; MESSAGE_LEN] {
        let (tag, port, other, reader, writer) = match self {
            Request::Expect {
                port,
                reader,
                writer,
            } => (EXPECT, port, 0, reader, writer),
            Request::Cancel { port } => (CANCEL, port, 0, false, false),
            Request::Count => (COUNT, 0, 0, false, true),
            Request::Plug(device) => return device.encode(),
            Request::Unplug(slot) => return slot.encode(),
            Request::Connect {
                guest_port,
                local_port,
                reader,
                writer,
            } => (CONNECT, local_port, guest_port, reader, writer),
        };
        let flags = u8::from(reader) | u8::from(writer) << 1;
        pack(tag, flags, port, u64::from(other))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, flags, port, other) = unpack(bytes)?;
        if let Some(device) = Plugged::decode((tag, flags, port, other)) {
            return Some(Request::Plug(device));
        }
        if let Some(slot) = Slot::decode((tag, flags, port, other)) {
            return Some(Request::Unplug(slot));
        }
        let (reader, writer) = (flags & 1 != 0, flags & 2 != 0);
        let other = u32::try_from(other).ok()?;
        match (tag, flags, other) {
            (EXPECT, 0..=3, 0) => Some(Request::Expect {
                port,
                reader,
                writer,
            }),
            (CANCEL, 0, 0) => Some(Request::Cancel { port }),
            (COUNT, 2, 0) if port == 0 => Some(Request::Count),
            (CONNECT, 0..=3, guest_port) => Some(Request::Connect {
                guest_port,
                local_port: port,
                reader,
                writer,
            }),
            _ => None,
        }
    }

    fn fds(self) -> usize {
        match self {
            Request::Expect { reader, writer, .. } | Request::Connect { reader, writer, .. } => {
                usize::from(reader) + usize::from(writer)
            }
            Request::Cancel { .. } | Request::Unplug(_) => 0,
            Request::Count => 1,
            Request::Plug(_) => 2,
        }
    }
}

impl Event {
    fn encode(self) -> [u8; MESSAGE_LEN] {
        match self {
            Event::Ready => pack(READY, 0, 0, 0),
            Event::Connected { port, at_ns } => pack(CONNECTED, 0, port, at_ns),
            Event::Refused { port } => pack(REFUSED, 0, port, 0),
            Event::Closed { port } => pack(CLOSED, 0, port, 0),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match unpack(bytes)? {
            (READY, 0, 0, 0) => Some(Event::Ready),
            (CONNECTED, 0, port, at_ns) => Some(Event::Connected { port, at_ns }),
            (REFUSED, 0, port, 0) => Some(Event::Refused { port }),
            (CLOSED, 0, port, 0) => Some(Event::Closed { port }),
            _ => None,
        }
    }
}

fn pack(tag: u8, flags: u8, port: u32, value: u64) -> [u8; MESSAGE_LEN] {
    let mut bytes = [0; MESSAGE_LEN];
    let fields = [tag, flags, 0, 0]
        .into_iter()
        .chain(port.to_ne_bytes())
        .chain(value.to_ne_bytes());
    for (to, from) in bytes.iter_mut().zip(fields) {
        *to = from;
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Option<(u8, u8, u32, u64)> {
    let bytes: &[u8; MESSAGE_LEN] = bytes.try_into().ok()?;
    let [tag, flags, 0, 0, a, b, c, d, value @ ..] = *bytes else {
        return None;
    };
    Some((
        tag,
        flags,
        u32::from_ne_bytes([a, b, c, d]),
        u64::from_ne_bytes(value),
    ))
}

/// Makes the channel: the sandbox process's end, and the one to hand to the device process.
///
/// # Errors
/// That of `socketpair`.
pub fn pair() -> io::Result<(HostChannel, OwnedFd)> {
    let (host, device) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((HostChannel { socket: host }, device))
}

/// The sandbox process's end of the channel.
///
/// Readable (by `epoll` or `AsyncFd`) when [`Self::try_recv`] has something; closing it ends the
/// device process.
#[derive(Debug)]
pub struct HostChannel {
    socket: OwnedFd,
}

impl HostChannel {
    /// Sends `request` with its descriptors, reader first; our copies are closed, so that the
    /// device holds the only ones. Returns at once unless the device has left hundreds of messages
    /// unread.
    ///
    /// # Errors
    /// `InvalidInput` when the number of descriptors is not what the request says, `TimedOut` when
    /// the device takes no messages, `BrokenPipe` or `ConnectionReset` when it is gone.
    pub fn send(&self, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        if fds.len() != request.fds() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{request:?} takes {} descriptors, not {}",
                    request.fds(),
                    fds.len()
                ),
            ));
        }
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        loop {
            match send(self.socket.as_fd(), &request.encode(), &borrowed) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let mut writable = [PollFd::new(&self.socket, PollFlags::OUT)];
                    let timeout = Timespec {
                        tv_sec: SEND_TIMEOUT_S,
                        tv_nsec: 0,
                    };
                    if poll(&mut writable, Some(&timeout))? == 0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                result => return result,
            }
        }
    }

    /// Takes the next event; `None` when there is none now. Never blocks.
    ///
    /// # Errors
    /// `UnexpectedEof` when the device process is gone, `InvalidData` for a message that is none.
    pub fn try_recv(&self) -> io::Result<Option<Event>> {
        match receive(self.socket.as_fd())? {
            Received::Nothing => Ok(None),
            Received::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
            Received::Message(bytes, _) => Event::decode(&bytes)
                .map(Some)
                .ok_or_else(|| malformed("The vsock device sent an event that is none")),
        }
    }
}

impl AsFd for HostChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for HostChannel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The descriptors that came with a request.
#[derive(Debug, Default)]
pub struct Ends {
    /// Bytes from here go to the guest; the socket of a device that is plugged.
    pub reader: Option<OwnedFd>,
    /// Bytes of the guest go here; what is behind a device that is plugged.
    pub writer: Option<OwnedFd>,
}

/// What [`DeviceChannel::try_recv`] found.
#[derive(Debug)]
pub enum Inbox {
    /// A request and its descriptors.
    Request(Request, Ends),
    /// No message now.
    Empty,
    /// The sandbox process is gone.
    Closed,
}

/// The device's end of the channel.
#[derive(Debug)]
pub struct DeviceChannel {
    socket: OwnedFd,
}

impl DeviceChannel {
    /// Takes over the descriptor that [`pair`] returned.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Takes the next request. Never blocks.
    ///
    /// # Errors
    /// `InvalidData` for a message that is none (its descriptors are closed; the next one can be
    /// read), or the error of the socket.
    pub fn try_recv(&self) -> io::Result<Inbox> {
        let (bytes, fds) = match receive(self.socket.as_fd())? {
            Received::Nothing => return Ok(Inbox::Empty),
            Received::Closed => return Ok(Inbox::Closed),
            Received::Message(bytes, fds) => (bytes, fds),
        };
        let request = Request::decode(&bytes)
            .ok_or_else(|| malformed("The sandbox process sent a vsock request that is none"))?;
        if fds.len() != request.fds() {
            return Err(malformed(
                "A vsock request came with another number of descriptors than it says",
            ));
        }
        let mut fds = fds.into_iter();
        let mut ends = Ends::default();
        let (reader, writer) = match request {
            Request::Expect { reader, writer, .. } | Request::Connect { reader, writer, .. } => {
                (reader, writer)
            }
            Request::Cancel { .. } | Request::Unplug(_) => (false, false),
            Request::Count => (false, true),
            Request::Plug(_) => (true, true),
        };
        ends.reader = if reader { fds.next() } else { None };
        ends.writer = if writer { fds.next() } else { None };
        Ok(Inbox::Request(request, ends))
    }

    /// Sends an event. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock` when the sandbox process does not read, or that of the socket.
    pub fn send(&self, event: Event) -> io::Result<()> {
        send(self.socket.as_fd(), &event.encode(), &[])
    }
}

impl AsRawFd for DeviceChannel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

enum Received {
    Nothing,
    Closed,
    Message(Vec<u8>, Vec<OwnedFd>),
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
    })?;
    // A packet is sent whole or not at all.
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MESSAGE_LEN];
    let message = match recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    ) {
        Ok(message) => message,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Received::Nothing),
        Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
        Err(e) => return Err(e.into()),
    };
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if message.bytes == 0 && fds.is_empty() {
        return Ok(Received::Closed);
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(malformed(
            "A message on the vsock control channel is too long",
        ));
    }
    Ok(Received::Message(
        bytes.get(..message.bytes).unwrap_or_default().to_vec(),
        fds,
    ))
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};

    fn channel() -> (HostChannel, DeviceChannel) {
        let (host, device) = pair().unwrap();
        (host, DeviceChannel::new(device))
    }

    #[test]
    fn request_with_descriptors_arrives_with_them_in_order() {
        let (host, device) = channel();
        let (mut reader, mut to_reader) = io::pipe().unwrap();
        let (mut from_writer, writer) = io::pipe().unwrap();
        let request = Request::Expect {
            port: 7,
            reader: true,
            writer: true,
        };
        let ends: Vec<OwnedFd> = vec![reader.try_clone().unwrap().into(), writer.into()];
        host.send(request, ends).unwrap();

        let Inbox::Request(got, ends) = device.try_recv().unwrap() else {
            panic!()
        };

        assert_eq!(got, request);
        to_reader.write_all(b"x").unwrap();
        let mut byte = [0];
        std::fs::File::from(ends.reader.unwrap())
            .read_exact(&mut byte)
            .unwrap();
        std::fs::File::from(ends.writer.unwrap())
            .write_all(b"y")
            .unwrap();
        from_writer.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"y");
        drop(to_reader);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn request_with_too_few_descriptors_is_not_sent() {
        let (host, device) = channel();
        let request = Request::Expect {
            port: 7,
            reader: true,
            writer: false,
        };
        assert_eq!(
            host.send(request, vec![]).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(matches!(device.try_recv().unwrap(), Inbox::Empty));
    }

    #[test]
    fn message_with_undeclared_descriptor_is_rejected_and_the_next_one_read() {
        let (host, device) = channel();
        let (_reader, writer) = io::pipe().unwrap();
        let cancel = Request::Cancel { port: 1 };
        send(host.as_fd(), &cancel.encode(), &[writer.as_fd()]).unwrap();
        host.send(cancel, vec![]).unwrap();
        assert_eq!(
            device.try_recv().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert!(matches!(device.try_recv().unwrap(), Inbox::Request(r, _) if r == cancel));
    }

    #[test]
    fn message_too_long_is_rejected() {
        let (host, device) = channel();
        send(host.as_fd(), &[1; 100], &[]).unwrap();
        assert_eq!(
            device.try_recv().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn channel_whose_other_end_is_dropped_is_closed() {
        let (host, device) = channel();
        drop(host);
        assert!(matches!(device.try_recv().unwrap(), Inbox::Closed));
        let (host, device) = channel();
        drop(device);
        assert_eq!(
            host.try_recv().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn event_arrives() {
        let (host, device) = channel();
        assert_eq!(host.try_recv().unwrap(), None);
        let event = Event::Connected {
            port: 9,
            at_ns: 1 << 60,
        };
        device.send(event).unwrap();
        assert_eq!(host.try_recv().unwrap(), Some(event));
    }

    proptest! {
        #[test]
        fn decode_any_bytes_never_panics_and_inverts_encode(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(&request.encode()[..], &bytes[..]);
            }
            if let Some(event) = Event::decode(&bytes) {
                prop_assert_eq!(&event.encode()[..], &bytes[..]);
            }
        }

        #[test]
        fn request_encoded_decodes_to_itself(guest_port: u32, local_port: u32, reader: bool, writer: bool) {
            let request = Request::Connect { guest_port, local_port, reader, writer };
            prop_assert_eq!(Request::decode(&request.encode()), Some(request));
        }

        #[test]
        fn device_encoded_decodes_to_itself(number: u32, mac: [u8; 6], mtu in 1_u16.., read_only: bool) {
            let devices = [
                Plugged::Net { number, mac, mtu: Some(mtu) },
                Plugged::Net { number, mac, mtu: None },
                Plugged::Block { number, read_only },
            ];
            for device in devices {
                for request in [Request::Plug(device), Request::Unplug(device.slot())] {
                    prop_assert_eq!(Request::decode(&request.encode()), Some(request));
                }
            }
        }
    }
}
