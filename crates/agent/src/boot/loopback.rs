//! The loopback interface: without it a program cannot talk to itself on 127.0.0.1.

use std::io;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Sets the interface's "up" flag; the kernel then gives it 127.0.0.1 and ::1 itself.
///
/// A kernel without a network has no such interface, which is no error.
pub fn bring_up() -> io::Result<()> {
    let kind = SocketType::DGRAM;
    let socket = match socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None) {
        Ok(socket) => socket,
        Err(Errno::AFNOSUPPORT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // SAFETY: an interface request of all zeroes is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // Both flags are small positive numbers that fit the field.
    #[allow(clippy::cast_possible_truncation)]
    {
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    }
    // SAFETY: the descriptor is an open socket, and the request lives across the call, which only
    // reads it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
