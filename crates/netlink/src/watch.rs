//! Being told of changes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::NetlinkError;

/// Interfaces, their addresses and routes, of IPv4 and IPv6 (`RTMGRP_*` of `linux/rtnetlink.h`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// More than any message; what is in it does not matter.
const BUFFER: usize = 16 * 1024;

/// A socket that becomes readable when interfaces, addresses or routes change in the network namespace
/// the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
}

impl Watch {
    /// Opens one; it does not block.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |error: rustix::io::Errno| NetlinkError::Socket(error.into());
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            // NETLINK_ROUTE is protocol 0.
            None,
        )
        .map_err(failed)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS)).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Takes all that has been told so far. Whether there was anything.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn drain(&self) -> io::Result<bool> {
        let mut buffer = [0; BUFFER];
        let mut any = false;
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::TRUNC) {
                // Some were lost, because there were many: something has changed, which is all we want to know.
                Ok(_) | Err(rustix::io::Errno::NOBUFS) => any = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(any),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::UnshareFlags;

    use super::*;
    use crate::{Link, LinkChange, Netlink};

    #[test]
    fn change_is_told_once_and_nothing_where_nothing_changes() {
        // In a namespace of its own nobody else changes anything.
        std::thread::spawn(|| {
            // SAFETY: only the network of this thread becomes another one.
            let apart = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
            if apart == Err(rustix::io::Errno::PERM) {
                println!("SKIP: only root may make a network namespace");
                return;
            }
            apart.unwrap();
            let watch = Watch::open().unwrap();
            assert!(!watch.drain().unwrap());
            let mut netlink = Netlink::open().unwrap();
            netlink
                .request(&LinkChange::of(1).up(true).request())
                .unwrap();
            assert!(watch.drain().unwrap());
            netlink.list(&Link::list(), Link::parse).unwrap();
            assert!(!watch.drain().unwrap(), "looking changes nothing");
        })
        .join()
        .unwrap();
    }
}
