//! What `bulkhead vmm` is started with.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use bulkhead_jail::Jail;
use serde::{Deserialize, Serialize};

/// The machine to make, and the jail to make it in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmmConfig {
    /// To be entered before anything of the guest runs.
    pub jail: Jail,
    /// The kernel, an uncompressed ELF file. A path of the host, opened before the jail is entered.
    pub kernel: PathBuf,
    /// The initial file system, a cpio archive; as `kernel`.
    pub initramfs: PathBuf,
    /// Words of the kernel's command line, besides those that tell of the machine itself.
    pub cmdline: Vec<String>,
    /// Size of the memory, MiB.
    pub memory_mib: u64,
    /// Whether it is made of huge pages of 2 MiB; its size is a whole number of these then.
    pub huge_pages: bool,
    /// Number of processors, 1 to 64.
    pub vcpus: u8,
    /// Inherited connections to vhost-user back ends.
    pub devices: Vec<DeviceConfig>,
    /// Inherited end of the control channel, see [`crate::control`].
    pub control_fd: RawFd,
}

/// One virtio device.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// What it is.
    pub kind: DeviceKind,
    /// The inherited connection.
    pub fd: RawFd,
}

/// Kinds of virtio devices.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A shared file system.
    Fs,
    /// Streams to the host.
    Vsock,
    /// A network card.
    Net,
    /// A disk.
    Block,
    /// Random bytes.
    Entropy,
    /// Memory that goes back to the host.
    Balloon,
}

impl DeviceKind {
    /// Virtio device type (virtio 1.2, section 5).
    pub(crate) fn virtio_id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Entropy => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
            Self::Fs => 26,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fs => "file system",
            Self::Vsock => "vsock",
            Self::Net => "network",
            Self::Block => "block",
            Self::Entropy => "entropy",
            Self::Balloon => "balloon",
        })
    }
}
