//! Which stream a packet belongs to, which descriptor an event belongs to, and who is next.
//!
//! Everything here is bounded: expectations and connections together by [`MAX_STREAMS`], a
//! connection's backlog by [`super::stream::BUFFER`], resets by [`MAX_RESETS`] plus one per
//! connection (the guest's packets wait in its ring meanwhile), events by what the sandbox process
//! asked for (its requests wait in the socket meanwhile).

mod requests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::{Connection, Fill};
use super::control::{DeviceChannel, Event, Plug};
use super::host::{Direction, HostFd};
use super::packet::{HEADER_BYTES, HEADER_LEN, Header, Junk, Op, Pair};
use super::stream::{Incoming, Stream};
use crate::guest::Segments;
use crate::tally::Tallies;
use requests::HostEnds;

/// Most expectations and connections at one time.
pub const MAX_STREAMS: usize = 512;
/// Resets owed to the guest from which on its packets are left in its ring.
const MAX_RESETS: usize = 256;
/// Host events handled in one go before the rings get their turn.
const BATCH: usize = 32;

const CONTROL: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// A place for a connection; `life` tells events of its successive tenants apart.
#[derive(Debug, Default)]
struct Slot {
    life: u32,
    connection: Option<Connection>,
}

/// The streams of one guest.
#[derive(Debug)]
pub struct Mux {
    guest_cid: u64,
    epoll: Arc<Epoll>,
    wake: EventFd,
    control: DeviceChannel,
    control_closed: bool,
    proc_fd: Option<OwnedFd>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    pairs: HashMap<Pair, usize>,
    expected: HashMap<u32, HostEnds>,
    /// Connections with something for the guest, served in turn.
    queue: VecDeque<usize>,
    resets: VecDeque<Pair>,
    events: VecDeque<Event>,
    /// Whether the front end is gone: nothing is sent any more.
    guest_gone: bool,
    warned: bool,
    tallies: Tallies,
    plug: Option<Box<dyn Plug>>,
}

impl Mux {
    /// A multiplexer for the guest with context id `guest_cid`, steered over `control`. `proc_fd`
    /// is an open `/proc/self/fd`, see [`HostFd::new`].
    ///
    /// # Errors
    /// When the event descriptors cannot be made.
    pub fn new(
        guest_cid: u64,
        control: DeviceChannel,
        proc_fd: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        for (fd, token) in [(control.as_raw_fd(), CONTROL), (wake.as_raw_fd(), WAKE)] {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        let mut mux = Self {
            guest_cid,
            epoll,
            wake,
            control,
            control_closed: false,
            proc_fd,
            slots: Vec::new(),
            free: Vec::new(),
            pairs: HashMap::new(),
            expected: HashMap::new(),
            queue: VecDeque::new(),
            resets: VecDeque::new(),
            events: VecDeque::new(),
            guest_gone: false,
            warned: false,
            tallies: Tallies::default(),
            plug: None,
        };
        mux.tell(Event::Ready);
        Ok(mux)
    }

    /// What the sandbox process is told when it asks for counts, and who serves further devices.
    pub fn attend_to(&mut self, tallies: Tallies, plug: Box<dyn Plug>) {
        self.tallies = tallies;
        self.plug = Some(plug);
    }

    /// Becomes readable when [`Self::host_events`] has work.
    #[must_use]
    pub fn event_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Whether the sandbox process closed the control channel.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.control_closed
    }

    /// Whether no connection is left.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.connection.is_none())
    }

    /// Whether another packet of the guest may be taken in.
    #[must_use]
    pub fn can_take(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether [`Self::next_packet`] may have something; it can still turn out that it has not.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.queue.is_empty()
    }

    /// Makes [`Self::event_fd`] readable, for work that was put off.
    pub fn wake(&self) {
        // It fails only when it is readable already.
        let _ = self.wake.write(1);
    }

    /// The guest takes no more packets; those it has sent may still be taken in.
    pub fn guest_deaf(&mut self) {
        self.guest_gone = true;
        self.resets.clear();
    }

    /// The guest is gone: what it sent is still delivered, nothing else happens.
    pub fn guest_gone(&mut self) {
        self.guest_deaf();
        self.expected.clear();
        let all: Vec<usize> = self.pairs.values().copied().collect();
        for slot in all {
            self.detach(slot);
        }
    }

    // --- packets of the guest ---

    /// Takes in one packet.
    pub fn packet(&mut self, mut head: Segments<'_>) {
        let mut payload = head.split_off(HEADER_LEN);
        let mut bytes = [0; HEADER_LEN];
        if head.copy_to(&mut bytes) < HEADER_LEN {
            self.junk("a packet shorter than its header");
            return;
        }
        let header = match Header::from_guest(&bytes, self.guest_cid) {
            Ok(header) => header,
            Err(Junk::Unsupported(pair)) => {
                self.junk("a packet of an unknown type or operation");
                self.reset(pair);
                return;
            }
            Err(Junk::Address | Junk::Reset) => {
                self.junk("a packet that is for nobody");
                return;
            }
        };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > payload.len() {
            self.junk("a packet whose payload is shorter than announced");
            self.reset(header.pair);
            return;
        }
        drop(payload.split_off(len));
        match (self.pairs.get(&header.pair), header.op) {
            (Some(&slot), _) => self.stream_packet(slot, &header, &payload),
            (None, Op::Request) => self.accept(&header),
            (None, Op::Reset) => {}
            (None, _) => self.reset(header.pair),
        }
    }

    fn stream_packet(&mut self, slot: usize, header: &Header, payload: &Segments<'_>) {
        let Some(connection) = connection(&mut self.slots, slot) else {
            return;
        };
        let len = if header.op == Op::Data { header.len } else { 0 };
        match connection.stream.receive(header, len) {
            Ok(Incoming::Deliver) if !payload.is_empty() => connection.deliver(payload),
            Ok(Incoming::Nothing | Incoming::Discard | Incoming::Deliver) => {}
            Ok(Incoming::Connected) => {
                let event = Event::Connected {
                    port: header.pair.host,
                    at_ns: now(),
                };
                self.tell(event);
            }
            Ok(Incoming::Reset) => {
                let refused = !connection.stream.is_open();
                if refused {
                    self.remove(
                        slot,
                        Some(Event::Refused {
                            port: header.pair.host,
                        }),
                    );
                } else {
                    self.detach(slot);
                }
                return;
            }
            Ok(Incoming::Shutdown) => {
                connection.guest_shutdown();
                let theirs = connection.stream.theirs();
                if theirs.send && theirs.receive {
                    // The guest waits for this before it forgets the stream; what is left to
                    // write does not need it any more.
                    self.owe_reset(header.pair);
                    self.detach(slot);
                    return;
                }
            }
            Err(violation) => {
                log::debug!("vsock: port {}: {violation}", header.pair.host);
                self.junk("a packet that its stream does not allow");
                self.reset(header.pair);
                return;
            }
        }
        self.settle(slot);
    }

    fn accept(&mut self, request: &Header) {
        let pair = request.pair;
        let Some(ends) = self.expected.remove(&pair.host) else {
            self.owe_reset(pair);
            return;
        };
        match self.connect(Stream::accepted(request), ends) {
            Ok(slot) => {
                self.tell(Event::Connected {
                    port: pair.host,
                    at_ns: now(),
                });
                self.settle(slot);
            }
            Err(e) => {
                log::error!("vsock: cannot serve port {}: {e}", pair.host);
                self.owe_reset(pair);
                self.tell(Event::Refused { port: pair.host });
            }
        }
    }

    fn owe_reset(&mut self, pair: Pair) {
        if !self.guest_gone {
            self.resets.push_back(pair);
        }
    }

    /// Answers a bad packet: whatever stream it names ends.
    fn reset(&mut self, pair: Pair) {
        self.owe_reset(pair);
        if let Some(&slot) = self.pairs.get(&pair) {
            self.detach(slot);
        }
    }

    // --- packets for the guest ---

    /// Writes the next packet for the guest into `room`. `None` when there is none after all and
    /// `room` was not touched; else how many bytes were written, 0 if `room` cannot hold a packet.
    pub fn next_packet(&mut self, mut room: Segments<'_>) -> Option<u32> {
        let mut payload = room.split_off(HEADER_LEN);
        if room.len() < HEADER_LEN || payload.is_empty() {
            self.junk("a receive buffer too small for a packet");
            return Some(0);
        }
        if let Some(pair) = self.resets.pop_front() {
            room.copy_from(&Header::reset(pair).to_guest(self.guest_cid));
            return Some(HEADER_BYTES);
        }
        while let Some(slot) = self.queue.pop_front() {
            let Some(connection) = connection(&mut self.slots, slot) else {
                continue;
            };
            connection.queued = false;
            let header = match connection.stream.control().filter(|_| connection.attached) {
                Some(header) => header,
                None => match connection.fill(&mut payload) {
                    Fill::Data(len) => connection.stream.data(len),
                    Fill::Blocked => continue,
                    Fill::End => {
                        self.settle(slot);
                        if let Some(pair) = self.resets.pop_front() {
                            room.copy_from(&Header::reset(pair).to_guest(self.guest_cid));
                            return Some(HEADER_BYTES);
                        }
                        continue;
                    }
                },
            };
            room.copy_from(&header.to_guest(self.guest_cid));
            self.settle(slot);
            return Some(HEADER_BYTES.saturating_add(header.len));
        }
        None
    }

    // --- the host ---

    /// Handles what is ready on the host: descriptors of streams and the control channel. Never
    /// blocks; what is left over keeps [`Self::event_fd`] readable.
    pub fn host_events(&mut self) {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(e) => {
                if e.kind() != io::ErrorKind::Interrupted {
                    log::error!("vsock: cannot wait for host descriptors: {e}");
                }
                return;
            }
        };
        for event in events.iter().take(count) {
            match event.data() {
                CONTROL => self.control_event(),
                WAKE => {
                    let _ = self.wake.read();
                }
                token => self.descriptor_event(token, event.event_set()),
            }
        }
    }

    fn descriptor_event(&mut self, token: u64, events: EventSet) {
        let Some((slot, life, direction)) = parse_token(token) else {
            return;
        };
        if self.slots.get(slot).is_none_or(|s| s.life != life) {
            return;
        }
        let Some(connection) = connection(&mut self.slots, slot) else {
            return;
        };
        match direction {
            Direction::Read => connection.reader_event(events),
            Direction::Write => connection.writer_event(events),
        }
        self.settle(slot);
    }

    // --- the table ---

    fn connect(&mut self, stream: Stream, ends: HostEnds) -> io::Result<usize> {
        let pair = stream.pair();
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len().saturating_sub(1)
        });
        let life = self.slots.get(slot).map_or(0, |s| s.life);
        let with_token =
            |end: Option<HostFd>, direction| end.map(|fd| (fd, token(slot, life, direction)));
        let made = Connection::new(
            stream,
            &self.epoll,
            with_token(ends.reader, Direction::Read),
            with_token(ends.writer, Direction::Write),
        );
        match (made, self.slots.get_mut(slot)) {
            (Ok(connection), Some(place)) => {
                place.connection = Some(connection);
                self.pairs.insert(pair, slot);
                Ok(slot)
            }
            (Err(e), _) => {
                self.free.push(slot);
                Err(e)
            }
            (Ok(_), None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Draws the conclusions after anything happened to a connection.
    fn settle(&mut self, slot: usize) {
        let Some(connection) = connection(&mut self.slots, slot) else {
            return;
        };
        let pair = connection.stream.pair();
        if connection.is_useless() {
            self.owe_reset(pair);
            self.detach(slot);
        } else if connection.is_over() {
            self.remove(slot, Some(Event::Closed { port: pair.host }));
        } else if !connection.queued && connection.wants_output() {
            connection.queued = true;
            self.queue.push_back(slot);
        }
    }

    /// The guest has forgotten the stream, or is about to.
    fn detach(&mut self, slot: usize) {
        let Some(connection) = connection(&mut self.slots, slot) else {
            return;
        };
        self.pairs.remove(&connection.stream.pair());
        connection.detach();
        self.settle(slot);
    }

    fn remove(&mut self, slot: usize, event: Option<Event>) {
        let Some(place) = self.slots.get_mut(slot) else {
            return;
        };
        let Some(connection) = place.connection.take() else {
            return;
        };
        place.life = place.life.wrapping_add(1);
        self.free.push(slot);
        if connection.attached {
            self.pairs.remove(&connection.stream.pair());
        }
        if connection.queued {
            self.queue.retain(|queued| *queued != slot);
        }
        // The descriptors are closed before the sandbox process hears of it.
        drop(connection);
        if let Some(event) = event {
            self.tell(event);
        }
    }

    /// Notes that the guest does not keep to the protocol, once: a guest must not fill our log.
    pub fn junk(&mut self, what: &str) {
        if !self.warned {
            self.warned = true;
            log::warn!("vsock: the guest sent {what}; more of the kind is not reported");
        }
    }
}

fn connection(slots: &mut [Slot], slot: usize) -> Option<&mut Connection> {
    slots.get_mut(slot)?.connection.as_mut()
}

fn token(slot: usize, life: u32, direction: Direction) -> u64 {
    u64::from(life) << 32 | (slot as u64) << 1 | u64::from(direction == Direction::Write)
}

fn parse_token(token: u64) -> Option<(usize, u32, Direction)> {
    let direction = if token & 1 == 0 {
        Direction::Read
    } else {
        Direction::Write
    };
    let slot = usize::try_from((token & u64::from(u32::MAX)) >> 1).ok()?;
    Some((slot, u32::try_from(token >> 32).ok()?, direction))
}

/// `CLOCK_MONOTONIC` in nanoseconds. By the C library, which found the vdso when it was loaded;
/// rustix would look for it now, with a system call that the jail forbids.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is ours and may be written. The call cannot fail for this clock; if it did,
    // the time would be zero.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}
