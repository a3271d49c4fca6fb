//! Descriptors the runtime waits on.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use bulkhead_devices::vsock::control::HostChannel;
use tokio::io::unix::AsyncFd;

/// A type that owns one descriptor for as long as it lives and always names that one.
///
/// # Safety
/// `as_raw_fd` must return the same open descriptor until the value is dropped, whatever happens to
/// the value in between.
pub unsafe trait Owner: AsRawFd {}

// SAFETY: it owns the descriptor, and nothing but dropping it closes it.
unsafe impl Owner for OwnedFd {}
// SAFETY: as for `OwnedFd`; the count keeps it alive as long as this handle.
unsafe impl Owner for Arc<OwnedFd> {}
// SAFETY: as for `OwnedFd`.
unsafe impl Owner for File {}

/// The control channel as something the runtime can wait on.
#[derive(Debug)]
pub struct WatchedChannel(pub HostChannel);

impl AsRawFd for WatchedChannel {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

// SAFETY: the channel holds its socket in a private `OwnedFd` it never replaces.
unsafe impl Owner for WatchedChannel {}

// SAFETY: it owns its socket and never replaces it.
unsafe impl Owner for bulkhead_network::Watch {}

/// Registers a descriptor with the runtime, for reading and writing.
///
/// Must be called within a runtime.
///
/// # Errors
/// When the descriptor cannot be waited on (a regular file, for example).
pub fn watch<T: Owner>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `Owner` promises what `register` asks for: the descriptor stays open and the same
    // while the value, which `AsyncFd` owns from here on, lives.
    unsafe { AsyncFd::register(owner) }.map_err(io::Error::from)
}
