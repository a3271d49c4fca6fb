//! Where frames come from and go to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The largest frame there is: an IP packet of the largest size, its Ethernet header and two VLAN
/// tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// What the guest can take in the frames it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Frames without a checksum.
    pub checksum: bool,
    /// Uncut TCP over IPv4.
    pub tcp4: bool,
    /// Uncut TCP over IPv6.
    pub tcp6: bool,
}

/// A descriptor that a frame with its header is read from, and written to, in one call; it does not
/// block.
pub trait Frames: AsFd + Send + Sync {
    /// Says what received frames may be like.
    ///
    /// # Errors
    /// When that cannot be had; frames are as before then.
    fn accept(&self, accepts: Accepts) -> io::Result<()>;
}

/// A tap: Ethernet frames, each after a `virtio_net_hdr_v1`.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Takes a descriptor that is known to be one, see [`Self::is`].
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Whether a descriptor is a tap with headers before its frames.
    ///
    /// # Errors
    /// When it is no tap or tun device at all.
    pub fn is(fd: BorrowedFd<'_>) -> io::Result<bool> {
        const WANTED: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // SAFETY: an interface request of all zeroes is a valid value of this plain C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: an open descriptor, and a request that lives across the call, which fills it.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just written the flags, and any number is one.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        Ok(flags & WANTED == WANTED)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Frames for Tap {
    fn accept(&self, accepts: Accepts) -> io::Result<()> {
        let flags = [
            (accepts.checksum, libc::TUN_F_CSUM),
            (accepts.tcp4, libc::TUN_F_TSO4),
            (accepts.tcp6, libc::TUN_F_TSO6),
        ];
        let flags = flags.into_iter().filter(|(wanted, _)| *wanted);
        let flags = flags.fold(0, |flags, (_, flag)| flags | flag);
        let flags = libc::c_ulong::from(flags);
        // SAFETY: an open descriptor, and a number as argument.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// For tests: a datagram socket keeps frames apart as a tap does.
#[cfg(any(test, feature = "rig"))]
impl Frames for std::os::unix::net::UnixDatagram {
    fn accept(&self, _: Accepts) -> io::Result<()> {
        Ok(())
    }
}
