//! The vsock device: its rings, its configuration space, its turn-taking.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{VhostUserBackendMut, VringState, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::control::Plug;
use super::mux::Mux;
use crate::config_space;
use crate::guest::Segments;
use crate::session::{AtomicMemory, Device, Memory, Source, Vring};
use crate::tally::{Tallies, Tally};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUES: usize = 3;
const QUEUE_SIZE: usize = 1024;
/// The token of the host side's events; the session's rules want it above the number of queues.
const HOST: u16 = 4;
/// Packets taken from the guest, and given to it, before the other side has its turn.
const BUDGET: usize = 128;

/// A virtio-vsock device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    mux: Mux,
    memory: Option<AtomicMemory>,
    tally: Arc<Tally>,
    /// The guest may have put packets into its ring that were not looked at.
    transmit_pending: bool,
}

impl Vsock {
    /// A device for the guest with context id `guest_cid` (3 or more, below 2^32) over `mux`.
    #[must_use]
    pub fn new(guest_cid: u64, mux: Mux) -> Self {
        Self {
            guest_cid,
            mux,
            memory: None,
            tally: Arc::default(),
            transmit_pending: false,
        }
    }

    /// Does what the sandbox process asks for beside streams: it is told of `tallies`, and of those of this
    /// device, and further devices are served by `plug`.
    pub fn attend_to(&mut self, mut tallies: Tallies, plug: Box<dyn Plug>) {
        tallies.add((Self::NAME.to_owned(), Arc::clone(&self.tally)));
        self.mux.attend_to(tallies, plug);
    }

    /// Moves packets both ways, within the budget; asks to be called again if that was not all.
    fn turn(&mut self, vrings: &[Vring], budget: usize) {
        let Some(memory) = self.memory.as_ref().map(GuestAddressSpace::memory) else {
            return;
        };
        if self.transmit_pending
            && let Some(vring) = vrings.get(TRANSMIT)
            && let Err(e) = self.transmit(vring, &memory, budget)
        {
            stop(vring, "transmit", &e);
        }
        let mut more = false;
        if self.mux.has_output()
            && let Some(vring) = vrings.get(RECEIVE)
        {
            match self.receive(vring, &memory, budget) {
                Ok(unfinished) => more = unfinished,
                Err(e) => stop(vring, "receive", &e),
            }
        }
        if more || (self.transmit_pending && self.mux.can_take()) {
            self.mux.wake();
        }
    }

    /// Takes packets from the guest's transmit ring until it is empty, the budget is used up, or
    /// the guest first has to take what is owed to it.
    fn transmit(&mut self, vring: &Vring, memory: &Memory, mut budget: usize) -> RingResult<()> {
        let mut state = vring.get_mut();
        if !runs(&state) {
            return Ok(());
        }
        let mut used = false;
        loop {
            state.disable_notification()?;
            while budget > 0 && self.mux.can_take() {
                let Some(chain) = state.get_queue_mut().iter(memory)?.next() else {
                    break;
                };
                let head = chain.head_index();
                let mut taken = 0;
                match Segments::readable(chain, memory) {
                    Ok(packet) => {
                        taken = packet.len();
                        self.mux.packet(packet);
                    }
                    Err(e) => self.mux.junk(&e.to_string()),
                }
                state.add_used(head, 0)?;
                self.tally.done(taken, 0);
                used = true;
                budget -= 1;
            }
            if !self.mux.can_take() {
                self.tally.stalled();
                break;
            }
            if budget == 0 {
                break;
            }
            if !state.enable_notification()? {
                self.transmit_pending = false;
                break;
            }
        }
        if used {
            signal(&mut state)?;
        }
        Ok(())
    }

    /// Fills the guest's receive buffers. Returns whether it stopped for the budget's sake.
    fn receive(&mut self, vring: &Vring, memory: &Memory, budget: usize) -> RingResult<bool> {
        let mut state = vring.get_mut();
        if !runs(&state) {
            return Ok(false);
        }
        let mut used = false;
        let mut left = budget;
        while self.mux.has_output() && left > 0 {
            let Some(chain) = state.get_queue_mut().iter(memory)?.next() else {
                // Only now does it matter to hear of new buffers.
                if state.enable_notification()? {
                    continue;
                }
                self.tally.stalled();
                break;
            };
            left -= 1;
            let head = chain.head_index();
            let room = match Segments::writable(chain, memory) {
                Ok(room) => room,
                Err(e) => {
                    self.mux.junk(&e.to_string());
                    state.add_used(head, 0)?;
                    used = true;
                    continue;
                }
            };
            match self.mux.next_packet(room) {
                Some(len) => {
                    state.add_used(head, len)?;
                    self.tally.done(0, len);
                    used = true;
                }
                None => {
                    state.get_queue_mut().go_to_previous_position();
                    break;
                }
            }
        }
        if used {
            signal(&mut state)?;
        }
        Ok(left == 0)
    }
}

type RingResult<T> = Result<T, QueueError>;

fn runs(state: &VringState<AtomicMemory>) -> bool {
    state.is_enabled() && state.get_queue().ready()
}

fn signal(state: &mut VringState<AtomicMemory>) -> RingResult<()> {
    if state.needs_notification()? {
        // A full socket (User-Mode Linux) means that a notification is already waiting.
        let _ = state.signal_used_queue();
    }
    Ok(())
}

/// Stops a ring whose indices make no sense; the guest has to reset the device.
fn stop(vring: &Vring, name: &str, error: &QueueError) {
    log::error!("vsock: the guest's {name} ring is broken and is served no more: {error}");
    vring.set_queue_ready(false);
}

impl VhostUserBackendMut for Vsock {
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

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config_space(&self.guest_cid.to_le_bytes(), offset, size)
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
            HOST => self.mux.host_events(),
            _ if usize::from(event) == TRANSMIT => self.transmit_pending = true,
            _ => {}
        }
        self.turn(vrings, BUDGET);
        Ok(())
    }
}

impl Device for Vsock {
    const NAME: &'static str = "vsock";

    fn sources(&self) -> Vec<Source> {
        vec![Source::while_ready(self.mux.event_fd(), HOST)]
    }

    fn stopped(&self) -> bool {
        self.mux.is_abandoned()
    }

    fn disconnected(&mut self, vrings: &[Vring]) {
        // What the guest put into the ring before its end still counts: the last line of a
        // program's output is often there.
        self.mux.guest_deaf();
        self.transmit_pending = true;
        if let (Some(memory), Some(vring)) = (
            self.memory.as_ref().map(GuestAddressSpace::memory),
            vrings.get(TRANSMIT),
        ) && let Err(e) = self.transmit(vring, &memory, QUEUE_SIZE)
        {
            stop(vring, "transmit", &e);
        }
        self.transmit_pending = false;
        self.mux.guest_gone();
    }

    fn drained(&self) -> bool {
        self.mux.is_idle()
    }

    fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}
