//! What a machine has cost so far.

use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// How often a machine's processors have come to this process, by reason.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    pub(crate) port: AtomicU64,
    pub(crate) mmio_read: AtomicU64,
    pub(crate) mmio_write: AtomicU64,
    pub(crate) interrupted: AtomicU64,
    pub(crate) other: AtomicU64,
}

impl Exits {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> ExitCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts {
            port: read(&self.port),
            mmio_read: read(&self.mmio_read),
            mmio_write: read(&self.mmio_write),
            interrupted: read(&self.interrupted),
            other: read(&self.other),
        }
    }
}

/// Exits to the machine's own process, by reason.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct ExitCounts {
    /// Accesses to ports.
    pub port: u64,
    /// Reads of a device's registers.
    pub mmio_read: u64,
    /// Writes to a device's registers.
    pub mmio_write: u64,
    /// Interruptions by orders from outside.
    pub interrupted: u64,
    /// All else.
    pub other: u64,
}

impl ExitCounts {
    /// All of them.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let parts = [
            self.port,
            self.mmio_read,
            self.mmio_write,
            self.interrupted,
            self.other,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

impl fmt::Display for ExitCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of ports, {} register reads, {} register writes, {} interruptions, {} others",
            self.port, self.mmio_read, self.mmio_write, self.interrupted, self.other
        )
    }
}

/// What a machine has cost since its start.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Metrics {
    /// Exits that KVM could not handle itself.
    pub exits: ExitCounts,
    /// Exits of any kind, where the host's KVM counts them.
    pub all_exits: Option<u64>,
    /// Instructions that the host's KVM has interpreted, where it counts them. On hardware these are
    /// a few accesses to devices; on a KVM without, all of the guest's kernel.
    pub interpreted: Option<u64>,
    /// Interrupts delivered, where the host's KVM counts them.
    pub interrupts: Option<u64>,
    /// Memory of the guest that the host has had to provide, in pages of 4096 bytes.
    pub touched_pages: u64,
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(count) = self.interpreted {
            write!(f, "{count} interpreted instructions, ")?;
        }
        if let Some(count) = self.all_exits {
            write!(f, "{count} exits, ")?;
        }
        write!(
            f,
            "{} of them to the machine's process ({}), {} pages of memory",
            self.exits.sum(),
            self.exits,
            self.touched_pages
        )
    }
}

/// The counters the host's KVM keeps of one processor (`KVM_GET_STATS_FD`).
#[derive(Debug)]
pub(crate) struct KvmCounters {
    fd: OwnedFd,
    /// Name and offset of each single counter.
    known: Vec<(String, u64)>,
}

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// Sizes and limits of the format (Documentation/virt/kvm/api.rst, 4.133).
const HEADER: usize = 24;
const DESCRIPTOR: usize = 24;
const LONGEST_NAME: usize = 256;
const MOST_COUNTERS: usize = 1024;

impl KvmCounters {
    /// The counters of `vcpu`; none if this KVM keeps none.
    pub(crate) fn of(vcpu: &impl AsRawFd) -> Option<Self> {
        // SAFETY: the request takes no argument and returns a new descriptor or an error.
        let number = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD) };
        if number < 0 {
            return None;
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        let known = Self::list(&fd)?;
        Some(Self { fd, known })
    }

    fn list(fd: &OwnedFd) -> Option<Vec<(String, u64)>> {
        let mut header = [0; HEADER];
        read(fd, &mut header, 0)?;
        let word = |at: usize| {
            let bytes = header.get(at..)?.first_chunk()?;
            Some(u64::from(u32::from_ne_bytes(*bytes)))
        };
        let name_size = usize::try_from(word(4)?).ok()?.min(LONGEST_NAME);
        let count = usize::try_from(word(8)?).ok()?.min(MOST_COUNTERS);
        let (descriptors, data) = (word(16)?, word(20)?);
        let each = DESCRIPTOR - 8 + name_size;
        let mut known = Vec::new();
        for index in 0..count {
            let mut bytes = vec![0; each];
            let place = (index as u64).checked_mul(each as u64)?;
            read(fd, &mut bytes, descriptors.checked_add(place)?)?;
            let size = u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?);
            let offset = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
            let name = bytes.get(16..)?.split(|byte| *byte == 0).next()?;
            if size == 1 {
                let name = String::from_utf8_lossy(name).into_owned();
                known.push((name, data.checked_add(u64::from(offset))?));
            }
        }
        Some(known)
    }

    /// The counter `name` now; none if there is no such.
    pub(crate) fn get(&self, name: &str) -> Option<u64> {
        let (_, offset) = self.known.iter().find(|(known, _)| known == name)?;
        let mut bytes = [0; 8];
        read(&self.fd, &mut bytes, *offset)?;
        Some(u64::from_ne_bytes(bytes))
    }

    /// All counters that are not zero, for reports.
    pub(crate) fn all(&self) -> Vec<(String, u64)> {
        let names = self.known.iter().map(|(name, _)| name.clone());
        names
            .filter_map(|name| Some((self.get(&name)?, name)))
            .filter(|(value, _)| *value > 0)
            .map(|(value, name)| (name, value))
            .collect()
    }
}

fn read(fd: &OwnedFd, bytes: &mut [u8], offset: u64) -> Option<()> {
    let got = rustix::io::pread(fd, &mut *bytes, offset).ok()?;
    (got == bytes.len()).then_some(())
}
