//! A terminal: pseudo-terminal master ↔ host socket.
//!
//! The kernel cannot splice between the two, so bytes go through a small buffer in each direction.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::net::{SendFlags, send};

use super::Debt;
use super::splice::takes_bytes;
use crate::watched::Watched;

/// What the line discipline hands out at once at most.
const CHUNK: usize = 4096;

/// After the end of its process a terminal owes this many bytes at most: more than the kernel
/// buffers for it.
const OWED: usize = 64 << 10;

/// Relays until the terminal's last user or the host has closed it, then closes both.
pub async fn relay(master: Arc<Watched>, socket: Watched, debt: Debt) {
    if ioctl_fionbio(master.get_ref(), true).is_err() {
        return;
    }
    tokio::select! {
        biased;
        () = output(&master, &socket, debt) => {}
        () = input(&socket, &master) => {}
    }
}

/// Terminal to host. Returns when either is gone.
async fn output(master: &Watched, socket: &Watched, mut debt: Debt) {
    let mut buffer = vec![0_u8; CHUNK];
    let mut owed = OWED;
    loop {
        let ended = *debt.exited.borrow();
        if ended && debt.owing.is_some() && (owed == 0 || !has_output(master.get_ref())) {
            debt.owing = None;
        }
        tokio::select! {
            biased;
            ready = master.readable() => {
                let Ok(mut ready) = ready else { return };
                let count = match read(master.get_ref(), &mut *buffer) {
                    Ok(count) if count > 0 => count,
                    Err(Errno::AGAIN) => {
                        ready.clear_ready();
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    // EIO: the last user has closed the terminal.
                    Ok(_) | Err(_) => return,
                };
                if !send_all(socket, buffer.get(..count).unwrap_or_default()).await {
                    return;
                }
                if ended {
                    owed = owed.saturating_sub(count);
                }
            }
            changed = debt.exited.changed(), if !ended && debt.owing.is_some() => {
                if changed.is_err() {
                    // Nobody waits for the process any more.
                    debt.owing = None;
                }
            }
        }
    }
}

/// Whether a read from the master would return something, be it an error.
fn has_output(master: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(master, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(poll(&mut fds, Some(&now)), Ok(0))
}

/// Host to terminal. Returns when the host is gone; a host that merely sends no more is not gone.
async fn input(socket: &Watched, master: &Watched) {
    let mut buffer = vec![0_u8; CHUNK];
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        match read(socket.get_ref(), &mut *buffer) {
            Ok(0) if takes_bytes(socket.get_ref()) => return std::future::pending().await,
            Ok(0) => return,
            Ok(count) => {
                if !write_all(master, buffer.get(..count).unwrap_or_default()).await {
                    // Nobody has the terminal open; the output's end decides what follows.
                    return std::future::pending().await;
                }
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

async fn send_all(socket: &Watched, mut bytes: &[u8]) -> bool {
    put_all(socket, &mut bytes, |fd, bytes| {
        send(fd, bytes, SendFlags::NOSIGNAL)
    })
    .await
}

async fn write_all(master: &Watched, mut bytes: &[u8]) -> bool {
    put_all(master, &mut bytes, |fd, bytes| write(fd, bytes)).await
}

/// Puts all bytes into `to`, waiting for room. `false` if it takes no more.
async fn put_all(
    to: &Watched,
    bytes: &mut &[u8],
    put: impl Fn(&OwnedFd, &[u8]) -> Result<usize, Errno>,
) -> bool {
    while !bytes.is_empty() {
        let Ok(mut ready) = to.writable().await else {
            return false;
        };
        match put(to.get_ref(), bytes) {
            Ok(count) => *bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
