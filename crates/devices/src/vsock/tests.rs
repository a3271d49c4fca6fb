//! The device against a guest that does what no driver would.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::Vsock;
use super::control::{DeviceChannel, Event, HostChannel, Request, pair};
use super::mux::{MAX_STREAMS, Mux};
use super::packet::HEADER_LEN;
use super::stream::BUFFER;
use crate::rig::{DATA, MEMORY, Part, RING, Rig};

const CID: u64 = 3;
const RX: u16 = 0;
const TX: u16 = 1;
const HOST: u16 = 4;
const PORT: u32 = 1024;
const GUEST_PORT: u32 = 7;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA_OP: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

struct Guest {
    rig: Rig<Vsock>,
    control: HostChannel,
    /// Room the guest announces.
    room: u32,
    /// Payload the guest has taken.
    taken: u32,
    /// Receive buffers that the device has, by their heads.
    buffers: HashMap<u16, Vec<Part>>,
    made: u64,
}

/// A header as the guest writes it.
fn header(guest_port: u32, op: u16, len: u32, flags: u32, room: u32, taken: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(CID.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(guest_port.to_le_bytes());
    bytes.extend(PORT.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(op.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(room.to_le_bytes());
    bytes.extend(taken.to_le_bytes());
    bytes
}

/// What the guest finds in a receive buffer.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    guest_port: u32,
    op: u16,
    flags: u32,
    forwarded: u32,
    payload: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn packet(bytes: &[u8]) -> Packet {
    assert_eq!(
        u32_at(bytes, 24) as usize,
        bytes.len() - HEADER_LEN,
        "length and payload differ"
    );
    Packet {
        guest_port: u32_at(bytes, 20),
        op: u16::from_le_bytes(bytes[30..32].try_into().unwrap()),
        flags: u32_at(bytes, 32),
        forwarded: u32_at(bytes, 40),
        payload: bytes[HEADER_LEN..].to_vec(),
    }
}

impl Guest {
    fn new() -> Self {
        let (control, device) = pair().unwrap();
        let mux = Mux::new(CID, DeviceChannel::new(device), None).unwrap();
        let guest = Self {
            rig: Rig::new(Vsock::new(CID, mux)),
            control,
            room: 64 * 1024,
            taken: 0,
            buffers: HashMap::new(),
            made: 0,
        };
        assert_eq!(guest.event(), Some(Event::Ready));
        guest
    }

    /// Lets the host use `PORT` and connects to it.
    fn connected() -> (Self, UnixStream) {
        let mut guest = Self::new();
        let host = guest.expect(PORT);
        guest.send(REQUEST, 0, &[]);
        assert_eq!(guest.receive(1).first().map(|p| p.op), Some(RESPONSE));
        assert!(matches!(
            guest.event(),
            Some(Event::Connected { port: PORT, .. })
        ));
        (guest, host)
    }

    fn expect(&mut self, port: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = Request::Expect {
            port,
            reader: true,
            writer: true,
        };
        let reader = theirs.try_clone().unwrap();
        self.control
            .send(request, vec![reader.into(), theirs.into()])
            .unwrap();
        self.rig.kick(HOST);
        ours
    }

    fn event(&self) -> Option<Event> {
        self.control.try_recv().unwrap()
    }

    fn send(&mut self, op: u16, flags: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = header(GUEST_PORT, op, len, flags, self.room, self.taken);
        bytes.extend(payload);
        self.transmit(&bytes, &[]);
    }

    /// Sends a packet cut into descriptors at `cuts`, which lie anywhere in memory.
    fn transmit(&mut self, bytes: &[u8], cuts: &[usize]) {
        let parts = cut(bytes.len(), cuts);
        let mut at = DATA;
        let mut chain = Vec::new();
        let mut rest = bytes;
        for len in parts {
            let (part, tail) = rest.split_at(len);
            rest = tail;
            self.rig.put(at, part);
            chain.push(Part {
                at,
                len: u32::try_from(len).unwrap(),
                write: false,
            });
            at += len as u64 + 13;
        }
        self.rig.offer(usize::from(TX), &chain);
        self.rig.kick(TX);
        assert_eq!(
            self.rig.used(usize::from(TX)).len(),
            1,
            "the packet was not taken"
        );
    }

    /// Has `count` receive buffers ready and returns what came into them.
    fn receive(&mut self, count: usize) -> Vec<Packet> {
        self.receive_cut(count, 4096, &[])
    }

    fn receive_cut(&mut self, count: usize, size: usize, cuts: &[usize]) -> Vec<Packet> {
        while self.buffers.len() < count {
            let mut at = DATA + 0x10_0000 + (self.made % 128) * 0x4000;
            self.made += 1;
            let mut chain = Vec::new();
            for len in cut(size, cuts) {
                chain.push(Part {
                    at,
                    len: u32::try_from(len).unwrap(),
                    write: true,
                });
                at += len as u64 + 5;
            }
            self.buffers
                .insert(self.rig.offer(usize::from(RX), &chain), chain);
        }
        self.rig.kick(RX);
        let used = self.rig.used(usize::from(RX));
        used.into_iter()
            .map(|(head, len)| self.packet_in(head, len))
            .collect()
    }

    fn packet_in(&mut self, head: u16, len: u32) -> Packet {
        let chain = self.buffers.remove(&head).unwrap();
        let bytes: Vec<u8> = chain
            .iter()
            .flat_map(|part| self.rig.get(part.at, part.len as usize))
            .take(len as usize)
            .collect();
        packet(&bytes)
    }
}

/// The lengths of the pieces when `len` bytes are cut at `cuts`.
fn cut(len: usize, cuts: &[usize]) -> Vec<usize> {
    let mut points: Vec<usize> = cuts.iter().map(|c| c % (len + 1)).collect();
    points.extend([0, len]);
    points.sort_unstable();
    points
        .windows(2)
        .map(|w| w[1] - w[0])
        .filter(|len| *len > 0)
        .collect()
}

#[test]
fn packet_from_the_guest_reaches_the_host() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(DATA_OP, 0, b"hello");
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn packet_with_foreign_source_is_dropped_without_answer() {
    let mut guest = Guest::new();
    let mut bytes = header(GUEST_PORT, REQUEST, 0, 0, 1000, 0);
    bytes[0] = 9;
    guest.transmit(&bytes, &[]);
    assert_eq!(guest.receive(1), []);
}

#[test]
fn packet_of_unknown_type_is_reset() {
    let mut guest = Guest::new();
    let mut bytes = header(GUEST_PORT, REQUEST, 0, 0, 1000, 0);
    bytes[28] = 2;
    guest.transmit(&bytes, &[]);
    assert_eq!(
        guest.receive(2).iter().map(|p| p.op).collect::<Vec<_>>(),
        [RESET]
    );
}

#[test]
fn packet_shorter_than_announced_resets_its_stream() {
    let (mut guest, mut host) = Guest::connected();
    let mut bytes = header(GUEST_PORT, DATA_OP, 100, 0, 1000, 0);
    bytes.extend(b"short");
    guest.transmit(&bytes, &[]);
    assert_eq!(
        guest.receive(2).iter().map(|p| p.op).collect::<Vec<_>>(),
        [RESET]
    );
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(guest.event(), Some(Event::Closed { port: PORT }));
}

#[test]
fn packet_shorter_than_a_header_is_dropped() {
    let mut guest = Guest::new();
    guest.transmit(&header(GUEST_PORT, REQUEST, 0, 0, 0, 0)[..43], &[]);
    assert_eq!(guest.receive(1), []);
}

#[test]
fn chain_outside_memory_is_returned_and_the_ring_goes_on() {
    let (mut guest, mut host) = Guest::connected();
    for (at, len) in [
        (MEMORY as u64 - 10, 44),
        (u64::MAX - 3, 44),
        (DATA, u32::MAX),
    ] {
        guest.rig.offer(
            usize::from(TX),
            &[Part {
                at,
                len,
                write: false,
            }],
        );
        guest.rig.kick(TX);
        assert_eq!(guest.rig.used(usize::from(TX)).len(), 1);
    }
    guest.send(DATA_OP, 0, b"x");
    host.read_exact(&mut [0]).unwrap();
}

#[test]
fn chain_that_loops_is_returned() {
    let mut guest = Guest::new();
    let part = Part {
        at: DATA,
        len: 20,
        write: false,
    };
    guest.rig.offer(usize::from(TX), &[part, part]);
    guest.rig.descriptor(usize::from(TX), 1, DATA, 20, 1, 0);
    guest.rig.kick(TX);
    assert_eq!(guest.rig.used(usize::from(TX)).len(), 1);
}

#[test]
fn ring_index_far_ahead_stops_only_that_ring() {
    let mut guest = Guest::new();
    guest.rig.put(0x4000 + 0x1002, &5000u16.to_le_bytes());
    guest.rig.kick(TX);
    assert_eq!(guest.rig.used(usize::from(TX)), []);
}

#[test]
fn receive_buffer_too_small_is_returned_empty() {
    let mut guest = Guest::new();
    guest.send(DATA_OP, 0, b"to nobody");
    let part = Part {
        at: DATA,
        len: 44,
        write: true,
    };
    guest.rig.offer(usize::from(RX), &[part]);
    guest.rig.kick(RX);
    assert_eq!(guest.rig.used(usize::from(RX)), [(0, 0)]);
    assert_eq!(guest.receive(1)[0].op, RESET);
}

#[test]
fn stream_sent_beyond_its_credit_is_reset() {
    let (mut guest, _host) = Guest::connected();
    let chunk = vec![1; 60_000];
    // The host's socket takes some; what it does not take may not exceed the buffer.
    for _ in 0..(BUFFER / 60_000 + 10) {
        guest.send(DATA_OP, 0, &chunk);
    }
    let resets = guest.receive(20).iter().filter(|p| p.op == RESET).count();
    assert!(resets > 0);
}

#[test]
fn stream_to_the_guest_keeps_to_its_room() {
    let (mut guest, mut host) = Guest::connected();
    guest.room = 1000;
    guest.send(CREDIT_UPDATE, 0, &[]);
    host.write_all(&[5; 5000]).unwrap();
    guest.rig.kick(HOST);
    let got: usize = guest.receive(10).iter().map(|p| p.payload.len()).sum();
    assert_eq!(got, 1000);

    guest.taken = 400;
    guest.send(CREDIT_UPDATE, 0, &[]);
    let got: usize = guest.receive(10).iter().map(|p| p.payload.len()).sum();
    assert_eq!(got, 400);
}

#[test]
fn stream_shut_down_by_the_guest_is_reset_and_its_port_pair_free() {
    let (mut guest, mut host) = Guest::connected();
    guest.send(DATA_OP, 0, b"last");
    guest.send(SHUTDOWN, 3, &[]);
    assert_eq!(
        guest.receive(2).iter().map(|p| p.op).collect::<Vec<_>>(),
        [RESET]
    );
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last");

    let _again = guest.expect(PORT);
    guest.send(REQUEST, 0, &[]);
    assert_eq!(
        guest.receive(2).iter().map(|p| p.op).collect::<Vec<_>>(),
        [RESPONSE]
    );
}

#[test]
fn stream_whose_host_ends_tells_the_guest() {
    let (mut guest, host) = Guest::connected();
    (&host).write_all(b"bye").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    guest.rig.kick(HOST);
    let packets = guest.receive(3);
    assert_eq!(packets[0].payload, b"bye");
    assert_eq!((packets[1].op, packets[1].flags), (SHUTDOWN, 2));
    assert_eq!(packets.len(), 2);
}

#[test]
fn stream_whose_host_is_gone_is_reset() {
    let (mut guest, host) = Guest::connected();
    drop(host);
    guest.rig.kick(HOST);
    let ops: Vec<u16> = guest.receive(3).iter().map(|p| p.op).collect();
    assert_eq!(ops.last(), Some(&RESET), "{ops:?}");
    assert_eq!(guest.event(), Some(Event::Closed { port: PORT }));
}

#[test]
fn requests_by_the_thousand_are_answered_without_a_growing_queue() {
    let mut guest = Guest::new();
    let (mut sent, mut answered) = (0, 0);
    for _ in 0..100 {
        for _ in 0..RING / 2 {
            let bytes = header(sent, REQUEST, 0, 0, 0, 0);
            guest.rig.put(DATA, &bytes);
            guest.rig.offer(
                usize::from(TX),
                &[Part {
                    at: DATA,
                    len: 44,
                    write: false,
                }],
            );
            sent += 1;
            guest.rig.kick(TX);
            guest.rig.kick(HOST);
        }
        // Without receive buffers the device stops taking requests, so this makes room for both.
        while answered < sent {
            answered += u32::try_from(guest.receive(64).len()).unwrap();
            guest.rig.kick(HOST);
        }
    }
    assert_eq!(answered, sent);
}

#[test]
fn requests_without_receive_buffers_wait_in_the_guests_ring() {
    let mut guest = Guest::new();
    let mut taken = 0;
    for batch in 0..3 {
        for i in 0..128 {
            guest
                .rig
                .put(DATA, &header(batch * 128 + i, REQUEST, 0, 0, 0, 0));
            let part = Part {
                at: DATA,
                len: 44,
                write: false,
            };
            guest.rig.offer(usize::from(TX), &[part]);
        }
        guest.rig.kick(TX);
        guest.rig.kick(HOST);
        taken += guest.rig.used(usize::from(TX)).len();
    }
    assert_eq!(taken, 256);

    let mut answered = 0;
    while answered < 384 {
        answered += guest.receive(64).len();
        guest.rig.kick(HOST);
    }
    assert_eq!(guest.rig.used(usize::from(TX)).len(), 128);
}

#[test]
fn request_to_the_port_of_a_live_stream_is_reset() {
    let (mut guest, mut host) = Guest::connected();
    let bytes = header(GUEST_PORT + 1, REQUEST, 0, 0, 1000, 0);
    guest.transmit(&bytes, &[]);
    let packets = guest.receive(2);
    assert_eq!(
        (packets[0].op, packets[0].guest_port),
        (RESET, GUEST_PORT + 1)
    );
    guest.send(DATA_OP, 0, b"x");
    host.read_exact(&mut [0]).unwrap();
}

#[test]
fn expectations_beyond_the_limit_are_refused() {
    let mut guest = Guest::new();
    let mut ends = Vec::new();
    for port in 0..u32::try_from(MAX_STREAMS).unwrap() {
        let (_, writer) = std::io::pipe().unwrap();
        let request = Request::Expect {
            port,
            reader: false,
            writer: true,
        };
        guest.control.send(request, vec![writer.into()]).unwrap();
        guest.rig.kick(HOST);
        ends.push(port);
    }
    assert_eq!(guest.event(), None);
    let _one_more = guest.expect(70_000);
    assert_eq!(guest.event(), Some(Event::Refused { port: 70_000 }));
}

#[test]
fn expectation_with_the_wrong_end_of_a_pipe_is_refused() {
    let mut guest = Guest::new();
    let (reader, _writer) = std::io::pipe().unwrap();
    let request = Request::Expect {
        port: 1,
        reader: false,
        writer: true,
    };
    guest.control.send(request, vec![reader.into()]).unwrap();
    guest.rig.kick(HOST);
    assert_eq!(guest.event(), Some(Event::Refused { port: 1 }));
}

#[test]
fn fifo_of_the_host_keeps_its_blocking_mode() {
    // The description of the descriptor may be shared with a shell.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let end = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let (control, device) = pair().unwrap();
    let proc_fd = std::fs::File::open("/proc/self/fd").unwrap();
    let mux = Mux::new(CID, DeviceChannel::new(device), Some(proc_fd.into())).unwrap();
    let mut rig = Rig::new(Vsock::new(CID, mux));
    let request = Request::Expect {
        port: 1,
        reader: true,
        writer: false,
    };
    control
        .send(request, vec![end.try_clone().unwrap().into()])
        .unwrap();

    rig.kick(HOST);

    let flags = rustix::fs::fcntl_getfl(&end).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a stream's packets are cut into descriptors, its bytes arrive as they were.
    #[test]
    fn packets_cut_anywhere_carry_the_same_bytes(
        messages in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 1..2000), proptest::collection::vec(any::<usize>(), 0..6)), 1..8),
        room_cuts in proptest::collection::vec(any::<usize>(), 0..6),
        room in 45usize..4096,
    ) {
        let (mut guest, mut host) = Guest::connected();
        let mut sent = Vec::new();
        for (payload, cuts) in &messages {
            let len = u32::try_from(payload.len()).unwrap();
            let mut bytes = header(GUEST_PORT, DATA_OP, len, 0, 64 * 1024, 0);
            bytes.extend(payload);
            guest.transmit(&bytes, cuts);
            sent.extend(payload);
        }
        let mut got = vec![0; sent.len()];
        host.read_exact(&mut got).unwrap();
        prop_assert_eq!(&got, &sent);

        host.write_all(&sent).unwrap();
        guest.rig.kick(HOST);
        let mut back = Vec::new();
        while back.len() < sent.len() {
            let packets = guest.receive_cut(16, room, &room_cuts);
            prop_assert!(!packets.is_empty(), "nothing more came");
            back.extend(packets.into_iter().filter(|p| p.op == DATA_OP).flat_map(|p| p.payload));
        }
        prop_assert_eq!(&back, &sent);
    }

    /// Any bytes in chains of any shape: no panic, and a stream still works afterwards.
    #[test]
    fn garbage_leaves_the_device_working(
        chains in proptest::collection::vec(
            (0usize..2, proptest::collection::vec((any::<u32>(), any::<u16>(), any::<bool>()), 1..5)), 0..60),
        bytes in proptest::collection::vec(any::<u8>(), 200),
        forged in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        for (i, chunk) in bytes.chunks(50).enumerate() {
            let mut packet = chunk.to_vec();
            if forged && packet.len() > 44 {
                let valid = header(GUEST_PORT, u16::from(chunk[0] % 9), u32::from(chunk[1]), u32::from(chunk[2]), 10, 0);
                packet[..44].copy_from_slice(&valid);
            }
            guest.rig.put(DATA + i as u64 * 64, &packet);
        }
        for (queue, parts) in &chains {
            let parts: Vec<Part> = parts
                .iter()
                .map(|(at, len, write)| Part { at: u64::from(*at) % (MEMORY as u64 + 100), len: u32::from(*len), write: *write })
                .map(|part| if forged { Part { at: DATA + part.at % 4 * 64, len: part.len % 60, ..part } } else { part })
                .collect();
            guest.rig.offer(*queue, &parts);
            guest.rig.kick(u16::try_from(*queue).unwrap());
            guest.rig.kick(HOST);
        }
        guest.rig.used(usize::from(RX));
        guest.rig.used(usize::from(TX));
        let mut host = guest.expect(PORT);
        let bytes = header(9999, REQUEST, 0, 0, 1000, 0);
        guest.transmit(&bytes, &[]);
        let mut data = header(9999, DATA_OP, 1, 0, 1000, 0);
        data.push(b'x');
        guest.transmit(&data, &[]);
        let mut got = [0];
        host.read_exact(&mut got).unwrap();
        prop_assert_eq!(&got, b"x");
    }
}
