//! Taps: interfaces whose other end is a descriptor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::NetworkError;

/// What the names of our taps begin with, so that they are told apart from the engine's interfaces.
pub(crate) const PREFIX: &str = "bhtap";

/// Size of the header before each frame: `struct virtio_net_hdr_v1`.
const HEADER: libc::c_int = 12;

/// Ethernet frames, nothing before them but the virtio header.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes a tap in the calling thread's network namespace. It is gone when its descriptor and all
/// copies of it are closed. Returns the name the kernel gave it.
pub(crate) fn make(interface: &str) -> Result<(OwnedFd, String), NetworkError> {
    let failed = |step| {
        move |source: io::Error| NetworkError::Tap {
            step,
            interface: interface.to_owned(),
            source,
        }
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(|error| failed("open /dev/net/tun for")(error.into()))?;
    // SAFETY: an interface request of all zeroes is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The kernel puts a number in place of the `%d`.
    let pattern = PREFIX.bytes().chain(*b"%d");
    for (to, from) in request.ifr_name.iter_mut().zip(pattern) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = short(FLAGS);
    // SAFETY: an open descriptor, and a request that lives across the call, which fills its name in.
    let made = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(made).map_err(failed("make"))?;
    let header = HEADER;
    // SAFETY: as before; the call only reads the number.
    let sized = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
    check(sized).map_err(failed("set the header size of"))?;
    Ok((fd, name(&request)))
}

/// Flags of an interface request, of which all are below the sixteenth bit.
fn short(flags: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(flags).unwrap_or_default()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn name(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|c| c.to_ne_bytes()[0]);
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
