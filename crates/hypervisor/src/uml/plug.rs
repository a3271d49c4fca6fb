//! Devices for a kernel that runs: its process connects to their back ends itself, by sockets that come to
//! its jail.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cmdline::{VIRTIO_BLOCK, VIRTIO_NET};
use crate::driver::{Control, Measurable, Pausable, Resizable};
use crate::{HypervisorError, Machine, PlugKind, Pluggable, Plugged, launch};

/// The jail of a running kernel, seen as the place for sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    jailed: OwnedFd,
    owner: (u32, u32),
    /// Number of the next device. The kernel counts those of its command line itself, from 0.
    next: AtomicUsize,
}

impl Sockets {
    pub(super) fn new(machine: &Machine, jailed: &OwnedFd) -> Result<Self, HypervisorError> {
        let jailed = jailed.try_clone().map_err(|source| HypervisorError::Host {
            step: "watch the hypervisor of",
            path: machine.kernel.image.clone(),
            source,
        })?;
        let first = [&machine.fs_socket, &machine.vsock_socket];
        let first = first.into_iter().flatten().count();
        let next = first
            .saturating_add(machine.nets.len())
            .saturating_add(machine.disks.len());
        Ok(Self {
            jailed,
            owner: (machine.uid, machine.gid),
            next: AtomicUsize::new(next),
        })
    }
}

/// Where the socket of a device is in the jail.
fn place(number: usize) -> PathBuf {
    PathBuf::from(format!("/plug{number}"))
}

impl Pluggable for Sockets {
    fn plug(&self, kind: PlugKind, socket: &Path) -> Result<Plugged, HypervisorError> {
        let virtio_id = match kind {
            PlugKind::Net => VIRTIO_NET,
            PlugKind::Block => VIRTIO_BLOCK,
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let target = place(number).display().to_string();
        let entry = launch::socket_of(socket, &target, self.owner)?;
        bulkhead_jail::plug(&self.jailed, &[entry]).map_err(|source| HypervisorError::Jail {
            step: "show a device's socket to",
            source,
        })?;
        Ok(Plugged {
            driver: "virtio-uml",
            words: format!("{target}:{virtio_id}:{number}"),
            name: format!("virtio-uml.{number}"),
            number,
        })
    }

    fn unplug(&self, device: &Plugged) -> Result<(), HypervisorError> {
        bulkhead_jail::unplug(&self.jailed, &[place(device.number)]).map_err(|source| {
            HypervisorError::Jail {
                step: "hide a device's socket from",
                source,
            }
        })
    }
}

impl Control for Sockets {
    fn as_pausable(&self) -> Option<&dyn Pausable> {
        None
    }

    fn as_measurable(&self) -> Option<&dyn Measurable> {
        None
    }

    fn as_resizable(&self) -> Option<&dyn Resizable> {
        None
    }

    fn as_pluggable(&self) -> Option<&dyn Pluggable> {
        Some(self)
    }
}
