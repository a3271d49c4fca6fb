//! Stream sockets to the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// The host's context id.
const HOST: u32 = libc::VMADDR_CID_HOST;

/// How long the host may take to accept the connection that carries the RPC, in seconds. The kernel's own
/// limit of two is too short for a host that is very busy, and giving up ends the guest.
pub const HOME_PATIENCE_S: libc::time_t = 60;

/// The same for a stream of a process, in seconds. For that long the kernel keeps the socket, whatever
/// becomes of it: many short processes would have a lot of the guest's memory.
pub const STREAM_PATIENCE_S: libc::time_t = 10;

/// From the kernel's `vm_sockets.h`, for 64-bit systems.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

/// Starts to connect to `port` of the host, which may take `patience_s` seconds to accept, and returns at
/// once.
///
/// The socket is non-blocking; it becomes writable when the host has answered, and
/// [`connected`] then says how.
///
/// # Errors
/// When the kernel has no vsock device, or has no room for another socket.
pub fn start_connecting(port: u32, patience_s: libc::time_t) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    be_patient(&socket, patience_s)?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

fn be_patient(socket: impl AsFd, seconds: libc::time_t) -> io::Result<()> {
    let patience = libc::timeval {
        tv_sec: seconds,
        tv_usec: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&patience)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the value is a `timeval` of the given length, as this
    // option wants it; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const patience).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
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
