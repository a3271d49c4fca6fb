//! The state of one stream: who may still send, and how much. Pure: no descriptor, no memory.
//!
//! Counters are the free-running 32-bit ones of the protocol, so every difference wraps.

use super::packet::{Header, MAX_PAYLOAD, Op, Pair, Shutdown};

/// What a stream holds at most of the bytes that its host side has not taken yet; the receive
/// buffer we announce to the guest, in bytes.
pub const BUFFER: u32 = 256 * 1024;

/// Forwarded bytes after which the guest is told of the new room without being asked. Half the
/// buffer: the guest can go on sending while the message is under way.
const ANNOUNCE: u32 = BUFFER / 2;

/// The guest did what the protocol forbids; the stream is to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A packet that the stream's state does not allow.
    #[error("The guest sent {0:?} when it was not allowed to")]
    Unexpected(Op),
    /// More payload than there was room announced for.
    #[error("The guest sent {sent} bytes with room for {room}")]
    Credit {
        /// Length of the payload in bytes.
        sent: u32,
        /// Room that was left in bytes.
        room: u32,
    },
}

/// What the owner of the stream has to do about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Nothing, besides looking whether there is credit now.
    Nothing,
    /// The guest accepted our request.
    Connected,
    /// Deliver the payload.
    Deliver,
    /// Drop the payload; it is accounted for.
    Discard,
    /// Look at [`Stream::theirs`].
    Shutdown,
    /// The guest forgot the stream.
    Reset,
}

/// One stream between a guest port and a host port.
#[derive(Debug)]
pub struct Stream {
    pair: Pair,
    open: bool,
    /// Bytes of payload the guest sent, the host side took, and the guest knows to be taken.
    received: u32,
    forwarded: u32,
    announced: u32,
    /// Bytes of payload sent to the guest, its buffer, and what its reader took.
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    ours: Shutdown,
    theirs: Shutdown,
    due: Due,
}

/// Packets that are owed to the guest. A set, not a queue: it cannot grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    request: bool,
    response: bool,
    shutdown: bool,
    credit: bool,
}

impl Stream {
    /// The stream that answers the guest's `request`.
    #[must_use]
    pub fn accepted(request: &Header) -> Self {
        Self {
            open: true,
            peer_buffer: request.buf_alloc,
            peer_forwarded: request.fwd_cnt,
            due: Due {
                response: true,
                ..Due::default()
            },
            ..Self::idle(request.pair)
        }
    }

    /// A stream that asks the guest for a connection.
    #[must_use]
    pub fn connecting(pair: Pair) -> Self {
        Self {
            due: Due {
                request: true,
                ..Due::default()
            },
            ..Self::idle(pair)
        }
    }

    fn idle(pair: Pair) -> Self {
        Self {
            pair,
            open: false,
            received: 0,
            forwarded: 0,
            announced: 0,
            sent: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            ours: Shutdown::default(),
            theirs: Shutdown::default(),
            due: Due::default(),
        }
    }

    /// The ports of the stream.
    #[must_use]
    pub fn pair(&self) -> Pair {
        self.pair
    }

    /// Whether both sides agreed to the connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The directions the guest closed.
    #[must_use]
    pub fn theirs(&self) -> Shutdown {
        self.theirs
    }

    /// The directions the host closed.
    #[must_use]
    pub fn ours(&self) -> Shutdown {
        self.ours
    }

    /// Bytes received and not yet forwarded.
    #[must_use]
    pub fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Takes in a packet of this stream that carries `payload` bytes.
    ///
    /// # Errors
    /// [`Violation`]; the state is then of no further use.
    pub fn receive(&mut self, header: &Header, payload: u32) -> Result<Incoming, Violation> {
        self.peer_buffer = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        match header.op {
            Op::Reset => Ok(Incoming::Reset),
            Op::Response if !self.open && !self.due.request => {
                self.open = true;
                Ok(Incoming::Connected)
            }
            Op::Request | Op::Response => Err(Violation::Unexpected(header.op)),
            _ if !self.open => Err(Violation::Unexpected(header.op)),
            Op::Shutdown => {
                self.theirs = self.theirs.union(header.shutdown);
                Ok(Incoming::Shutdown)
            }
            Op::CreditUpdate => Ok(Incoming::Nothing),
            Op::CreditRequest => {
                self.due.credit = true;
                Ok(Incoming::Nothing)
            }
            Op::Data if self.theirs.send => Err(Violation::Unexpected(Op::Data)),
            Op::Data => {
                let room = BUFFER.saturating_sub(self.buffered());
                if payload > room {
                    return Err(Violation::Credit {
                        sent: payload,
                        room,
                    });
                }
                self.received = self.received.wrapping_add(payload);
                if self.ours.receive {
                    self.forward(payload);
                    return Ok(Incoming::Discard);
                }
                Ok(Incoming::Deliver)
            }
        }
    }

    /// Notes that `count` received bytes have left the buffer.
    pub fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count.min(self.buffered()));
        if self.forwarded.wrapping_sub(self.announced) >= ANNOUNCE {
            self.due.credit = true;
        }
    }

    /// Bytes that may be sent to the guest in one packet now; 0 when it must wait or is closed.
    #[must_use]
    pub fn credit(&self) -> u32 {
        if !self.open || self.due.response || self.ours.send || self.theirs.receive {
            return 0;
        }
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buffer.saturating_sub(in_flight).min(MAX_PAYLOAD)
    }

    /// The host side will send no more (end of file on its reader).
    pub fn close_send(&mut self) {
        self.due.shutdown |= !self.ours.send;
        self.ours.send = true;
    }

    /// The host side will take no more (its writer is gone): what is buffered counts as taken.
    pub fn close_receive(&mut self) {
        self.due.shutdown |= !self.ours.receive;
        self.ours.receive = true;
        self.forwarded = self.received;
    }

    /// Whether [`Self::control`] has something to send.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.due != Due::default()
    }

    /// The next packet without payload that is owed to the guest.
    pub fn control(&mut self) -> Option<Header> {
        if self.due.request {
            self.due.request = false;
            return Some(self.header(Op::Request, 0));
        }
        if !self.open {
            return None;
        }
        if self.due.response {
            self.due.response = false;
            return Some(self.header(Op::Response, 0));
        }
        if self.due.shutdown {
            self.due.shutdown = false;
            return Some(Header {
                shutdown: self.ours,
                ..self.header(Op::Shutdown, 0)
            });
        }
        self.due.credit.then(|| self.header(Op::CreditUpdate, 0))
    }

    /// The header of a data packet of `len` bytes, at most [`Self::credit`]; counts them as sent.
    pub fn data(&mut self, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        self.header(Op::Data, len)
    }

    /// Every header carries our credit, which makes an update of its own unnecessary.
    fn header(&mut self, op: Op, len: u32) -> Header {
        self.announced = self.forwarded;
        self.due.credit = false;
        Header {
            pair: self.pair,
            op,
            shutdown: Shutdown::default(),
            len,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const PAIR: Pair = Pair {
        host: 1024,
        guest: 5,
    };

    fn guest(op: Op) -> Header {
        Header {
            pair: PAIR,
            op,
            shutdown: Shutdown::default(),
            len: 0,
            buf_alloc: 1000,
            fwd_cnt: 0,
        }
    }

    fn open() -> Stream {
        let mut stream = Stream::accepted(&guest(Op::Request));
        assert_eq!(stream.control().map(|h| h.op), Some(Op::Response));
        stream
    }

    #[test]
    fn stream_accepted_may_send_only_after_its_response() {
        let mut stream = Stream::accepted(&guest(Op::Request));
        assert_eq!(stream.credit(), 0);
        stream.control();
        assert_eq!(stream.credit(), 1000);
    }

    #[test]
    fn stream_credit_exhausted_is_zero_until_the_peer_forwards() {
        let mut stream = open();
        stream.data(1000);
        assert_eq!(stream.credit(), 0);
        stream
            .receive(
                &Header {
                    fwd_cnt: 300,
                    ..guest(Op::CreditUpdate)
                },
                0,
            )
            .unwrap();
        assert_eq!(stream.credit(), 300);
    }

    #[test]
    fn stream_peer_that_forwards_more_than_was_sent_gets_nothing() {
        let mut stream = open();
        stream
            .receive(
                &Header {
                    fwd_cnt: 5,
                    ..guest(Op::CreditUpdate)
                },
                0,
            )
            .unwrap();
        assert_eq!(stream.credit(), 0);
    }

    #[test]
    fn stream_payload_beyond_the_room_is_a_violation() {
        let mut stream = open();
        stream.receive(&guest(Op::Data), BUFFER - 1).unwrap();
        assert_eq!(
            stream.receive(&guest(Op::Data), 2),
            Err(Violation::Credit { sent: 2, room: 1 })
        );
    }

    #[test]
    fn stream_forwarding_half_the_buffer_owes_a_credit_update() {
        let mut stream = open();
        stream.receive(&guest(Op::Data), BUFFER).unwrap();
        stream.forward(ANNOUNCE - 1);
        assert!(!stream.owes());
        stream.forward(1);
        let update = stream.control().unwrap();
        assert_eq!((update.op, update.fwd_cnt), (Op::CreditUpdate, ANNOUNCE));
        assert!(!stream.owes());
    }

    #[test]
    fn stream_whose_reader_is_gone_frees_its_buffer_and_discards() {
        let mut stream = open();
        stream.receive(&guest(Op::Data), 10).unwrap();
        stream.close_receive();
        let shutdown = stream.control().unwrap();
        assert_eq!(shutdown.op, Op::Shutdown);
        assert_eq!(
            shutdown.shutdown,
            Shutdown {
                receive: true,
                send: false
            }
        );
        assert_eq!(shutdown.fwd_cnt, 10);
        assert_eq!(stream.receive(&guest(Op::Data), 4), Ok(Incoming::Discard));
        assert_eq!(stream.buffered(), 0);
    }

    #[test]
    fn stream_data_after_the_guest_shut_down_is_a_violation() {
        let mut stream = open();
        let shutdown = Shutdown {
            receive: false,
            send: true,
        };
        stream
            .receive(
                &Header {
                    shutdown,
                    ..guest(Op::Shutdown)
                },
                0,
            )
            .unwrap();
        assert_eq!(
            stream.receive(&guest(Op::Data), 1),
            Err(Violation::Unexpected(Op::Data))
        );
    }

    #[test]
    fn stream_response_before_our_request_left_is_a_violation() {
        let mut stream = Stream::connecting(PAIR);
        assert_eq!(
            stream.receive(&guest(Op::Response), 0),
            Err(Violation::Unexpected(Op::Response))
        );
    }

    #[test]
    fn stream_second_request_is_a_violation() {
        assert_eq!(
            open().receive(&guest(Op::Request), 0),
            Err(Violation::Unexpected(Op::Request))
        );
    }

    fn any_op() -> impl Strategy<Value = Op> {
        proptest::sample::select(vec![
            Op::Request,
            Op::Response,
            Op::Reset,
            Op::Shutdown,
            Op::Data,
            Op::CreditUpdate,
            Op::CreditRequest,
        ])
    }

    proptest! {
        #[test]
        fn stream_any_packets_never_panic_nor_overfill(
            accepted: bool,
            packets in proptest::collection::vec(
                (any_op(), any::<u32>(), any::<u32>(), 0..=MAX_PAYLOAD, any::<bool>(), any::<u32>()), 0..64),
        ) {
            let mut stream =
                if accepted { Stream::accepted(&guest(Op::Request)) } else { Stream::connecting(PAIR) };
            for (op, buf_alloc, fwd_cnt, len, flag, count) in packets {
                let shutdown = Shutdown { receive: flag, send: !flag };
                let header = Header { pair: PAIR, op, shutdown, len, buf_alloc, fwd_cnt };
                let _ = stream.receive(&header, len);
                prop_assert!(stream.buffered() <= BUFFER);
                prop_assert!(stream.credit() <= MAX_PAYLOAD);
                stream.forward(count);
                if flag { stream.control(); } else { let n = stream.credit(); stream.data(n); }
            }
        }

        /// A well-behaved guest and a host side that act in any order: nothing is lost, repeated
        /// or reordered, no buffer overflows, and when all have acted long enough all is through.
        #[test]
        fn stream_random_interleaving_conserves_bytes(
            steps in proptest::collection::vec((0u8..6, 1u32..100_000), 0..400),
            guest_buffer in 1000u32..300_000,
        ) {
            let mut model = Model::new(guest_buffer);
            for (step, size) in steps {
                model.step(step, size)?;
            }
            for _ in 0..200_000 {
                if model.quiet() { break; }
                for step in 2..6 { model.step(step, 50_000)?; }
            }
            prop_assert!(model.quiet(), "bytes are stuck: {model:?}");
        }
    }

    /// Counts stand for bytes: order is the order of the counts.
    #[derive(Debug)]
    struct Model {
        stream: Stream,
        to_guest: VecDeque<Header>,
        to_host: VecDeque<Header>,
        guest_buffer: u32,
        guest_held: u32,
        guest_fwd: u32,
        guest_sent: u32,
        peer_alloc: u32,
        peer_fwd: u32,
        guest_wants: u64,
        host_wants: u64,
        totals: [u64; 4],
    }

    impl Model {
        fn new(guest_buffer: u32) -> Self {
            let mut stream = Stream::accepted(&Header {
                buf_alloc: guest_buffer,
                ..guest(Op::Request)
            });
            let response = stream.control().unwrap();
            Self {
                stream,
                to_guest: VecDeque::new(),
                to_host: VecDeque::new(),
                guest_buffer,
                guest_held: 0,
                guest_fwd: 0,
                guest_sent: 0,
                peer_alloc: response.buf_alloc,
                peer_fwd: response.fwd_cnt,
                guest_wants: 0,
                host_wants: 0,
                totals: [0; 4],
            }
        }

        fn guest_header(&self, op: Op, len: u32) -> Header {
            Header {
                len,
                buf_alloc: self.guest_buffer,
                fwd_cnt: self.guest_fwd,
                ..guest(op)
            }
        }

        fn step(&mut self, step: u8, size: u32) -> Result<(), TestCaseError> {
            match step {
                0 => self.guest_wants += u64::from(size),
                1 => self.host_wants += u64::from(size),
                2 => {
                    // The guest sends what it wants and may, and takes in one packet.
                    let room = self.peer_alloc - self.guest_sent.wrapping_sub(self.peer_fwd);
                    let len = u64::from(room.min(size).min(MAX_PAYLOAD)).min(self.guest_wants);
                    if len > 0 {
                        self.guest_wants -= len;
                        self.totals[0] += len;
                        let len = u32::try_from(len).unwrap();
                        self.guest_sent = self.guest_sent.wrapping_add(len);
                        let packet = self.guest_header(Op::Data, len);
                        self.to_host.push_back(packet);
                    }
                    if let Some(packet) = self.to_guest.pop_front() {
                        self.peer_alloc = packet.buf_alloc;
                        self.peer_fwd = packet.fwd_cnt;
                        self.guest_held += packet.len;
                        prop_assert!(self.guest_held <= self.guest_buffer, "guest overrun");
                    }
                }
                3 => {
                    // The guest's reader takes some, and says so.
                    let taken = size.min(self.guest_held);
                    self.guest_held -= taken;
                    self.guest_fwd = self.guest_fwd.wrapping_add(taken);
                    self.totals[3] += u64::from(taken);
                    if taken > 0 {
                        let packet = self.guest_header(Op::CreditUpdate, 0);
                        self.to_host.push_back(packet);
                    }
                }
                4 => {
                    if let Some(packet) = self.to_host.pop_front() {
                        let got = self.stream.receive(&packet, packet.len);
                        prop_assert!(got.is_ok(), "{got:?}");
                    }
                    let taken = size.min(self.stream.buffered());
                    self.stream.forward(taken);
                    self.totals[1] += u64::from(taken);
                }
                _ => {
                    if let Some(packet) = self.stream.control() {
                        self.to_guest.push_back(packet);
                    }
                    let len = u64::from(self.stream.credit().min(size)).min(self.host_wants);
                    if len > 0 {
                        self.host_wants -= len;
                        self.totals[2] += len;
                        let packet = self.stream.data(u32::try_from(len).unwrap());
                        self.to_guest.push_back(packet);
                    }
                }
            }
            Ok(())
        }

        fn quiet(&self) -> bool {
            self.guest_wants == 0
                && self.host_wants == 0
                && self.totals[0] == self.totals[1]
                && self.totals[2] == self.totals[3]
        }
    }
}
