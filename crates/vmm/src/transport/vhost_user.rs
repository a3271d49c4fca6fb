//! A device in the device process: its rings, memory and events handed over by vhost-user.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::registers::QUEUE_NOTIFY;
use super::{Backend, Ring};
use crate::VmmError;
use crate::config::DeviceKind;
use crate::memory::Memory;

/// More rings than a device of ours has.
const MOST_RINGS: u64 = 16;
/// Descriptors of a ring, at most: what our devices take.
const RING_SIZE: u16 = 1024;
/// Those of a vsock device: its driver fills a whole ring with buffers of 4 KiB as soon as it starts,
/// and twice what a stream's credit covers is enough.
const VSOCK_RING_SIZE: u16 = 128;
/// As much of a device's configuration as any of ours has.
const CONFIGURATION: usize = 64;

const NEEDED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::CONFIG
    .union(VhostUserProtocolFeatures::MQ)
    .union(VhostUserProtocolFeatures::REPLY_ACK);

/// Features that a register file without shared memory, ring reset or bound memory can pass on.
const PASSED_ON: u64 = !(1 << 33 | 1 << 34 | 1 << 40);

/// A balloon's configuration (virtio 1.2, section 5.5.4): pages wanted of the driver, and pages it has
/// given. It is of this process alone: the back end gives back whatever it is told of.
const WANTED: std::ops::Range<usize> = 0..4;
const GIVEN: std::ops::Range<usize> = 4..8;

/// The connection to one device.
pub(crate) struct VhostUser {
    kind: DeviceKind,
    front_end: Frontend,
    memory: Arc<Memory>,
    features: u64,
    configuration: Vec<u8>,
    kicks: Vec<EventFd>,
    /// The guest's interrupt, also given to the back end.
    interrupt: EventFd,
}

impl std::fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUser")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl VhostUser {
    /// Shakes hands over `socket`; waits for the back end as long as that lives.
    ///
    /// # Errors
    /// [`VmmError::Device`] when the back end is gone, refuses, or lacks something;
    /// [`VmmError::Host`] when the host gives no event descriptors.
    pub(crate) fn connect(
        kind: DeviceKind,
        socket: UnixStream,
        memory: Arc<Memory>,
    ) -> Result<Self, VmmError> {
        let failed = |step| move |source| VmmError::Device { kind, step, source };
        let mut front_end = Frontend::from_stream(socket, MOST_RINGS);
        front_end.set_owner().map_err(failed("claim"))?;
        let features = front_end
            .get_features()
            .map_err(failed("ask for the features of"))?;
        let offered = front_end
            .get_protocol_features()
            .map_err(failed("ask for the protocol of"))?;
        if !offered.contains(NEEDED) {
            return Err(VmmError::DeviceProtocol { kind });
        }
        front_end
            .set_protocol_features(NEEDED)
            .map_err(failed("agree on a protocol with"))?;
        // From here on each order is answered, so that a refusal is seen where it belongs.
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let count = front_end
            .get_queue_num()
            .map_err(failed("ask for the rings of"))?;
        let (_, configuration) = front_end
            .get_config(
                0,
                u32::try_from(CONFIGURATION).unwrap_or(0),
                VhostUserConfigFlags::empty(),
                &[0; CONFIGURATION],
            )
            .map_err(failed("ask for the configuration of"))?;
        let count = usize::try_from(count.min(MOST_RINGS)).unwrap_or(0);
        Ok(Self {
            kind,
            front_end,
            memory,
            features,
            configuration,
            kicks: (0..count).map(|_| event()).collect::<Result<_, _>>()?,
            interrupt: event()?,
        })
    }

    /// Lets the host's kernel pass kicks and interrupts without this process: the device's page is at
    /// `address`, its interrupt is `irq`.
    ///
    /// # Errors
    /// [`VmmError::Kvm`].
    pub(crate) fn wire(&self, vm: &VmFd, address: u64, irq: u32) -> Result<(), VmmError> {
        for (number, kick) in (0_u32..).zip(&self.kicks) {
            let register = IoEventAddress::Mmio(address.saturating_add(QUEUE_NOTIFY));
            vm.register_ioevent(kick, &register, number)
                .map_err(VmmError::kvm("watch the kicks of a ring"))?;
        }
        vm.register_irqfd(&self.interrupt, irq)
            .map_err(VmmError::kvm("connect the interrupt of a device"))
    }

    /// Undoes [`wire`](Self::wire).
    ///
    /// # Errors
    /// [`VmmError::Kvm`], after all has been tried.
    pub(crate) fn unwire(&self, vm: &VmFd, address: u64, irq: u32) -> Result<(), VmmError> {
        let mut result = vm
            .unregister_irqfd(&self.interrupt, irq)
            .map_err(VmmError::kvm("disconnect the interrupt of a device"));
        for (number, kick) in (0_u32..).zip(&self.kicks) {
            let register = IoEventAddress::Mmio(address.saturating_add(QUEUE_NOTIFY));
            let unwatched = vm
                .unregister_ioevent(kick, &register, number)
                .map_err(VmmError::kvm("forget the kicks of a ring"));
            result = result.and(unwatched);
        }
        result
    }

    fn ring_size(&self) -> u16 {
        match self.kind {
            DeviceKind::Vsock => VSOCK_RING_SIZE,
            _ => RING_SIZE,
        }
    }

    /// Whether this is a balloon.
    pub(crate) fn is_balloon(&self) -> bool {
        self.kind == DeviceKind::Balloon
    }

    /// How many pages of 4096 bytes the driver of a balloon is to give; [`Registers::reconfigure`]
    /// tells it.
    ///
    /// [`Registers::reconfigure`]: super::Registers::reconfigure
    pub(crate) fn want(&mut self, pages: u32) {
        if let Some(place) = self.configuration.get_mut(WANTED) {
            place.copy_from_slice(&pages.to_le_bytes());
        }
    }

    /// How many pages the driver of a balloon says it has given.
    pub(crate) fn given(&self) -> u32 {
        let bytes = self.configuration.get(GIVEN);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    }

    fn start_ring(&mut self, number: usize, ring: &Ring) -> Result<(), vhost::Error> {
        let most = self.ring_size();
        let front_end = &mut self.front_end;
        let Some(kick) = self.kicks.get(number) else {
            return Ok(());
        };
        front_end.set_vring_num(number, ring.size)?;
        front_end.set_vring_addr(
            number,
            &VringConfigData {
                queue_max_size: most,
                queue_size: ring.size,
                flags: 0,
                desc_table_addr: ring.descriptors,
                used_ring_addr: ring.device,
                avail_ring_addr: ring.driver,
                log_addr: None,
            },
        )?;
        front_end.set_vring_base(number, 0)?;
        front_end.set_vring_call(number, &self.interrupt)?;
        front_end.set_vring_kick(number, kick)?;
        front_end.set_vring_enable(number, true)
    }
}

fn event() -> Result<EventFd, VmmError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| VmmError::Host {
        step: "make an event descriptor",
        source,
    })
}

impl Backend for VhostUser {
    fn device_type(&self) -> u32 {
        self.kind.virtio_id()
    }

    fn features(&self) -> u64 {
        self.features & PASSED_ON & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn rings(&self) -> (usize, u16) {
        (self.kicks.len(), self.ring_size())
    }

    fn configuration(&self, offset: usize, bytes: &mut [u8]) {
        let here = self.configuration.get(offset..).unwrap_or_default();
        for (place, byte) in bytes.iter_mut().zip(here) {
            *place = *byte;
        }
    }

    fn set_configuration(&mut self, offset: usize, bytes: &[u8]) {
        if self.is_balloon()
            && offset == GIVEN.start
            && bytes.len() == GIVEN.len()
            && let Some(place) = self.configuration.get_mut(GIVEN)
        {
            place.copy_from_slice(bytes);
        }
    }

    fn start(&mut self, features: u64, rings: &[(usize, Ring)]) -> Result<(), VmmError> {
        let kind = self.kind;
        let failed = |step| move |source| VmmError::Device { kind, step, source };
        let features = features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.front_end
            .set_features(features)
            .map_err(failed("agree on features with"))?;
        self.front_end
            .set_mem_table(&self.memory.table())
            .map_err(failed("share the memory with"))?;
        for (number, ring) in rings {
            self.start_ring(*number, ring)
                .map_err(failed("start a ring of"))?;
        }
        Ok(())
    }

    fn kick(&mut self, number: usize) {
        if let Some(kick) = self.kicks.get(number) {
            // Its counter is full of kicks nobody has taken yet; one more changes nothing.
            let _ = kick.write(1);
        }
    }

    fn stop(&mut self) -> Result<(), VmmError> {
        let kind = self.kind;
        for number in 0..self.kicks.len() {
            self.front_end
                .set_vring_enable(number, false)
                .and_then(|()| self.front_end.get_vring_base(number).map(drop))
                .map_err(|source| VmmError::Device {
                    kind,
                    step: "stop a ring of",
                    source,
                })?;
        }
        Ok(())
    }

    fn is_memory(&self, address: u64, length: u64) -> bool {
        self.memory.holds(address, length)
    }

    fn notify(&mut self) {
        let _ = self.interrupt.write(1);
    }
}
