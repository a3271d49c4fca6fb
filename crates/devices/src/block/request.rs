//! One request of the guest: what is asked, where, and the doing of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::FallocateFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::device::Medium;
use super::{SECTOR, SERIAL_LEN};
use crate::guest::Segments;

/// Length of a request's header and of one range to discard, bytes.
const HEADER: usize = 16;
const RANGE: usize = 16;

/// The most ranges in one request to discard; the guest is told.
pub(super) const MAX_RANGES: u32 = 16;
/// The most sectors in one such range; the guest is told.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// The most parts of guest memory in one system call (`UIO_MAXIOV`).
const MAX_PARTS: usize = 1024;

/// Why a request was not done, as the guest is told.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The request makes no sense, or asks for what the disk has not got.
    #[error("A request of the guest {0}")]
    Malformed(&'static str),
    /// The disk knows no such request.
    #[error("A request of the guest is of an unknown kind, {0}")]
    Unknown(u32),
    /// The host could not do it.
    #[error("Cannot {what} the disk")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// What the system call said.
        #[source]
        source: io::Error,
    },
}

impl Failed {
    /// The status byte (virtio 1.2, section 5.2.6).
    pub(super) fn status(&self) -> u8 {
        let status = match self {
            Self::Unknown(_) => VIRTIO_BLK_S_UNSUPP,
            Self::Host { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                VIRTIO_BLK_S_UNSUPP
            }
            Self::Malformed(_) | Self::Host { .. } => VIRTIO_BLK_S_IOERR,
        };
        u8::try_from(status).unwrap_or(1)
    }
}

/// Does what `request` asks for; `reply` is the guest's memory for data, without the byte for the
/// status. Returns how many bytes were written there.
pub(super) fn serve(
    medium: &Medium,
    mut request: Segments<'_>,
    reply: &Segments<'_>,
) -> Result<usize, Failed> {
    let data = request.split_off(HEADER);
    let mut header = [0; HEADER];
    if request.copy_to(&mut header) < HEADER {
        return Err(Failed::Malformed("is too short for its header"));
    }
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes(sector);
    match kind {
        VIRTIO_BLK_T_IN => {
            let at = place(medium, sector, reply.len())?;
            transfer(medium.file(), reply, at, Direction::In)?;
            Ok(reply.len())
        }
        VIRTIO_BLK_T_OUT => {
            let at = place(medium, sector, data.len())?;
            writable(medium)?;
            transfer(medium.file(), &data, at, Direction::Out).map(|()| 0)
        }
        VIRTIO_BLK_T_FLUSH => {
            let flushed = rustix::fs::fdatasync(medium.file());
            flushed.map_err(failed("flush")).map(|()| 0)
        }
        VIRTIO_BLK_T_GET_ID => {
            let mut serial = [0; SERIAL_LEN];
            for (to, from) in serial.iter_mut().zip(medium.serial().bytes()) {
                *to = from;
            }
            Ok(reply.copy_from(&serial))
        }
        VIRTIO_BLK_T_DISCARD => clear(medium, &data, false).map(|()| 0),
        VIRTIO_BLK_T_WRITE_ZEROES => clear(medium, &data, true).map(|()| 0),
        other => Err(Failed::Unknown(other)),
    }
}

fn failed(what: &'static str) -> impl Fn(rustix::io::Errno) -> Failed {
    move |errno| Failed::Host {
        what,
        source: errno.into(),
    }
}

fn writable(medium: &Medium) -> Result<(), Failed> {
    if medium.is_read_only() {
        return Err(Failed::Malformed("writes to a read-only disk"));
    }
    Ok(())
}

/// Where `len` bytes from `sector` on begin, if the disk has them all.
fn place(medium: &Medium, sector: u64, len: usize) -> Result<u64, Failed> {
    let len = u64::try_from(len).unwrap_or(u64::MAX);
    if !len.is_multiple_of(SECTOR) {
        return Err(Failed::Malformed("is not for whole sectors"));
    }
    let end = sector.checked_add(len / SECTOR);
    if end.is_none_or(|end| end > medium.sectors()) {
        return Err(Failed::Malformed("goes beyond the end of the disk"));
    }
    sector
        .checked_mul(SECTOR)
        .ok_or(Failed::Malformed("goes beyond the end of the disk"))
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

/// Moves bytes between the file, from `at` on, and all of `segments`.
fn transfer(
    file: &File,
    segments: &Segments<'_>,
    mut at: u64,
    direction: Direction,
) -> Result<(), Failed> {
    let what = match direction {
        Direction::In => "read from",
        Direction::Out => "write to",
    };
    let mut vectors = Vec::new();
    segments.vectors(&mut vectors);
    let mut rest = vectors.as_mut_slice();
    while !rest.is_empty() {
        let offset = libc::off_t::try_from(at).map_err(|_| Failed::Malformed("is too far away"))?;
        let count = rest.len().min(MAX_PARTS);
        let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: the vectors name guest memory that `segments` borrows, which stays mapped; the kernel
        // checks each access, and no reference of ours points into it.
        let moved = unsafe {
            match direction {
                Direction::In => libc::preadv(fd, rest.as_ptr(), count, offset),
                Direction::Out => libc::pwritev(fd, rest.as_ptr(), count, offset),
            }
        };
        let moved = match usize::try_from(moved) {
            Ok(0) if rest.iter().any(|part| part.iov_len > 0) => {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(Failed::Host { what, source });
            }
            Ok(moved) => moved,
            Err(_) => {
                let source = io::Error::last_os_error();
                if source.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(Failed::Host { what, source });
            }
        };
        at = at.saturating_add(u64::try_from(moved).unwrap_or(u64::MAX));
        rest = skip(rest, moved);
    }
    Ok(())
}

/// What is left of `parts` after their first `done` bytes.
fn skip(parts: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    let mut whole = 0;
    for part in parts.iter_mut() {
        if done < part.iov_len {
            // SAFETY: less than the part's length, so the pointer stays inside of it.
            part.iov_base = unsafe { part.iov_base.cast::<u8>().add(done) }.cast();
            part.iov_len -= done;
            break;
        }
        done -= part.iov_len;
        whole += 1;
    }
    parts.get_mut(whole..).unwrap_or_default()
}

/// Discards ranges, or makes them zeros.
fn clear(medium: &Medium, data: &Segments<'_>, zeros: bool) -> Result<(), Failed> {
    writable(medium)?;
    let most = usize::try_from(MAX_RANGES).unwrap_or(usize::MAX);
    if !data.len().is_multiple_of(RANGE) || data.len() / RANGE > most {
        return Err(Failed::Malformed("has no list of ranges"));
    }
    let mut bytes = vec![0; data.len()];
    data.copy_to(&mut bytes);
    for range in bytes.chunks_exact(RANGE) {
        let mut fields = range.chunks_exact(4).map(|field| {
            let field = <[u8; 4]>::try_from(field).unwrap_or_default();
            u32::from_le_bytes(field)
        });
        let mut next = || fields.next().unwrap_or(0);
        let (low, high, count, flags) = (next(), next(), next(), next());
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (unmap && !zeros) {
            // Section 5.2.6.2: unknown flags are refused as unsupported.
            return Err(Failed::Unknown(flags));
        }
        if count > MAX_RANGE_SECTORS {
            return Err(Failed::Malformed("has too large a range"));
        }
        let sector = u64::from(high) << 32 | u64::from(low);
        let len = u64::from(count).saturating_mul(SECTOR);
        let at = place(medium, sector, usize::try_from(len).unwrap_or(usize::MAX))?;
        if len == 0 {
            continue;
        }
        let flags = if zeros && !unmap {
            FallocateFlags::ZERO_RANGE
        } else {
            FallocateFlags::PUNCH_HOLE
        };
        let what = if zeros {
            "write zeros to"
        } else {
            "discard parts of"
        };
        rustix::fs::fallocate(medium.file(), flags | FallocateFlags::KEEP_SIZE, at, len)
            .map_err(failed(what))?;
    }
    Ok(())
}
