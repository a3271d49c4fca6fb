//! The network card: its rings, its configuration space, its turn-taking.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringState, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::frames::{Accepts, Frames, MAX_FRAME};
use super::header::{HEADER_LEN, Header, NUM_BUFFERS, Offload, checked};
use super::used::Used;
use crate::config_space;
use crate::guest::Segments;
use crate::session::{AtomicMemory, Device, Memory, Source, Vring};
use crate::tally::Tally;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUES: usize = 2;
const QUEUE_SIZE: usize = 1024;
/// Tokens of the tap's events and of our own reminder; the session's rules want them above the number
/// of queues.
const HOST: u16 = 3;
const REMINDER: u16 = 4;
/// Frames taken from the guest, and given to it, before the other side has its turn.
const BUDGET: usize = 64;
/// An Ethernet header. The kernel takes nothing shorter.
const MIN_FRAME: usize = 14;
/// A system call takes no more parts than this.
const MAX_PARTS: usize = 1024;

/// A virtio-net device over `F`, which is a tap but for tests.
#[derive(Debug)]
pub struct Net<F> {
    frames: F,
    config: Vec<u8>,
    offered: u64,
    accepted: u64,
    memory: Option<AtomicMemory>,
    tally: Arc<Tally>,
    /// The guest may have put frames into its ring that were not looked at.
    transmit_pending: bool,
    /// The tap may have frames that were not read.
    host_pending: bool,
    /// Header and frame as they were read, and how long they are together.
    frame: Vec<u8>,
    held: Option<usize>,
    used: Used,
    reminder: EventFd,
    said: bool,
}

impl<F: Frames> Net<F> {
    /// A card with hardware address `mac`, which tells its driver of `mtu` (bytes) if there is one.
    ///
    /// # Errors
    /// When there is no event descriptor to be had, or the tap is none.
    pub fn new(frames: F, mac: [u8; 6], mtu: Option<u16>) -> io::Result<Self> {
        let mut offered = bit(VIRTIO_F_VERSION_1)
            | bit(VIRTIO_RING_F_INDIRECT_DESC)
            | bit(VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | bit(VIRTIO_NET_F_MAC)
            | bit(VIRTIO_NET_F_MRG_RXBUF)
            | bit(VIRTIO_NET_F_CSUM)
            | bit(VIRTIO_NET_F_HOST_TSO4)
            | bit(VIRTIO_NET_F_HOST_TSO6);
        let everything = Accepts {
            checksum: true,
            tcp4: true,
            tcp6: true,
        };
        if frames.accept(everything).is_ok() {
            offered |= bit(VIRTIO_NET_F_GUEST_CSUM)
                | bit(VIRTIO_NET_F_GUEST_TSO4)
                | bit(VIRTIO_NET_F_GUEST_TSO6);
        }
        frames.accept(Accepts::default())?;
        // Address, status, number of queue pairs, MTU (virtio 1.2, section 5.1.4).
        let mut config = mac.to_vec();
        config.extend([0; 4]);
        config.extend(mtu.unwrap_or(0).to_le_bytes());
        if mtu.is_some() {
            offered |= bit(VIRTIO_NET_F_MTU);
        }
        Ok(Self {
            frames,
            config,
            offered,
            accepted: 0,
            memory: None,
            tally: Arc::default(),
            transmit_pending: false,
            host_pending: true,
            frame: vec![0; HEADER_LEN + MAX_FRAME + 1],
            held: None,
            used: Used::default(),
            reminder: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            said: false,
        })
    }

    fn has(&self, feature: u32) -> bool {
        self.accepted & bit(feature) != 0
    }

    fn offload(&self) -> Offload {
        Offload {
            checksum: self.has(VIRTIO_NET_F_CSUM),
            tcp4: self.has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: self.has(VIRTIO_NET_F_HOST_TSO6),
        }
    }

    /// Moves frames both ways, within the budget; asks to be called again if that was not all.
    fn turn(&mut self, vrings: &[Vring]) {
        let Some(memory) = self.memory.as_ref().map(GuestAddressSpace::memory) else {
            return;
        };
        let mut more = false;
        if self.transmit_pending
            && let Some(vring) = vrings.get(TRANSMIT)
        {
            match self.transmit(vring, &memory, BUDGET) {
                Ok(unfinished) => more |= unfinished,
                Err(e) => stop(vring, "transmit", &e),
            }
        }
        if self.host_pending
            && let Some(vring) = vrings.get(RECEIVE)
        {
            match self.receive(vring, &memory, BUDGET) {
                Ok(unfinished) => more |= unfinished,
                Err(e) => stop(vring, "receive", &e),
            }
        }
        if more {
            // It can only fail when it is set already.
            let _ = self.reminder.write(1);
        }
    }

    /// Takes frames from the guest's transmit ring until it is empty or the budget is used up.
    /// Returns whether it stopped for the budget's sake.
    fn transmit(&mut self, vring: &Vring, memory: &Memory, mut budget: usize) -> RingResult<bool> {
        let mut state = vring.get_mut();
        if !runs(&state) {
            self.transmit_pending = false;
            return Ok(false);
        }
        let mut used = false;
        loop {
            state.disable_notification()?;
            while budget > 0 {
                let Some(chain) = state.get_queue_mut().iter(memory)?.next() else {
                    break;
                };
                let head = chain.head_index();
                let mut taken = 0;
                match Segments::readable(chain, memory) {
                    Ok(frame) => {
                        taken = frame.len();
                        self.send(frame);
                    }
                    Err(e) => self.complain(&e),
                }
                state.add_used(head, 0)?;
                self.tally.done(taken, 0);
                used = true;
                budget = budget.saturating_sub(1);
            }
            if budget == 0 {
                break;
            }
            if !state.enable_notification()? {
                self.transmit_pending = false;
                break;
            }
        }
        if used && state.needs_notification()? {
            // A full socket (User-Mode Linux) means that a notification is already waiting.
            let _ = state.signal_used_queue();
        }
        Ok(budget == 0)
    }

    /// Hands one frame of the guest to the tap. What the tap does not take is lost, as on a wire.
    fn send(&mut self, mut chain: Segments<'_>) {
        let mut header: Header = [0; HEADER_LEN];
        let frame = chain.split_off(HEADER_LEN);
        if chain.copy_to(&mut header) < HEADER_LEN
            || !(MIN_FRAME..=MAX_FRAME).contains(&frame.len())
        {
            return self.complain(&"A frame is too short or too long");
        }
        let header = match checked(&header, frame.len(), self.offload()) {
            Ok(header) => header,
            Err(e) => return self.complain(&e),
        };
        let mut parts = Vec::with_capacity(4);
        let own = IoSlice::new(&header);
        parts.push(libc::iovec {
            iov_base: own.as_ptr().cast_mut().cast(),
            iov_len: own.len(),
        });
        frame.vectors(&mut parts);
        if parts.len() > MAX_PARTS {
            return self.complain(&"A frame is cut into too many pieces");
        }
        let Ok(count) = libc::c_int::try_from(parts.len()) else {
            return;
        };
        // SAFETY: the first part is `header`, which outlives the call and is only read; the others are
        // the guest's memory, which `frame` borrows.
        let written =
            unsafe { libc::writev(self.frames.as_fd().as_raw_fd(), parts.as_ptr(), count) };
        if written < 0 {
            self.tally.stalled();
            log::debug!("net: a frame was lost: {}", io::Error::last_os_error());
        }
    }

    /// Gives frames of the tap to the guest. Returns whether it stopped for the budget's sake.
    fn receive(&mut self, vring: &Vring, memory: &Memory, budget: usize) -> RingResult<bool> {
        let mut state = vring.get_mut();
        if !runs(&state) {
            return Ok(false);
        }
        state.disable_notification()?;
        let mut left = budget;
        while left > 0 {
            let Some(len) = self.held.take().or_else(|| self.read()) else {
                self.host_pending = false;
                break;
            };
            match self.place(&mut state, memory, len)? {
                Placed::Done => left = left.saturating_sub(1),
                Placed::NoRoom => {
                    self.tally.stalled();
                    self.held = Some(len);
                    break;
                }
            }
        }
        if self.used.wants_news(state.get_queue(), memory)? {
            // A full socket (User-Mode Linux) means that a notification is already waiting.
            let _ = state.signal_used_queue();
        }
        Ok(left == 0)
    }

    /// Reads the next frame of the tap; returns its length with the header.
    fn read(&mut self) -> Option<usize> {
        loop {
            let fd = self.frames.as_fd();
            let len = match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut self.frame)) {
                Ok(len) => len,
                Err(rustix::io::Errno::AGAIN) => return None,
                Err(e) => {
                    // The tap was switched off or taken away: there will be no frame.
                    self.complain(&e);
                    return None;
                }
            };
            // One that fills the buffer was cut off.
            if len > HEADER_LEN && len < self.frame.len() {
                return Some(len);
            }
            if len == 0 {
                return None;
            }
        }
    }

    /// Puts header and frame, `len` bytes, into buffers of the guest.
    fn place(
        &mut self,
        state: &mut VringState<AtomicMemory>,
        memory: &Memory,
        len: usize,
    ) -> RingResult<Placed> {
        let merge = self.has(VIRTIO_NET_F_MRG_RXBUF);
        let mut chains: Vec<(u16, Segments<'_>)> = Vec::with_capacity(1);
        let mut room = 0_usize;
        while room < len {
            let queue = state.get_queue_mut();
            let Some(chain) = queue.iter(memory)?.next() else {
                // Only now does it matter to hear of new buffers.
                if state.enable_notification()? {
                    continue;
                }
                let queue = state.get_queue_mut();
                let hopeless = chains.len() >= usize::from(queue.size());
                give_back(queue, chains.len());
                if hopeless {
                    // All its buffers together cannot hold this frame.
                    self.complain(&"The guest's receive buffers are too small");
                    return Ok(Placed::Done);
                }
                return Ok(Placed::NoRoom);
            };
            let head = chain.head_index();
            match Segments::writable(chain, memory) {
                Ok(buffer) if !buffer.is_empty() => {
                    room = room.saturating_add(buffer.len());
                    chains.push((head, buffer));
                }
                Ok(_) => {
                    self.complain(&"A receive buffer is empty");
                    self.used.publish(queue, memory, &[(head, 0)])?;
                }
                Err(e) => {
                    self.complain(&e);
                    self.used.publish(queue, memory, &[(head, 0)])?;
                }
            }
            if !merge && room < len && !chains.is_empty() {
                give_back(state.get_queue_mut(), chains.len());
                self.complain(&"A receive buffer is too small for a frame");
                return Ok(Placed::Done);
            }
        }
        let Ok(count) = u16::try_from(chains.len()) else {
            give_back(state.get_queue_mut(), chains.len());
            return Ok(Placed::Done);
        };
        let checksum = self.has(VIRTIO_NET_F_GUEST_CSUM);
        if let Some(flags) = self.frame.first_mut().filter(|_| !checksum) {
            // "Was checked already" means nothing to a driver that did not ask.
            *flags = 0;
        }
        if let Some(bytes) = self.frame.get_mut(NUM_BUFFERS) {
            bytes.copy_from_slice(&count.to_le_bytes());
        }
        let mut rest = self.frame.get(..len).unwrap_or_default();
        let mut buffers = Vec::with_capacity(chains.len());
        for (head, buffer) in chains {
            let done = buffer.copy_from(rest);
            rest = rest.get(done..).unwrap_or_default();
            buffers.push((head, u32::try_from(done).unwrap_or(0)));
        }
        self.used.publish(state.get_queue_mut(), memory, &buffers)?;
        self.tally.done(0, u32::try_from(len).unwrap_or(0));
        Ok(Placed::Done)
    }

    /// Says once what is wrong; a guest must not fill the host's disk with it.
    fn complain(&mut self, what: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.said, true) {
            log::warn!("net: {what}; a frame was lost, and further ones are not mentioned");
        }
    }
}

/// What became of a frame.
enum Placed {
    /// The guest has it, or it is lost.
    Done,
    /// The guest has to give buffers first.
    NoRoom,
}

type RingResult<T> = Result<T, QueueError>;

fn bit(feature: u32) -> u64 {
    1 << feature
}

fn runs(state: &VringState<AtomicMemory>) -> bool {
    state.is_enabled() && state.get_queue().ready()
}

/// Makes the last `count` chains available again.
fn give_back(queue: &mut virtio_queue::Queue, count: usize) {
    for _ in 0..count {
        queue.go_to_previous_position();
    }
}

/// Stops a ring whose indices make no sense; the guest has to reset the device.
fn stop(vring: &Vring, name: &str, error: &QueueError) {
    log::error!("net: the guest's {name} ring is broken and is served no more: {error}");
    vring.set_queue_ready(false);
}

impl<F: Frames> VhostUserBackendMut for Net<F> {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn acked_features(&mut self, features: u64) {
        self.accepted = features;
        let accepts = Accepts {
            checksum: self.has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: self.has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: self.has(VIRTIO_NET_F_GUEST_TSO6),
        };
        if let Err(e) = self.frames.accept(accepts) {
            // The kernel refuses segments without checksums; the driver then gets plain frames.
            self.complain(&e);
        }
    }

    fn reset_device(&mut self) {
        self.acked_features(0);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config_space(&self.config, offset, size)
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
        match event {
            HOST => self.host_pending = true,
            REMINDER => {
                let _ = self.reminder.read();
            }
            _ if usize::from(event) == TRANSMIT => self.transmit_pending = true,
            // New buffers: for the frame that is held, and for those behind it.
            _ => self.host_pending = true,
        }
        self.turn(vrings);
        Ok(())
    }
}

impl<F: Frames> Device for Net<F> {
    const NAME: &'static str = "net";
    // QEMU's network cards do.
    const EARLY_ENABLE: bool = true;

    fn sources(&self) -> Vec<Source> {
        vec![
            // As long as the guest has no buffer, frames stay where they are.
            Source::on_change(self.frames.as_fd().as_raw_fd(), HOST),
            Source::while_ready(self.reminder.as_raw_fd(), REMINDER),
        ]
    }

    fn stopped(&self) -> bool {
        false
    }

    fn disconnected(&mut self, vrings: &[Vring]) {
        // What the guest sent before its end still counts.
        if let (Some(memory), Some(vring)) = (
            self.memory.as_ref().map(GuestAddressSpace::memory),
            vrings.get(TRANSMIT),
        ) && let Err(e) = self.transmit(vring, &memory, QUEUE_SIZE)
        {
            stop(vring, "transmit", &e);
        }
    }

    fn drained(&self) -> bool {
        true
    }

    fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}
