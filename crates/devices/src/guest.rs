//! The guest side of a packet: the memory a descriptor chain names.
//!
//! Header and payload may be cut into descriptors anywhere. Every descriptor is checked against
//! the guest's memory before its address is used.

use std::collections::VecDeque;
use std::ops::Deref;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::BS;
use vm_memory::{GuestMemory, VolatileSlice};

use crate::session::Memory;

type Slice<'m> = VolatileSlice<'m, BS<'m, BitmapMmapRegion>>;

/// The chain names memory that the guest does not have, or its lengths overflow.
#[derive(Debug, thiserror::Error)]
#[error("A descriptor of the guest names memory that it does not have")]
pub struct BadChain;

/// The parts of guest memory that one direction of a descriptor chain names, in order.
#[derive(Debug)]
pub struct Segments<'m> {
    slices: Vec<Slice<'m>>,
    len: usize,
}

impl<'m> Segments<'m> {
    /// What the guest wrote for us to read.
    ///
    /// # Errors
    /// [`BadChain`].
    pub fn readable<M>(chain: DescriptorChain<M>, memory: &'m Memory) -> Result<Self, BadChain>
    where
        M: Deref<Target = Memory>,
    {
        Self::collect(chain.readable(), memory)
    }

    /// What the guest set aside for us to fill.
    ///
    /// # Errors
    /// [`BadChain`].
    pub fn writable<M>(chain: DescriptorChain<M>, memory: &'m Memory) -> Result<Self, BadChain>
    where
        M: Deref<Target = Memory>,
    {
        Self::collect(chain.writable(), memory)
    }

    fn collect(
        descriptors: impl Iterator<Item = Descriptor>,
        memory: &'m Memory,
    ) -> Result<Self, BadChain> {
        let mut segments = Self {
            slices: Vec::with_capacity(2),
            len: 0,
        };
        for descriptor in descriptors {
            let len = usize::try_from(descriptor.len()).map_err(|_| BadChain)?;
            for slice in memory.get_slices(descriptor.addr(), len) {
                let slice = slice.map_err(|_| BadChain)?;
                segments.len = segments.len.checked_add(slice.len()).ok_or(BadChain)?;
                segments.slices.push(slice);
            }
        }
        Ok(segments)
    }

    /// Bytes in all segments together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts the segments at `at`: this keeps the first `at` bytes (or all), the rest is returned.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        let mut rest = Vec::new();
        let mut kept = 0_usize;
        let mut slices = std::mem::take(&mut self.slices).into_iter();
        for slice in slices.by_ref() {
            let want = at.saturating_sub(kept);
            if slice.len() <= want {
                kept = kept.saturating_add(slice.len());
                self.slices.push(slice);
                continue;
            }
            match slice.split_at(want) {
                Ok((head, tail)) => {
                    kept = kept.saturating_add(head.len());
                    if !head.is_empty() {
                        self.slices.push(head);
                    }
                    rest.push(tail);
                }
                Err(_) => rest.push(slice),
            }
            break;
        }
        rest.extend(slices);
        let len = self.len.saturating_sub(kept);
        self.len = kept;
        Self { slices: rest, len }
    }

    /// Reads from the start into `buffer`; returns how many bytes there were.
    pub fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = buffer.get_mut(done..) else {
                break;
            };
            done += slice.copy_to(rest);
        }
        done
    }

    /// Writes `bytes` to the start; returns how many found room.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = bytes.get(done..) else { break };
            let count = rest.len().min(slice.len());
            slice.copy_from(rest.get(..count).unwrap_or(rest));
            done += count;
        }
        done
    }

    /// Appends what follows the first `skip` bytes to `queue`.
    pub fn append_to(&self, mut skip: usize, queue: &mut VecDeque<u8>) {
        queue.reserve(self.len.saturating_sub(skip));
        let mut chunk = [0; 4096];
        for slice in &self.slices {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let mut at = skip;
            skip = 0;
            while at < slice.len() {
                let Ok(part) = slice.offset(at) else { break };
                let count = part.copy_to(&mut chunk);
                queue.extend(chunk.iter().take(count));
                at = at.saturating_add(count);
            }
        }
    }

    /// Adds the segments to `vectors` for a system call. The pointers are good as long as the guest
    /// memory that `self` borrows is mapped.
    pub fn vectors(&self, vectors: &mut Vec<libc::iovec>) {
        vectors.extend(self.slices.iter().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
    }
}
