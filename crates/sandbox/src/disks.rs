//! Block devices of the host on their way to the guest.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bulkhead_agent_api::messages;
use bulkhead_oci::plan::Disk;

/// The most disks of one machine: each takes an interrupt and a thread.
pub const MOST: usize = 16;

/// Why a block device cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is none of that number.
    #[error(
        "linux.devices[{index}] ({path}): the host has no block device {major}:{minor}: \
         `lsblk` lists those it has"
    )]
    Missing {
        /// Index in `linux.devices`.
        index: usize,
        /// Where the container is to have it.
        path: PathBuf,
        /// The number.
        major: u32,
        /// The number.
        minor: u32,
    },
    /// It cannot be opened.
    #[error("linux.devices[{index}]: cannot open {node} of the host {purpose}")]
    Open {
        /// Index in `linux.devices`.
        index: usize,
        /// The node on the host.
        node: PathBuf,
        /// For what.
        purpose: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Opens the block device of the host that has the disk's number.
///
/// # Errors
/// See [`DiskError`].
pub fn open(disk: &Disk) -> Result<File, DiskError> {
    let node = node(disk).ok_or_else(|| DiskError::Missing {
        index: disk.index,
        path: disk.path.clone(),
        major: disk.major,
        minor: disk.minor,
    })?;
    OpenOptions::new()
        .read(true)
        .write(!disk.read_only)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(&node)
        .map_err(|source| DiskError::Open {
            index: disk.index,
            node,
            purpose: if disk.read_only {
                "for reading"
            } else {
                "for writing (a device for reading only is asked for with access `r`)"
            },
            source,
        })
}

/// A node of the host with the disk's number: the one the kernel names, or the container's own path.
fn node(disk: &Disk) -> Option<PathBuf> {
    let (major, minor) = (disk.major, disk.minor);
    let event = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let named = event.unwrap_or_default();
    let named = named.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let named = named.map(|name| Path::new("/dev").join(name));
    let is_it = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| {
            found.file_type().is_block_device() && found.rdev() == rustix::fs::makedev(major, minor)
        })
    };
    named.into_iter().chain([disk.path.clone()]).find(is_it)
}

/// The disks, as the agent is told; `numbers` are those the machine has them by.
#[must_use]
pub fn messages(disks: &[Disk], numbers: &[u32]) -> Vec<messages::Disk> {
    let numbered = disks.iter().zip(numbers);
    numbered
        .map(|(disk, number)| messages::Disk {
            major: disk.major,
            minor: disk.minor,
            serial: bulkhead_devices::block::serial(*number),
            ..Default::default()
        })
        .collect()
}
