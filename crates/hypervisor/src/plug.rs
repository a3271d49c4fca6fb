//! Devices that come to a machine, and leave it, while it runs.

use std::path::Path;

use crate::HypervisorError;

/// What can be plugged. The other devices of a machine are there from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlugKind {
    /// A network card.
    Net,
    /// A disk.
    Block,
}

/// A device that was plugged, as the guest's kernel is to be told of it. Its driver
/// (`/sys/bus/platform/drivers/<driver>`) takes `words` by its file `plug`, and gives the device `name`; by
/// that its file `unplug` lets go of it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// The driver.
    pub driver: &'static str,
    /// Where the device is.
    pub words: String,
    /// What the guest's kernel calls it.
    pub name: String,
    pub(crate) number: usize,
}

/// A machine to which devices come while it runs.
pub trait Pluggable {
    /// Gives the machine one more device, whose vhost-user back end listens on `socket`. The guest knows
    /// nothing of it until it is told what this returns. Blocks until the back end has answered, or not at
    /// all.
    ///
    /// # Errors
    /// When the machine has no place for one more, or the hypervisor or the back end refuses; the machine is
    /// then as it was.
    fn plug(&self, kind: PlugKind, socket: &Path) -> Result<Plugged, HypervisorError>;

    /// Takes a device away. The guest should have let go of it.
    ///
    /// # Errors
    /// When the hypervisor does not answer, or has ended.
    fn unplug(&self, device: &Plugged) -> Result<(), HypervisorError>;
}
