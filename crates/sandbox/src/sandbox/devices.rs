//! Devices that come to the running machine, and leave it: the host's side and the guest's, together.

use bulkhead_devices::vsock::control::{Plugged, Slot};
use bulkhead_oci::plan::Disk;

use super::*;
use crate::disks;
use crate::vm::{Offer, VmError};

/// How long a guest may take for devices that come or go. Its drivers ask no one but the host.
const PATIENCE: Duration = Duration::from_secs(20);

impl Sandbox {
    /// Gives the machine disks; returns the numbers it has them by.
    ///
    /// # Errors
    /// What failed; none of them is left then.
    pub async fn plug_disks(&self, vm: &Vm, wanted: &[Disk]) -> Result<Vec<u32>, SandboxError> {
        let mut devices = Vec::with_capacity(wanted.len());
        let mut numbers = Vec::with_capacity(wanted.len());
        for disk in wanted {
            let number = vm.next_device();
            let read_only = disk.read_only;
            let medium = disks::open(disk).map_err(VmError::from)?;
            devices.push((Plugged::Block { number, read_only }, medium.into()));
            numbers.push(number);
        }
        self.plug(vm, devices).await?;
        Ok(numbers)
    }

    /// Gives the machine devices, each with what is behind it. Returns when the guest's drivers have them.
    ///
    /// # Errors
    /// What failed; none of them is left then.
    pub(super) async fn plug(
        &self,
        vm: &Vm,
        devices: Vec<(Plugged, OwnedFd)>,
    ) -> Result<(), SandboxError> {
        if devices.is_empty() {
            return Ok(());
        }
        let mut offers = Vec::with_capacity(devices.len());
        let taken = self.offer_all(vm, devices, &mut offers).await;
        if taken.is_err() {
            for offer in &offers {
                vm.withdraw(offer.slot).await;
            }
        }
        taken
    }

    /// What the machine was given is in `offers` even after an error.
    async fn offer_all(
        &self,
        vm: &Vm,
        devices: Vec<(Plugged, OwnedFd)>,
        offers: &mut Vec<Offer>,
    ) -> Result<(), SandboxError> {
        let began = now_ns();
        let dir = self.paths.dir();
        for (device, medium) in devices {
            offers.push(vm.offer(&dir, device, medium).await?);
        }
        let request = messages::DevicesRequest {
            come: offers.iter().map(|offer| message(&offer.device)).collect(),
            ..Default::default()
        };
        self.change_devices(vm, &request).await?;
        self.span(Actor::Host, "plug devices", began);
        Ok(())
    }

    /// Takes devices away that have come while the machine runs; those that have not are left alone. A guest
    /// that does not let go of them loses them all the same.
    pub(super) async fn unplug(&self, vm: &Vm, slots: Vec<Slot>) {
        let known = slots.iter().filter_map(|slot| vm.plugged(*slot));
        let request = messages::DevicesRequest {
            go: known.map(|device| message(&device)).collect(),
            ..Default::default()
        };
        if request.go.is_empty() {
            return;
        }
        if let Err(error) = self.change_devices(vm, &request).await {
            tracing::warn!("{}", crate::error::chain(&error));
        }
        for slot in slots {
            vm.withdraw(slot).await;
        }
    }

    async fn change_devices(
        &self,
        vm: &Vm,
        request: &messages::DevicesRequest,
    ) -> Result<(), SandboxError> {
        const STEP: &str = "take or let go of devices";
        let call = vm.agent.change_devices(Context::default(), request);
        let asked = self.ask(vm, STEP, call);
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        answer.map_or_else(
            |_elapsed| {
                Err(SandboxError::Unanswered {
                    step: STEP,
                    seconds: PATIENCE.as_secs(),
                })
            },
            |answer| answer.map(drop),
        )
    }
}

fn message(device: &bulkhead_hypervisor::Plugged) -> messages::Device {
    messages::Device {
        driver: device.driver.to_owned(),
        words: device.words.clone(),
        name: device.name.clone(),
        ..Default::default()
    }
}
