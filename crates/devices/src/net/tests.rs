//! The device against a guest that does what no driver would, and one that does what drivers do.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use vhost_user_backend::VhostUserBackendMut;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MRG_RXBUF};

use super::Net;
use super::frames::MAX_FRAME;
use super::header::HEADER_LEN;
use crate::rig::{DATA, MEMORY, Part, RING, Rig};
use crate::session::Device as _;

const RX: u16 = 0;
const TX: u16 = 1;
const HOST: u16 = 3;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

struct Guest {
    rig: Rig<Net<UnixDatagram>>,
    /// The other end of the wire.
    host: UnixDatagram,
}

impl Guest {
    /// A guest whose driver takes all features but those of `without`.
    fn new(without: u64) -> Self {
        let (host, frames) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        frames.set_nonblocking(true).unwrap();
        let mut net = Net::new(frames, MAC, Some(1500)).unwrap();
        net.acked_features(net.features() & !without);
        let rig = Rig::new(net);
        Self { rig, host }
    }

    /// Sends header and frame from one buffer.
    fn send(&mut self, header: &[u8], frame: &[u8]) {
        let bytes = [header, frame].concat();
        self.rig.put(DATA, &bytes);
        self.rig.offer(usize::from(TX), &[part(0, bytes.len())]);
        self.rig.kick(TX);
    }

    /// What came out at the other end, header and frame.
    fn arrived(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; MAX_FRAME + 100];
        match self.host.recv(&mut bytes) {
            Ok(len) => {
                bytes.truncate(len);
                Some(bytes)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// Gives the device a receive buffer.
    fn buffer(&mut self, at: u64, len: usize) -> u16 {
        let part = Part {
            write: true,
            ..part(at, len)
        };
        self.rig.offer(usize::from(RX), &[part])
    }

    /// A frame of `len` bytes comes in.
    fn comes(&mut self, len: usize) -> Vec<u8> {
        let frame: Vec<u8> = (0..=250).cycle().take(len).collect();
        self.host
            .send(&[&[0; HEADER_LEN], &frame[..]].concat())
            .unwrap();
        self.rig.kick(HOST);
        frame
    }
}

fn part(at: u64, len: usize) -> Part {
    Part {
        at: DATA + at,
        len: u32::try_from(len).unwrap(),
        write: false,
    }
}

#[test]
fn frame_sent_arrives_with_a_clean_header() {
    let mut guest = Guest::new(0);
    let mut header = [0; HEADER_LEN];
    header[10] = 9;
    guest.send(&header, &[7; 60]);
    let arrived = guest.arrived().unwrap();
    assert_eq!(arrived[..HEADER_LEN], [0; HEADER_LEN]);
    assert_eq!(arrived[HEADER_LEN..], [7; 60]);
    assert_eq!(guest.rig.used(usize::from(TX)).len(), 1);
}

#[test]
fn frame_cut_into_descriptors_anywhere_arrives_whole() {
    let mut guest = Guest::new(0);
    let bytes: Vec<u8> = (0..72).map(|i| if i < 12 { 0 } else { i }).collect();
    guest.rig.put(DATA, &bytes);
    let parts = [part(0, 5), part(5, 0), part(5, 8), part(13, 59)];
    guest.rig.offer(usize::from(TX), &parts);
    guest.rig.kick(TX);
    assert_eq!(guest.arrived().unwrap(), bytes);
}

#[test]
fn frames_that_are_none_are_returned_and_go_nowhere() {
    let mut guest = Guest::new(0);
    guest.send(&[0; 5], &[]);
    guest.send(&[0; HEADER_LEN], &[1; 13]);
    // A checksum outside, and one that was not negotiated.
    guest.send(&[1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0], &[1; 60]);
    guest.rig.offer(
        usize::from(TX),
        &[Part {
            at: MEMORY as u64,
            len: 60,
            write: false,
        }],
    );
    let whole = part(0, 1 << 20);
    guest.rig.offer(usize::from(TX), &[whole, whole, whole]);
    guest.rig.kick(TX);
    assert_eq!(guest.arrived(), None);
    assert_eq!(guest.rig.used(usize::from(TX)).len(), 5);

    let mut guest = Guest::new(1 << VIRTIO_NET_F_CSUM);
    guest.send(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &[1; 60]);
    assert_eq!(guest.arrived(), None);
}

#[test]
fn frame_that_comes_fills_as_many_buffers_as_it_needs() {
    let mut guest = Guest::new(0);
    let heads = [
        guest.buffer(0, 1000),
        guest.buffer(1000, 1000),
        guest.buffer(2000, 1000),
        guest.buffer(3000, 1000),
    ];
    let frame = guest.comes(2500);
    let used = guest.rig.used(usize::from(RX));
    assert_eq!(used, [(heads[0], 1000), (heads[1], 1000), (heads[2], 512)]);
    let bytes = guest.rig.get(DATA, HEADER_LEN + 2500);
    assert_eq!(bytes[10..12], [3, 0]);
    assert_eq!(bytes[HEADER_LEN..], frame);
    // The one that was left is used for the next.
    guest.comes(100);
    assert_eq!(guest.rig.used(usize::from(RX)), [(heads[3], 112)]);
}

#[test]
fn frame_without_room_waits_for_it() {
    let mut guest = Guest::new(0);
    let frame = guest.comes(3000);
    assert!(guest.rig.used(usize::from(RX)).is_empty());
    guest.buffer(0, 2000);
    guest.rig.kick(RX);
    assert!(guest.rig.used(usize::from(RX)).is_empty());
    guest.buffer(2000, 2000);
    guest.rig.kick(RX);
    assert_eq!(guest.rig.used(usize::from(RX)).len(), 2);
    assert_eq!(guest.rig.get(DATA + 12, 3000), frame);
}

#[test]
fn frames_and_waits_for_room_are_counted() {
    let mut guest = Guest::new(0);
    guest.send(&[0; HEADER_LEN], &[1; 60]);
    assert!(guest.arrived().is_some());
    guest.comes(100);
    let work = guest.rig.device.tally().work("net0");
    let sent = (HEADER_LEN + 60) as u64;
    assert_eq!((work.requests, work.from_guest_bytes), (1, sent));
    assert_eq!((work.to_guest_bytes, work.stalls), (0, 1));

    guest.buffer(0, 2000);
    guest.rig.kick(RX);

    let work = guest.rig.device.tally().work("net0");
    let came = (HEADER_LEN + 100) as u64;
    assert_eq!((work.requests, work.to_guest_bytes), (2, came));
    assert_eq!(work.stalls, 1);
}

#[test]
fn frame_too_large_for_all_buffers_together_is_lost_and_the_next_one_comes() {
    let mut guest = Guest::new(0);
    for number in 0..u64::from(RING) {
        guest.buffer(number * 64, 64);
    }
    guest.comes(60_000);
    guest.comes(52);
    assert_eq!(guest.rig.used(usize::from(RX)).len(), 1);
}

#[test]
fn frame_too_large_for_its_one_buffer_is_lost_without_merging() {
    let mut guest = Guest::new(1 << VIRTIO_NET_F_MRG_RXBUF);
    let head = guest.buffer(0, 500);
    guest.buffer(500, 500);
    guest.comes(600);
    assert!(guest.rig.used(usize::from(RX)).is_empty());
    guest.comes(400);
    assert_eq!(guest.rig.used(usize::from(RX)), [(head, 412)]);
}

#[test]
fn buffers_that_are_none_are_returned_empty() {
    let mut guest = Guest::new(0);
    let readable = guest.rig.offer(usize::from(RX), &[part(0, 2000)]);
    let outside = guest.rig.offer(
        usize::from(RX),
        &[Part {
            at: u64::MAX - 10,
            len: 2000,
            write: true,
        }],
    );
    let good = guest.buffer(0, 2000);
    guest.comes(100);
    assert_eq!(
        guest.rig.used(usize::from(RX)),
        [(readable, 0), (outside, 0), (good, 112)]
    );
}

#[test]
fn configuration_space_has_address_and_mtu() {
    let guest = Guest::new(0);
    let space = guest.rig.device.get_config(0, 12);
    assert_eq!(space[..6], MAC);
    assert_eq!(space[10..12], 1500u16.to_le_bytes());
}

/// One step of a guest or of the world around it.
#[derive(Clone, Debug)]
enum Step {
    Offer(bool, Vec<(u64, u32, bool)>),
    Raw(bool, u16, u64, u32, u16, u16),
    Comes(usize),
    Features(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![
        4 => DATA..DATA + 100_000,
        1 => any::<u64>(),
        1 => (MEMORY as u64 - 100)..(MEMORY as u64 + 100),
    ];
    let len = prop_oneof![4 => 0_u32..3000, 1 => any::<u32>()];
    let parts = proptest::collection::vec((at.clone(), len.clone(), any::<bool>()), 1..6);
    prop_oneof![
        4 => (any::<bool>(), parts).prop_map(|(tx, parts)| Step::Offer(tx, parts)),
        1 => (any::<bool>(), 0..RING, at, len, any::<u16>(), any::<u16>())
            .prop_map(|(tx, i, at, len, flags, next)| Step::Raw(tx, i, at, len, flags, next)),
        3 => (0_usize..5000).prop_map(Step::Comes),
        1 => any::<u64>().prop_map(Step::Features),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_guest_is_served_without_panic_and_sends_only_frames(
        steps in proptest::collection::vec(any_step(), 1..40),
    ) {
        let mut guest = Guest::new(0);
        for step in steps {
            match step {
                Step::Offer(tx, parts) => {
                    let parts: Vec<Part> = parts
                        .into_iter()
                        .map(|(at, len, write)| Part { at, len, write })
                        .collect();
                    guest.rig.offer(usize::from(tx), &parts);
                }
                Step::Raw(tx, index, at, len, flags, next) => {
                    guest.rig.descriptor(usize::from(tx), index, at, len, flags, next);
                }
                Step::Comes(len) => {
                    // A full wire loses frames.
                    let _ = guest.host.send(&vec![1; len]);
                }
                Step::Features(features) => guest.rig.device.acked_features(features),
            }
            for event in [TX, RX, HOST] {
                guest.rig.kick(event);
            }
            while let Some(bytes) = guest.arrived() {
                prop_assert!((HEADER_LEN + 14..=HEADER_LEN + MAX_FRAME).contains(&bytes.len()));
                prop_assert_eq!(bytes[0] & !1, 0);
            }
        }
    }
}
