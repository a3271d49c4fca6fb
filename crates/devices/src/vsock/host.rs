//! The host side of a stream: a descriptor of whatever kind the sandbox process handed over.
//!
//! Nothing here blocks: sockets are used with `MSG_DONTWAIT`, FIFOs and terminals are opened anew
//! with `O_NONBLOCK` so that the flag does not leak to the other holders of the description, and
//! descriptors that cannot be waited for (regular files, `/dev/null`) are always ready.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SocketType;

/// Most segments one call takes; the limit of the kernel (`IOV_MAX`).
const MAX_SEGMENTS: usize = 1024;

/// Device numbers (major) of pseudo-terminal slaves.
const TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// Which way bytes flow through a descriptor, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// We read it.
    Read,
    /// We write it.
    Write,
}

/// A host descriptor cannot serve as the end of a stream.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The descriptor was opened for the other direction.
    #[error("The descriptor is not open for {0:?}; hand over the other end of the pipe")]
    Access(Direction),
    /// The descriptor is of a kind that carries no bytes.
    #[error("A descriptor of type {0:?} cannot carry a stream; use a pipe, FIFO, socket or file")]
    Kind(FileType),
    /// The descriptor could not be examined or set up.
    #[error("Cannot set up the descriptor for {direction:?}")]
    Setup {
        /// What it was to be used for.
        direction: Direction,
        /// What the system call said.
        #[source]
        source: io::Error,
    },
}

/// The host's end of one direction of a stream.
#[derive(Debug)]
pub struct HostFd {
    fd: OwnedFd,
    socket: bool,
    stream: bool,
}

impl HostFd {
    /// Takes over `fd`. `proc_fd` is an open `/proc/self/fd`, used to open FIFOs and terminals anew.
    ///
    /// # Errors
    /// [`HostError`] when the descriptor cannot be used in this direction.
    pub fn new(
        fd: OwnedFd,
        direction: Direction,
        proc_fd: Option<&OwnedFd>,
    ) -> Result<Self, HostError> {
        let setup = |e: rustix::io::Errno| HostError::Setup {
            direction,
            source: e.into(),
        };
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(setup)?;
        let access = flags & OFlags::RWMODE;
        let fits = match direction {
            Direction::Read => access == OFlags::RDONLY || access == OFlags::RDWR,
            Direction::Write => access == OFlags::WRONLY || access == OFlags::RDWR,
        };
        if !fits || flags.contains(OFlags::PATH) {
            return Err(HostError::Access(direction));
        }
        let status = rustix::fs::fstat(&fd).map_err(setup)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        let fd = match kind {
            FileType::Socket | FileType::RegularFile | FileType::BlockDevice => fd,
            FileType::Fifo | FileType::CharacterDevice if flags.contains(OFlags::NONBLOCK) => fd,
            FileType::Fifo | FileType::CharacterDevice => {
                // Opening a terminal's master anew would make another terminal.
                let same = kind == FileType::Fifo
                    || TERMINALS.contains(&rustix::fs::major(status.st_rdev));
                let again = proc_fd.filter(|_| same);
                match again.and_then(|dir| reopen(dir, &fd, direction).ok()) {
                    Some(again) => again,
                    None => {
                        // No procfs, or a FIFO whose other end is not open yet.
                        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(setup)?;
                        fd
                    }
                }
            }
            other => return Err(HostError::Kind(other)),
        };
        let stream = match kind {
            FileType::Socket => {
                rustix::net::sockopt::socket_type(&fd).map_err(setup)? == SocketType::STREAM
            }
            // With O_DIRECT a pipe keeps packets apart.
            FileType::Fifo => !flags.contains(OFlags::DIRECT),
            _ => false,
        };
        Ok(Self {
            fd,
            socket: kind == FileType::Socket,
            stream,
        })
    }

    /// Reads into `segments`; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing to read now; otherwise the stream is broken.
    ///
    /// # Safety
    /// Each segment must describe memory that may be written during the call. Others may read and
    /// write it at the same time, so no Rust reference to it may exist.
    pub unsafe fn read(&self, segments: &mut [libc::iovec]) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        let count = segments.len().min(MAX_SEGMENTS);
        retry(|| {
            if self.socket {
                let mut message = message(segments, count);
                // SAFETY: `message` points to `count` segments, which the caller vouches for; no
                // name and no control buffer are given.
                unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) }
            } else {
                let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
                // SAFETY: the caller vouches for the segments; `count` is within the slice.
                unsafe { libc::readv(fd, segments.as_ptr(), count) }
            }
        })
    }

    /// Writes from `segments` and says how much was taken.
    ///
    /// # Errors
    /// `WouldBlock` when nothing can be written now; otherwise the reader is gone.
    ///
    /// # Safety
    /// Each segment must describe memory that may be read during the call. Others may write it at
    /// the same time, so no Rust reference to it may exist, unless it is ours alone.
    pub unsafe fn write(&self, segments: &mut [libc::iovec]) -> io::Result<usize> {
        let fd = self.fd.as_raw_fd();
        let count = segments.len().min(MAX_SEGMENTS);
        retry(|| {
            if self.socket {
                let message = message(segments, count);
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: `message` points to `count` segments, which the caller vouches for; no
                // name and no control buffer are given.
                unsafe { libc::sendmsg(fd, &raw const message, flags) }
            } else {
                let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
                // SAFETY: the caller vouches for the segments; `count` is within the slice.
                unsafe { libc::writev(fd, segments.as_ptr(), count) }
            }
        })
    }

    /// Whether a read that gives less than asked for says that there is no more now.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.stream
    }

    /// Closes one direction towards the other holders of the description: a socket's peer sees the
    /// end of the stream although other copies of the socket stay open. Pipes need no more than
    /// being dropped.
    pub fn close(self, direction: Direction) {
        if self.socket {
            let how = match direction {
                Direction::Read => rustix::net::Shutdown::Read,
                Direction::Write => rustix::net::Shutdown::Write,
            };
            // It fails when the peer is gone, which is what was wanted.
            let _ = rustix::net::shutdown(&self.fd, how);
        }
    }
}

impl AsRawFd for HostFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

fn reopen(proc_fd: &OwnedFd, fd: &OwnedFd, direction: Direction) -> rustix::io::Result<OwnedFd> {
    let access = match direction {
        Direction::Read => OFlags::RDONLY,
        Direction::Write => OFlags::WRONLY,
    };
    rustix::fs::openat(
        proc_fd.as_fd(),
        fd.as_raw_fd().to_string(),
        access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
    )
}

fn message(segments: &mut [libc::iovec], count: usize) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = segments.as_mut_ptr();
    message.msg_iovlen = count;
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
