//! The disk: its ring, its configuration space.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Error as QueueError};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::request::{self, MAX_RANGE_SECTORS, MAX_RANGES};
use super::{SECTOR, SERIAL_LEN};
use crate::config_space;
use crate::guest::Segments;
use crate::ring::{Moved, answer_all};
use crate::session::{AtomicMemory, Device, Memory, Source, Vring};
use crate::tally::Tally;

const QUEUES: usize = 1;
// QEMU lets a driver behind memory-mapped registers make its rings as long as that, always.
const QUEUE_SIZE: usize = 1024;
/// The most parts of one request, besides header and status.
const MAX_SEGMENTS: u32 = 126;
/// Length of the configuration space as far as we fill it, bytes.
const SPACE: usize = 60;

/// What is on the disk.
#[derive(Debug)]
pub struct Medium {
    file: File,
    sectors: u64,
    read_only: bool,
    serial: String,
}

impl Medium {
    /// A disk that is `file`, a block device or a regular one; a part of a sector at its end is left
    /// out. `serial` is the name the guest can ask for, of which the first 20 bytes count.
    ///
    /// # Errors
    /// When the size cannot be found out.
    pub fn new(mut file: File, read_only: bool, serial: &str) -> io::Result<Self> {
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            sectors: size / SECTOR,
            read_only,
            serial: serial.chars().take(SERIAL_LEN).collect(),
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn serial(&self) -> &str {
        &self.serial
    }
}

/// A virtio block device.
#[derive(Debug)]
pub struct Block {
    medium: Medium,
    space: [u8; SPACE],
    memory: Option<AtomicMemory>,
    tally: Arc<Tally>,
    warned: bool,
}

impl Block {
    /// A device with `medium` in it.
    #[must_use]
    pub fn new(medium: Medium) -> Self {
        Self {
            space: space(&medium),
            medium,
            memory: None,
            tally: Arc::default(),
            warned: false,
        }
    }

    /// Serves requests of the ring until there are none.
    fn serve(&mut self, vring: &Vring) -> Result<(), QueueError> {
        let Some(memory) = self.memory.as_ref().map(GuestAddressSpace::memory) else {
            return Ok(());
        };
        let tally = Arc::clone(&self.tally);
        answer_all(vring, &memory, &tally, |chain| self.answer(&memory, chain))
    }

    /// Does one request and tells the guest how it went.
    fn answer(&mut self, memory: &Memory, chain: DescriptorChain<&Memory>) -> Moved {
        let (Ok(request), Ok(mut reply)) = (
            Segments::readable(chain.clone(), memory),
            Segments::writable(chain, memory),
        ) else {
            self.complain(&"A descriptor names memory the guest does not have");
            return (0, 0);
        };
        // The last byte is for the status, wherever the guest has put it.
        let Some(data) = reply.len().checked_sub(1) else {
            self.complain(&"A request has no room for its status");
            return (0, 0);
        };
        let taken = request.len();
        let status = reply.split_off(data);
        let (code, written) = match request::serve(&self.medium, request, &reply) {
            Ok(written) => (0, written),
            Err(error) => {
                self.complain(&error);
                (error.status(), 0)
            }
        };
        status.copy_from(&[code]);
        let written = u32::try_from(written.saturating_add(1)).unwrap_or(u32::MAX);
        (taken, written)
    }

    /// Says once what is wrong; a guest must not fill the host's disk with it.
    fn complain(&mut self, what: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.warned, true) {
            log::warn!("block: {what}; more of the kind is not reported");
        }
    }
}

/// The configuration space (virtio 1.2, section 5.2.4).
fn space(medium: &Medium) -> [u8; SPACE] {
    let mut space = [0; SPACE];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in space.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &medium.sectors.to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    for at in [36, 48] {
        put(at, &MAX_RANGE_SECTORS.to_le_bytes());
    }
    for at in [40, 52] {
        put(at, &MAX_RANGES.to_le_bytes());
    }
    // Discarded ranges begin at any multiple of this many sectors.
    put(44, &1_u32.to_le_bytes());
    // Zeros may be made by discarding.
    put(56, &[1]);
    space
}

impl VhostUserBackendMut for Block {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let writing = if self.medium.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH
            | writing
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
        config_space(&self.space, offset, size)
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
        if let Err(e) = self.serve(vring) {
            log::error!("block: the guest's ring is broken and is served no more: {e}");
            vring.set_queue_ready(false);
        }
        Ok(())
    }
}

impl Device for Block {
    const NAME: &'static str = "block";

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn stopped(&self) -> bool {
        false
    }

    fn disconnected(&mut self, vrings: &[Vring]) {
        // What the guest wrote before its end still counts.
        for vring in vrings {
            if let Err(e) = self.serve(vring) {
                log::error!("block: the guest's ring is broken: {e}");
            }
        }
    }

    fn drained(&self) -> bool {
        true
    }

    fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}
