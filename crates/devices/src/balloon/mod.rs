//! The virtio balloon (virtio 1.2, section 5.5): memory the guest does not use goes back to the host.
//!
//! Two ways lead there. By free-page reporting the guest tells of memory it has freed, in blocks of
//! some MiB, of its own accord; it may use it again without a word. By inflating it gives away as much
//! as the host asks for and keeps off it until it deflates. How much that is, is told by the
//! configuration space, which belongs to the front end: this device only gives back.

mod give;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Error as QueueError};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use crate::config_space;
use crate::guest::Segments;
use crate::ring::answer_all;
use crate::session::{AtomicMemory, Device, Memory, Source, Vring};
use crate::tally::Tally;

use give::{Given, listed, reported};

/// Features (virtio 1.2, section 5.5.3): the guest takes memory back before it kills for want of it,
/// and reports what it has freed.
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

/// The rings there are with these features. The one of reports comes last and takes the number of
/// one that is left out, which is how drivers count.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORTS: u16 = 2;
const QUEUES: usize = 3;
// QEMU lets a driver behind memory-mapped registers make its rings as long as that, always.
const QUEUE_SIZE: usize = 1024;

/// Length of the configuration space: pages wanted, pages given.
const SPACE: usize = 8;

/// A virtio balloon.
#[derive(Debug, Default)]
pub struct Balloon {
    memory: Option<AtomicMemory>,
    tally: Arc<Tally>,
    warned: bool,
}

impl Balloon {
    /// Gives back what one request names.
    fn answer(&mut self, event: u16, memory: &Memory, chain: DescriptorChain<&Memory>) {
        let given = match event {
            INFLATE => listed(memory, chain),
            REPORTS => reported(memory, chain),
            // The guest uses the pages again; the host gives it new ones when it touches them.
            DEFLATE.. => return,
        };
        if let Given::Less(error) = given
            // Once; a guest must not fill the host's disk with it.
            && !std::mem::replace(&mut self.warned, true)
        {
            log::warn!("balloon: {error}; more of the kind is not reported");
        }
    }

    fn serve(&mut self, event: u16, vring: &Vring) -> Result<(), QueueError> {
        let Some(memory) = self.memory.as_ref().map(GuestAddressSpace::memory) else {
            return Ok(());
        };
        let tally = Arc::clone(&self.tally);
        answer_all(vring, &memory, &tally, |chain| {
            // What it lists counts, not the memory it gives back.
            let listed = match event {
                REPORTS => 0,
                _ => Segments::readable(chain.clone(), &memory).map_or(0, |list| list.len()),
            };
            self.answer(event, &memory, chain);
            (listed, 0)
        })
    }
}

impl VhostUserBackendMut for Balloon {
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
            | DEFLATE_ON_OOM
            | REPORTING
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
        config_space(&[0; SPACE], offset, size)
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
        let Some(vring) = vrings.get(usize::from(event)) else {
            return Ok(());
        };
        if let Err(e) = self.serve(event, vring) {
            log::error!("balloon: the guest's ring is broken and is served no more: {e}");
            vring.set_queue_ready(false);
        }
        Ok(())
    }
}

impl Device for Balloon {
    const NAME: &'static str = "balloon";

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn stopped(&self) -> bool {
        false
    }

    // All of its memory goes back now.
    fn disconnected(&mut self, _: &[Vring]) {}

    fn drained(&self) -> bool {
        true
    }

    fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}
