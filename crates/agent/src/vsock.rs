//! Stream sockets to the host.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// The host's context id.
const HOST: u32 = libc::VMADDR_CID_HOST;

/// Starts to connect to `port` of the host and returns at once.
///
/// The socket is non-blocking; it becomes writable when the host has answered, and
/// [`connected`] then says how.
///
/// # Errors
/// When the kernel has no vsock device, or has no room for another socket.
pub fn start_connecting(port: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// How the connection attempt on a writable socket ended.
///
/// # Errors
/// The host's refusal (`ECONNRESET`) or the kernel's time limit (`ETIMEDOUT`).
pub fn connected(socket: &OwnedFd) -> io::Result<()> {
    match rustix::net::sockopt::socket_error(socket)? {
        Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
