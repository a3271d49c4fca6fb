//! A guest made of nothing but memory and rings, for tests and fuzz targets: it puts descriptor
//! chains of any shape before a device and looks at what comes back.

use std::num::Wrapping;

use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::epoll::EventSet;

use crate::session::{AtomicMemory, Device, Memory, Vring};

/// Descriptors in each ring.
pub const RING: u16 = 256;
/// Where memory for buffers begins, as a guest address.
pub const DATA: u64 = 0x2_0000;
/// Size of the guest's memory in bytes.
pub const MEMORY: usize = 4 << 20;

/// Distance between the rings of two queues in guest memory.
const STRIDE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const DESCRIPTOR: u64 = 16;

/// One descriptor: address and length of a buffer, and whether the device may write it.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Guest address.
    pub at: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether it is for the device to write.
    pub write: bool,
}

/// A device and the guest in front of it.
#[allow(
    missing_debug_implementations,
    reason = "rings have no useful representation"
)]
pub struct Rig<D> {
    /// The device.
    pub device: D,
    memory: AtomicMemory,
    /// The rings, in the device's order.
    pub vrings: Vec<Vring>,
    queues: Vec<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    descriptors: Wrapping<u16>,
    available: Wrapping<u16>,
    used: Wrapping<u16>,
}

impl<D: Device> Rig<D> {
    /// Gives `device` a guest whose driver is up.
    pub fn new(device: D) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
        Self::with_memory(device, memory)
    }

    /// The same with this memory, of which the first [`DATA`] bytes are the rings.
    pub fn with_memory(mut device: D, memory: Memory) -> Self {
        let memory = AtomicMemory::new(memory);
        device.update_memory(memory.clone()).expect("memory");
        let vrings: Vec<Vring> = (0u64..)
            .take(device.num_queues())
            .map(|index| {
                let vring = Vring::new(memory.clone(), RING).expect("ring");
                let base = index * STRIDE;
                vring
                    .set_queue_info(base, base + AVAILABLE, base + USED)
                    .expect("addresses");
                vring.set_queue_ready(true);
                vring.set_enabled(true);
                vring
            })
            .collect();
        let queues = vrings.iter().map(|_| Queue::default()).collect();
        Self {
            device,
            memory,
            vrings,
            queues,
        }
    }

    /// Writes `bytes` into guest memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, GuestAddress(at))
            .expect("inside guest memory");
    }

    /// Reads `len` bytes of guest memory.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in guest memory");
        bytes
    }

    /// Makes one chain of `parts` available in ring `queue`; returns its head.
    pub fn offer(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let base = queue as u64 * STRIDE;
        let head = self.queues[queue].descriptors;
        for (i, part) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let index = self.queues[queue].descriptors.0 % RING;
            self.queues[queue].descriptors += 1;
            let next = self.queues[queue].descriptors.0 % RING;
            let flags = if last { 0 } else { NEXT } | if part.write { WRITE } else { 0 };
            self.descriptor(queue, index, part.at, part.len, flags, next);
        }
        let head = head.0 % RING;
        let slot = u64::from(self.queues[queue].available.0 % RING);
        self.queues[queue].available += 1;
        self.put(base + AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.put(
            base + AVAILABLE + 2,
            &self.queues[queue].available.0.to_le_bytes(),
        );
        head
    }

    /// Writes a raw descriptor.
    pub fn descriptor(&self, queue: usize, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(at.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(
            queue as u64 * STRIDE + DESCRIPTOR * u64::from(index % RING),
            &bytes,
        );
    }

    /// Tells the device to look at ring `queue`, or at another event source by its token.
    pub fn kick(&mut self, event: u16) {
        self.device
            .handle_event(event, EventSet::IN, &self.vrings, 0)
            .expect("events are handled");
    }

    /// The chains the device has returned since the last call: head and bytes written.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let base = queue as u64 * STRIDE + USED;
        let index = self.get(base + 2, 2);
        let index = Wrapping(u16::from_le_bytes([index[0], index[1]]));
        let mut chains = Vec::new();
        while self.queues[queue].used != index {
            let slot = u64::from(self.queues[queue].used.0 % RING);
            let element = self.get(base + 4 + 8 * slot, 8);
            let head = u16::from_le_bytes([element[0], element[1]]);
            let len = u32::from_le_bytes([element[4], element[5], element[6], element[7]]);
            chains.push((head, len));
            self.queues[queue].used += 1;
        }
        chains
    }
}
