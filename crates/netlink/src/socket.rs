//! The conversation with the kernel: one request at a time, answered before the next.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::message::{Message, Request, attributes, messages};

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
/// The objects changed while they were listed.
const INTERRUPTED: u16 = 0x10;
/// The error carries attributes, without the request's payload (`NLM_F_CAPPED`).
const CAPPED: u16 = 0x100;
const HAS_ATTRIBUTES: u16 = 0x200;

const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Larger than any datagram the kernel makes of a list.
const BUFFER: usize = 64 * 1024;
/// How often a list that changed meanwhile is asked for again.
const ATTEMPTS: usize = 10;

/// The kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("Cannot talk to the kernel over netlink")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("{source}{}", .explanation.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The error number it gave.
        source: io::Error,
        /// Its own words, if it had any.
        explanation: Option<String>,
    },
    /// The request cannot be expressed.
    #[error("A value is too long for a netlink attribute")]
    TooLong,
    /// The list changed each time it was read.
    #[error("The network configuration does not stop changing")]
    Unstable,
    /// An answer was cut off.
    #[error("The kernel's answer is larger than expected")]
    Truncated,
}

impl NetlinkError {
    /// The error number the kernel refused with.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A routing socket (`NETLINK_ROUTE`) of the network namespace the calling thread was in when it was
/// opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )
        .map_err(|error| NetlinkError::Socket(error.into()))?;
        let on: libc::c_int = 1;
        // A kernel that cannot explain its errors still names them.
        // SAFETY: an open socket, and a value that outlives the call with its right size.
        let _ = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_EXT_ACK,
                (&raw const on).cast(),
                libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default(),
            )
        };
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER],
            sequence: 0,
        })
    }

    /// Sends a request and waits until the kernel has done it.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] and failures of the socket.
    pub fn request(&mut self, request: &Request) -> Result<(), NetlinkError> {
        let sequence = self.send(request, ACKNOWLEDGE)?;
        loop {
            let len = self.receive()?;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                if message.sequence == sequence && message.kind == ERROR {
                    return verdict(&message);
                }
            }
        }
    }

    /// Asks for a list and reads each of its messages that `parse` understands.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`], failures of the socket, and [`NetlinkError::Unstable`].
    pub fn list<T>(
        &mut self,
        request: &Request,
        parse: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..ATTEMPTS {
            if let Some(list) = self.try_list(request, &parse)? {
                return Ok(list);
            }
        }
        Err(NetlinkError::Unstable)
    }

    fn try_list<T>(
        &mut self,
        request: &Request,
        parse: &impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let sequence = self.send(request, DUMP)?;
        let mut list = Vec::new();
        let mut interrupted = false;
        loop {
            let len = self.receive()?;
            for message in messages(self.buffer.get(..len).unwrap_or_default()) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & INTERRUPTED != 0;
                match message.kind {
                    ERROR => {
                        verdict(&message)?;
                        return Ok(Some(list));
                    }
                    DONE => {
                        // Its payload is an error number, or zero.
                        verdict(&message)?;
                        return Ok((!interrupted).then_some(list));
                    }
                    _ => list.extend(parse(&message)),
                }
            }
        }
    }

    fn send(&mut self, request: &Request, flags: u16) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request
            .finish(REQUEST | flags, self.sequence)
            .ok_or(NetlinkError::TooLong)?;
        rustix::io::retry_on_intr(|| send(&self.socket, &bytes, SendFlags::empty()))
            .map_err(|error| NetlinkError::Socket(error.into()))?;
        Ok(self.sequence)
    }

    fn receive(&mut self) -> Result<usize, NetlinkError> {
        let received =
            rustix::io::retry_on_intr(|| recv(&self.socket, &mut *self.buffer, RecvFlags::TRUNC));
        let (_, len) = received.map_err(|error| NetlinkError::Socket(error.into()))?;
        if len > self.buffer.len() {
            return Err(NetlinkError::Truncated);
        }
        if len == 0 {
            let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(NetlinkError::Socket(closed));
        }
        Ok(len)
    }
}

/// What an answer of type `ERROR` or `DONE` says.
fn verdict(message: &Message<'_>) -> Result<(), NetlinkError> {
    let number = crate::u32_at(message.payload, 0).map_or(0, u32::cast_signed);
    if number == 0 {
        return Ok(());
    }
    Err(NetlinkError::Refused {
        source: io::Error::from_raw_os_error(number.saturating_neg()),
        explanation: explanation(message),
    })
}

/// The text behind an error (`NLMSGERR_ATTR_MSG`).
fn explanation(message: &Message<'_>) -> Option<String> {
    const TEXT: u16 = 1;
    /// Error number and the header of the request.
    const ECHO: usize = 20;
    if message.kind != ERROR || message.flags & HAS_ATTRIBUTES == 0 {
        return None;
    }
    let echoed = if message.flags & CAPPED != 0 {
        ECHO
    } else {
        let request = usize::try_from(crate::u32_at(message.payload, 4)?).ok()?;
        request.checked_add(4 + 3)? & !3
    };
    let (_, text) = attributes(message.payload.get(echoed..)?).find(|(kind, _)| *kind == TEXT)?;
    Some(crate::text(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Link, LinkChange};

    #[test]
    fn list_of_links_has_the_loopback() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.list(&Link::list(), Link::parse).unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.is_loopback());
        assert_eq!(lo.index, 1);
    }

    #[test]
    fn request_about_an_interface_that_is_not_there_is_refused_with_its_number() {
        let mut netlink = Netlink::open().unwrap();
        let change = LinkChange::of(0x7fff_fff0).mtu(1400);
        let error = netlink.request(&change.request()).unwrap_err();
        // Without the privilege the kernel does not even look.
        assert!(
            matches!(error.errno(), Some(libc::ENODEV | libc::EPERM)),
            "{error}"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_error_message_is_explained_without_panic(
            flags in proptest::num::u16::ANY,
            payload in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
        ) {
            let message = Message { kind: ERROR, flags, sequence: 1, payload: &payload };
            let _ = verdict(&message);
        }
    }
}
