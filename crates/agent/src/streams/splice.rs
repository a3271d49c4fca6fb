//! Moving bytes between a pipe and a socket inside the kernel.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

use crate::watched::Watched;

/// The most that is moved with one system call. More than a pipe holds.
const CHUNK: usize = 1 << 20;

/// What a new pipe holds, in bytes.
const PIPE: usize = 64 << 10;

/// What the pipe of a stream that carries much holds, in bytes: as much as is under way on the
/// socket. Larger is no faster.
const LARGE_PIPE: usize = 256 << 10;

/// Whether a pipe carries so much that it deserves more room.
///
/// A system call and a change between processes cost more in a guest than copying some kilobytes: a
/// larger pipe makes both rarer. Its memory is taken as bytes come in, and its making costs a system
/// call, so that only a pipe that was found half full gets it.
#[derive(Debug, Default)]
pub struct Room {
    enlarged: bool,
}

impl Room {
    /// Takes notice of `count` bytes that were moved at once to or from `pipe`.
    pub fn moved(&mut self, pipe: &Watched, count: usize) {
        if count >= PIPE / 2 && !self.enlarged {
            self.enlarged = true;
            // Refused when the guest is short of memory: then it stays as it is.
            let _ = fcntl_setpipe_size(pipe.get_ref(), LARGE_PIPE);
        }
    }
}

/// What became of an attempt to move bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes; there may be more.
    Bytes(usize),
    /// The source is at its end.
    End,
    /// The destination is gone, or the connection was reset.
    Broken,
}

/// Moves what is there from `from` to `to`, waiting until something can be moved or nothing ever
/// will be. Cancelling it loses nothing.
///
/// One of the two must be a pipe; the sockets must be non-blocking.
pub async fn forward(from: &Watched, to: &Watched) -> Moved {
    loop {
        // The guards are taken before the kernel is asked, so that what happens in between is not
        // overlooked when readiness is taken back.
        let (Ok(mut readable), Ok(mut writable)) = (from.readable().await, to.writable().await)
        else {
            return Moved::Broken;
        };
        let moved = match try_forward(from.get_ref(), to.get_ref()) {
            Ok(0) => return Moved::End,
            Ok(count) => Some(Moved::Bytes(count)),
            Err(Errno::AGAIN) => None,
            Err(Errno::INTR) => continue,
            Err(_) => return Moved::Broken,
        };
        // One of them has had enough; the count or the error does not tell which.
        let (has_bytes, has_room) = ready(from.get_ref(), to.get_ref());
        if !has_bytes {
            readable.clear_ready();
        }
        if !has_room {
            writable.clear_ready();
        }
        if let Some(moved) = moved {
            return moved;
        }
    }
}

fn try_forward(from: &OwnedFd, to: &OwnedFd) -> Result<usize, Errno> {
    splice(
        from,
        None,
        to,
        None,
        CHUNK,
        SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
    )
}

/// Whether `from` has something to say (bytes, end, error) and `to` would take bytes (or an error
/// be reported).
fn ready(from: &OwnedFd, to: &OwnedFd) -> (bool, bool) {
    let mut fds = [
        PollFd::new(from, PollFlags::IN),
        PollFd::new(to, PollFlags::OUT),
    ];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&now)) {
        Ok(_) => (!fds[0].revents().is_empty(), !fds[1].revents().is_empty()),
        // Then the next attempt shall find out.
        Err(_) => (true, true),
    }
}

/// Waits until the peer of `socket` takes no more bytes. Never returns if the peer has merely
/// closed its own sending half: then only a failed attempt to send can tell.
pub async fn reader_gone(socket: &Watched) {
    loop {
        let Ok(mut readable) = socket.readable().await else {
            return;
        };
        if !takes_bytes(socket.get_ref()) {
            return;
        }
        if readable.ready().is_read_closed() {
            // This state stays; there is nothing further to wait for.
            return std::future::pending().await;
        }
        readable.clear_ready();
    }
}

/// Whether the peer of a stream socket still takes bytes. Sends none.
pub fn takes_bytes(socket: &OwnedFd) -> bool {
    !matches!(
        send(socket, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
        Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN)
    )
}
