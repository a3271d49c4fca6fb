//! The vhost-user requests: memory table, ring addresses, kick and call descriptors.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, PoisonError};

use rustix::fs::OFlags;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostUserError, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};
use vhost_user_backend::VringT;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestRegionMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{AtomicMemory, Device, Memory, Vring};

/// Where the front end's own addresses lie in guest memory; ring addresses arrive as the former.
#[derive(Debug)]
struct Mapping {
    front_end: u64,
    size: u64,
    guest: u64,
}

pub(super) struct Handler<D: Device> {
    device: D,
    epoll: Arc<Epoll>,
    memory: AtomicMemory,
    mappings: Vec<Mapping>,
    vrings: Vec<Vring>,
    owned: bool,
    features: u64,
}

impl<D: Device> std::fmt::Debug for Handler<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handler")
            .field("device", &D::NAME)
            .field("mappings", &self.mappings)
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}

impl<D: Device> Handler<D> {
    pub(super) fn new(device: D, epoll: Arc<Epoll>) -> io::Result<Self> {
        let memory = AtomicMemory::new(Memory::new());
        let size = u16::try_from(device.max_queue_size()).map_err(io::Error::other)?;
        let vrings = (0..device.num_queues())
            .map(|_| Vring::new(memory.clone(), size).map_err(io::Error::other))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            epoll,
            memory,
            mappings: Vec::new(),
            vrings,
            owned: false,
            features: 0,
        })
    }

    /// Whether the front end has said which features the driver takes.
    pub(super) fn has_features(&self) -> bool {
        self.features != 0
    }

    pub(super) fn device(&self) -> &D {
        &self.device
    }

    /// Hands an event to the device. A device reports its own failures; what comes back here is
    /// what no request could be blamed for.
    pub(super) fn dispatch(&mut self, token: u16) {
        if let Some(vring) = self.vrings.get(usize::from(token)) {
            let state = vring.get_ref();
            if let Some(kick) = state.get_kick() {
                // The descriptor does not block; a kick somebody else took is no kick lost.
                let _ = kick.consume();
            }
            if !state.is_enabled() {
                return;
            }
        }
        if let Err(e) = self
            .device
            .handle_event(token, EventSet::IN, &self.vrings, 0)
        {
            log::error!("{}: event {token} could not be handled: {e}", D::NAME);
        }
    }

    pub(super) fn disconnected(&mut self) {
        for index in 0..self.vrings.len() {
            self.unwatch(index);
        }
        self.device.disconnected(&self.vrings);
    }

    fn vring(&self, index: usize) -> Result<&Vring> {
        self.vrings.get(index).ok_or(VhostUserError::InvalidParam)
    }

    /// Takes the ring's kick out of the epoll set. Must come before the descriptor is dropped: the
    /// front end holds another copy, so closing ours would leave the registration behind.
    fn unwatch(&self, index: usize) {
        if let Some(vring) = self.vrings.get(index)
            && let Some(kick) = vring.get_ref().get_kick()
        {
            let _ = self.epoll.ctl(
                ControlOperation::Delete,
                kick.as_raw_fd(),
                EpollEvent::default(),
            );
        }
    }

    /// Brings the epoll set in line with the state of ring `index`, and starts the ring if it is
    /// complete.
    fn watch(&mut self, index: usize) -> Result<()> {
        self.unwatch(index);
        let vring = self.vring(index)?;
        if vring.get_ref().get_kick().is_some() && !self.mappings.is_empty() {
            vring.set_queue_ready(true);
        }
        let state = vring.get_ref();
        let Some(kick) = state.get_kick() else {
            return Ok(());
        };
        if !state.get_queue().ready() || !state.is_enabled() {
            return Ok(());
        }
        self.epoll
            .ctl(
                ControlOperation::Add,
                kick.as_raw_fd(),
                EpollEvent::new(EventSet::IN, index as u64),
            )
            .map_err(VhostUserError::ReqHandlerError)
    }

    fn guest_address(&self, front_end: u64) -> Result<u64> {
        self.mappings
            .iter()
            .find_map(|m| {
                let offset = front_end.checked_sub(m.front_end)?;
                (offset < m.size).then(|| m.guest.checked_add(offset))?
            })
            .ok_or(VhostUserError::InvalidParam)
    }

    fn replace_memory(&mut self, memory: Memory) -> Result<()> {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(memory);
        self.device
            .update_memory(self.memory.clone())
            .map_err(VhostUserError::ReqHandlerError)
    }
}

/// Keeps a descriptor that the front end may have made blocking from stopping the event loop.
fn unblock(file: &File) -> Result<()> {
    let set = || -> rustix::io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(file.as_fd())?;
        rustix::fs::fcntl_setfl(file.as_fd(), flags | OFlags::NONBLOCK)
    };
    set().map_err(|e| VhostUserError::ReqHandlerError(e.into()))
}

fn invalid<E: Into<Box<dyn std::error::Error + Send + Sync>>>(e: E) -> VhostUserError {
    VhostUserError::ReqHandlerError(io::Error::other(e))
}

fn unsupported<T>() -> Result<T> {
    Err(VhostUserError::ReqHandlerError(
        io::ErrorKind::Unsupported.into(),
    ))
}

impl<D: Device> VhostUserBackendReqHandlerMut for Handler<D> {
    fn set_owner(&mut self) -> Result<()> {
        if self.owned {
            return Err(VhostUserError::InvalidOperation("already claimed"));
        }
        self.owned = true;
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.owned = false;
        self.features = 0;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.vring(index)?.set_enabled(false);
            self.unwatch(index);
        }
        self.features = 0;
        self.device.reset_device();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.device.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.device.features() != 0 {
            return Err(VhostUserError::InvalidParam);
        }
        self.features = features;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for vring in &self.vrings {
            vring.set_queue_event_idx(event_idx);
        }
        self.device.set_event_idx(event_idx);
        self.device.acked_features(features);
        // Without the protocol features there is no request to enable a ring.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for index in 0..self.vrings.len() {
                self.vring(index)?.set_enabled(true);
                self.watch(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(&mut self, table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let mut regions = Vec::with_capacity(table.len());
        let mut mappings = Vec::with_capacity(table.len());
        for (region, file) in table.iter().zip(files) {
            let base = GuestAddress(region.guest_phys_addr);
            regions.push(
                GuestRegionMmap::new(region.mmap_region(file)?, base)
                    .ok_or(VhostUserError::InvalidParam)?,
            );
            mappings.push(Mapping {
                front_end: region.user_addr,
                size: region.memory_size,
                guest: region.guest_phys_addr,
            });
        }
        self.replace_memory(Memory::from_regions(regions).map_err(invalid)?)?;
        self.mappings = mappings;
        Ok(())
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let num = u16::try_from(num).map_err(|_| VhostUserError::InvalidParam)?;
        if !num.is_power_of_two() || usize::from(num) > self.device.max_queue_size() {
            return Err(VhostUserError::InvalidParam);
        }
        self.vring(index as usize)?.set_queue_size(num);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let (descriptor, available, used) = (
            self.guest_address(descriptor)?,
            self.guest_address(available)?,
            self.guest_address(used)?,
        );
        let vring = self.vring(index as usize)?;
        vring
            .set_queue_info(descriptor, available, used)
            .map_err(|_| VhostUserError::InvalidParam)?;
        // The base request carries only the available index; the used one is in the ring.
        let next = vring.queue_used_idx().map_err(invalid)?;
        vring.set_queue_next_used(next);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| VhostUserError::InvalidParam)?;
        self.vring(index as usize)?.set_queue_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.unwatch(index as usize);
        let vring = self.vring(index as usize)?;
        // This request is also the order to stop the ring.
        vring.set_queue_ready(false);
        let next = vring.queue_next_avail();
        vring.set_kick(None);
        vring.set_call(None);
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        if let Some(file) = &file {
            unblock(file)?;
        }
        let index = usize::from(index);
        self.unwatch(index);
        self.vring(index)?.set_kick(file);
        self.watch(index)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        if let Some(file) = &file {
            unblock(file)?;
        }
        self.vring(usize::from(index))?.set_call(file);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(usize::from(index))?.set_err(file);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.device.protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.device.protocol_features() | VhostUserProtocolFeatures::REPLY_ACK;
        if features & !offered.bits() != 0 {
            return Err(VhostUserError::InvalidParam);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index as usize)?.set_enabled(enable);
        self.watch(index as usize)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.device.get_config(offset, size))
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        self.device
            .set_config(offset, data)
            .map_err(VhostUserError::ReqHandlerError)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported()
    }

    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _: File) -> Result<()> {
        unsupported()
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported()
    }
}
