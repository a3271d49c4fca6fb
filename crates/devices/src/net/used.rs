//! Returning buffers to a ring, several at once.
//!
//! A frame that fills several buffers must appear to the driver as a whole: it looks for the others
//! as soon as it sees the first. The queue of `virtio-queue` publishes each buffer by itself and
//! counts for itself when the driver wants to hear of them, so this does both.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::session::Memory;

/// Layout of the rings (virtio 1.2, sections 2.7.6 and 2.7.8).
const RING_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAILABLE_ELEMENT: u64 = 2;
const INDEX: u64 = 2;

/// The used ring of one queue since the driver was last told.
#[derive(Debug, Default)]
pub struct Used {
    /// Buffers returned that it was not told of.
    news: Wrapping<u16>,
}

impl Used {
    /// Returns buffers, by their heads and what was written into each, all in one moment.
    ///
    /// # Errors
    /// When the ring does not lie in the guest's memory.
    pub fn publish(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        buffers: &[(u16, u32)],
    ) -> Result<(), Error> {
        let mut next = Wrapping(queue.next_used());
        for (head, len) in buffers {
            let slot = next.0.checked_rem(queue.size()).unwrap_or(0);
            let at = offset(
                queue.used_ring(),
                RING_HEADER,
                u64::from(slot),
                USED_ELEMENT,
            )?;
            let mut element = [0; 8];
            let (first, second) = element.split_at_mut(4);
            first.copy_from_slice(&u32::from(*head).to_le_bytes());
            second.copy_from_slice(&len.to_le_bytes());
            memory
                .write_slice(&element, at)
                .map_err(Error::GuestMemory)?;
            next += 1;
            self.news += 1;
        }
        queue.set_next_used(next.0);
        let at = offset(queue.used_ring(), INDEX, 0, 0)?;
        memory
            .store(next.0.to_le(), at, Ordering::Release)
            .map_err(Error::GuestMemory)
    }

    /// Whether the driver wants to be told of what was returned since the last call.
    ///
    /// # Errors
    /// When the ring does not lie in the guest's memory.
    pub fn wants_news(&mut self, queue: &Queue, memory: &Memory) -> Result<bool, Error> {
        let news = std::mem::take(&mut self.news);
        if news == Wrapping(0) {
            return Ok(false);
        }
        if !queue.event_idx_enabled() {
            return Ok(true);
        }
        // What was returned must be visible before its wish is read, or both sides may wait.
        fence(Ordering::SeqCst);
        let slot = u64::from(queue.size());
        let at = offset(queue.avail_ring(), RING_HEADER, slot, AVAILABLE_ELEMENT)?;
        let wish: u16 = memory
            .load(at, Ordering::Relaxed)
            .map_err(Error::GuestMemory)?;
        let wish = Wrapping(u16::from_le(wish));
        let next = Wrapping(queue.next_used());
        Ok(next - wish - Wrapping(1) < news)
    }
}

fn offset(base: u64, header: u64, slot: u64, size: u64) -> Result<GuestAddress, Error> {
    slot.checked_mul(size)
        .and_then(|offset| offset.checked_add(header))
        .and_then(|offset| base.checked_add(offset))
        .map(GuestAddress)
        .ok_or(Error::AddressOverflow)
}
