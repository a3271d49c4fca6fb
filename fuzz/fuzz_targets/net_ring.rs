//! A guest that drives the network card's rings with any headers and frames in chains of any shape,
//! while frames come in.
//!
//! The input is a list of steps: a byte chooses, the following ones are its arguments.

#![no_main]

use std::os::unix::net::UnixDatagram;

use bulkhead_devices::net::Net;
use bulkhead_devices::net::frames::MAX_FRAME;
use bulkhead_devices::rig::{DATA, Part, RING, Rig};
use libfuzzer_sys::fuzz_target;
use vhost_user_backend::VhostUserBackendMut;

const RX: u16 = 0;
const TX: u16 = 1;
const HOST: u16 = 3;
const HEADER: usize = 12;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }
}

fn step(
    input: &mut Input<'_>,
    rig: &mut Rig<Net<UnixDatagram>>,
    host: &UnixDatagram,
) -> Option<()> {
    match input.byte()? % 6 {
        // A frame whose header is from the input.
        0 => {
            let header: Vec<u8> = (0..HEADER).map_while(|_| input.byte()).collect();
            rig.put(DATA, &header);
            let len = u32::from(input.word()?);
            let part = Part {
                at: DATA,
                len,
                write: false,
            };
            rig.offer(usize::from(TX), &[part]);
        }
        // A receive buffer.
        1 => {
            let part = Part {
                at: DATA + u64::from(input.word()?),
                len: u32::from(input.word()?),
                write: true,
            };
            rig.offer(usize::from(RX), &[part]);
        }
        // A chain of any shape.
        2 => {
            let queue = usize::from(input.byte()? % 2);
            let parts: Vec<Part> = (0..=input.byte()? % 5)
                .map_while(|_| {
                    Some(Part {
                        at: u64::from(input.word()?) << (input.byte()? % 49),
                        len: u32::from(input.word()?) << (input.byte()? % 17),
                        write: input.byte()? % 2 == 1,
                    })
                })
                .collect();
            if !parts.is_empty() {
                rig.offer(queue, &parts);
            }
        }
        3 => {
            let (queue, index) = (usize::from(input.byte()? % 2), input.word()? % RING);
            let at = DATA + u64::from(input.word()?);
            let (len, flags, next) = (input.word()?, input.word()?, input.word()?);
            rig.descriptor(queue, index, at, u32::from(len), flags, next);
        }
        4 => {
            let len = usize::from(input.word()?);
            // A full wire loses frames.
            let _ = host.send(&vec![1; len]);
        }
        _ => {
            let mut features = 0;
            for _ in 0..4 {
                features = features << 16 | u64::from(input.word()?);
            }
            let offered = rig.device.features();
            rig.device.acked_features(features & offered);
        }
    }
    for event in [TX, RX, HOST] {
        rig.kick(event);
    }
    let mut frame = [0; HEADER + MAX_FRAME + 1];
    while let Ok(len) = host.recv(&mut frame) {
        assert!((HEADER + 14..=HEADER + MAX_FRAME).contains(&len));
        assert_eq!(frame[0] & !1, 0);
    }
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let (host, frames) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    frames.set_nonblocking(true).unwrap();
    let mut net = Net::new(frames, [2, 0, 0, 0, 0, 1], None).unwrap();
    let offered = net.features();
    net.acked_features(offered);
    let mut rig = Rig::new(net);
    let mut input = Input(data);
    while step(&mut input, &mut rig, &host).is_some() {}
});
