//! The virtio entropy device: random bytes of the host's kernel (virtio 1.2, section 5.4).

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::DescriptorChain;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use crate::config_space;
use crate::guest::Segments;
use crate::ring::answer_all;
use crate::session::{AtomicMemory, Device, Memory, Source, Vring};
use crate::tally::Tally;

const QUEUES: usize = 1;
// QEMU lets a driver behind memory-mapped registers make its rings as long as that, always.
const QUEUE_SIZE: usize = 1024;

/// The most bytes one request gets, whatever it has room for: more than a driver asks for, and so few
/// that the host's generator is not asked for a burst by one kick.
pub const MOST: usize = 256;

/// A virtio entropy device.
#[derive(Debug, Default)]
pub struct Entropy {
    memory: Option<AtomicMemory>,
    tally: Arc<Tally>,
}

/// Fills what the guest set aside; returns how many bytes it got.
fn answer(memory: &Memory, chain: DescriptorChain<&Memory>) -> u32 {
    let Ok(room) = Segments::writable(chain, memory) else {
        return 0;
    };
    let mut bytes = [0; MOST];
    let wanted = room.len().min(MOST);
    let got = bytes.get_mut(..wanted).map_or(0, |bytes| {
        // It does not wait: the host has long been up. What it does not give, the guest does not get.
        getrandom(bytes, GetRandomFlags::NONBLOCK).unwrap_or(0)
    });
    let written = room.copy_from(bytes.get(..got).unwrap_or_default());
    u32::try_from(written).unwrap_or(0)
}

impl VhostUserBackendMut for Entropy {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&mut self) {}

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config_space(&[], offset, size)
    }

    fn update_memory(&mut self, memory: AtomicMemory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn handle_event(
        &mut self,
        event: u16,
        _: EventSet,
        vrings: &[Vring],
        _: usize,
    ) -> io::Result<()> {
        let memory = self.memory.as_ref().map(GuestAddressSpace::memory);
        let (Some(vring), Some(memory)) = (vrings.get(usize::from(event)), memory) else {
            return Ok(());
        };
        if let Err(e) = answer_all(vring, &memory, &self.tally, |chain| {
            (0, answer(&memory, chain))
        }) {
            log::error!("entropy: the guest's ring is broken and is served no more: {e}");
            vring.set_queue_ready(false);
        }
        Ok(())
    }
}

impl Device for Entropy {
    const NAME: &'static str = "entropy";

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn stopped(&self) -> bool {
        false
    }

    // Nobody is left to read.
    fn disconnected(&mut self, _: &[Vring]) {}

    fn drained(&self) -> bool {
        true
    }

    fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}
