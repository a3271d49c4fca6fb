//! Descriptors the event loop watches.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness can be awaited.
pub type Watched = AsyncFd<OwnedFd>;

/// Lets the event loop watch `fd` for reading.
///
/// # Errors
/// When the kernel cannot watch it.
pub fn readable(fd: OwnedFd) -> io::Result<Watched> {
    watch(fd, Interest::READABLE)
}

/// Lets the event loop watch `fd` for writing.
///
/// # Errors
/// When the kernel cannot watch it.
pub fn writable(fd: OwnedFd) -> io::Result<Watched> {
    watch(fd, Interest::WRITABLE)
}

/// Lets the event loop watch `fd` for both.
///
/// # Errors
/// When the kernel cannot watch it.
pub fn both_ways(fd: OwnedFd) -> io::Result<Watched> {
    watch(fd, Interest::READABLE | Interest::WRITABLE)
}

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    // SAFETY: an `OwnedFd` is open and names the same description until it is dropped, and nothing
    // takes it out of the `AsyncFd` before.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
