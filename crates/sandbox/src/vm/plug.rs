//! Devices that come to the machine while it runs, on the host's side: what the guest is told is the
//! sandbox's part.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bulkhead_devices::vsock::control::{Plugged, Slot};
use bulkhead_hypervisor::PlugKind;
use bulkhead_network::Mac;

use super::{Vm, VmError, devices::listen, open_dir, step};

/// The devices that have come, by their names.
#[derive(Debug)]
pub(super) struct Plugs {
    next: AtomicU32,
    inside: Mutex<BTreeMap<Slot, bulkhead_hypervisor::Plugged>>,
    cards: Mutex<BTreeMap<Mac, Slot>>,
}

impl Plugs {
    /// Numbers begin after those of the `count` devices of a kind that were there at the start.
    pub(super) fn after(count: usize) -> Self {
        Self {
            next: AtomicU32::new(u32::try_from(count).unwrap_or(u32::MAX)),
            inside: Mutex::default(),
            cards: Mutex::default(),
        }
    }

    fn inside(&self) -> MutexGuard<'_, BTreeMap<Slot, bulkhead_hypervisor::Plugged>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cards(&self) -> MutexGuard<'_, BTreeMap<Mac, Slot>> {
        self.cards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device the machine has been given, and its guest has not taken yet.
#[derive(Debug)]
pub struct Offer {
    /// Its name.
    pub slot: Slot,
    /// What the guest is to be told.
    pub device: bulkhead_hypervisor::Plugged,
    _socket: SocketFile,
}

/// A socket in the file system, gone with this.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // What is left is removed with the directory.
        let _ = fs::remove_file(&self.0);
    }
}

impl Vm {
    /// Whether devices can come to this machine while it runs.
    #[must_use]
    pub fn can_plug(&self) -> bool {
        self.machine.as_pluggable().is_some()
    }

    /// A number for a device that is to come.
    #[must_use]
    pub fn next_device(&self) -> u32 {
        self.plugs.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Gives the machine `device`, behind which is `medium`. Its socket is made in `dir` and is there as long
    /// as the offer is.
    ///
    /// # Errors
    /// [`VmError::Fixed`] of a machine no device can come to; what failed, with nothing left.
    pub async fn offer(
        &self,
        dir: &Path,
        device: Plugged,
        medium: OwnedFd,
    ) -> Result<Offer, VmError> {
        let slot = device.slot();
        let kind = match slot {
            Slot::Net(_) => PlugKind::Net,
            Slot::Block(_) => PlugKind::Block,
        };
        let name = format!("{slot}.sock");
        let opened = open_dir(dir).map_err(step("open the container's directory"))?;
        let socket = listen(&opened, &name, self.uid)?;
        let file = SocketFile(dir.join(name));
        self.channel
            .plug(device, socket, medium)
            .map_err(step("hand a device to the device process"))?;
        let (machine, path) = (self.machine.clone(), file.0.clone());
        let plug = move || {
            let pluggable = machine.as_pluggable()?;
            Some(pluggable.plug(kind, &path))
        };
        // A hypervisor that its guest has taken over may keep the order waiting.
        let plugged = tokio::task::spawn_blocking(plug).await;
        let plugged = match plugged {
            Ok(Some(plugged)) => plugged.map_err(VmError::from),
            // It is not called off, and does not panic.
            Ok(None) | Err(_) => Err(VmError::Fixed),
        };
        let device = plugged.inspect_err(|_| self.channel.unplug(slot))?;
        self.plugs.inside().insert(slot, device.clone());
        Ok(Offer {
            slot,
            device,
            _socket: file,
        })
    }

    /// What the guest calls the device of that name, if it has come while the machine runs.
    #[must_use]
    pub fn plugged(&self, slot: Slot) -> Option<bulkhead_hypervisor::Plugged> {
        self.plugs.inside().get(&slot).cloned()
    }

    /// Remembers which network card has come for a hardware address.
    pub fn keep_card(&self, mac: Mac, slot: Slot) {
        self.plugs.cards().insert(mac, slot);
    }

    /// The card that has come for a hardware address, to be forgotten.
    #[must_use]
    pub fn take_card(&self, mac: Mac) -> Option<Slot> {
        self.plugs.cards().remove(&mac)
    }

    /// Takes a device away from the machine, whether its guest has let go of it or not.
    pub async fn withdraw(&self, slot: Slot) {
        let Some(device) = self.plugs.inside().remove(&slot) else {
            return;
        };
        // In any case: what a guest holds on to is dead then.
        self.channel.unplug(slot);
        let machine = self.machine.clone();
        let unplug = move || match machine.as_pluggable() {
            Some(pluggable) => pluggable.unplug(&device),
            None => Ok(()),
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(unplug).await {
            tracing::warn!("{}", crate::error::chain(&error));
        }
    }
}
