//! A guest that drives the vsock device's rings with any bytes in chains of any shape, while the
//! host side reads, writes and closes.
//!
//! The input is a list of steps: a byte chooses, the following ones are its arguments.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bulkhead_devices::rig::{DATA, Part, RING, Rig};
use bulkhead_devices::vsock::Vsock;
use bulkhead_devices::vsock::control::{DeviceChannel, HostChannel, Request, pair};
use bulkhead_devices::vsock::mux::Mux;
use libfuzzer_sys::fuzz_target;

const RX: usize = 0;
const TX: usize = 1;
const HOST: u16 = 4;

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

/// A header that passes the first checks, with the parts that matter from the input.
fn header(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(u32::from(input.byte()? % 4).to_le_bytes());
    bytes.extend(u32::from(1000 + u16::from(input.byte()? % 4)).to_le_bytes());
    bytes.extend(u32::from(input.word()?).to_le_bytes());
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(u16::from(input.byte()? % 9).to_le_bytes());
    bytes.extend(u32::from(input.byte()? % 4).to_le_bytes());
    bytes.extend((u32::from(input.word()?) << 4).to_le_bytes());
    bytes.extend((u32::from(input.word()?) << 2).to_le_bytes());
    Some(bytes)
}

fn expect(control: &HostChannel, port: u32) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let reader = theirs.try_clone().unwrap();
    let request = Request::Expect {
        port,
        reader: true,
        writer: true,
    };
    let _ = control.send(request, vec![reader.into(), theirs.into()]);
    ours
}

fn step(
    input: &mut Input<'_>,
    rig: &mut Rig<Vsock>,
    control: &HostChannel,
    hosts: &mut Vec<UnixStream>,
) -> Option<()> {
    match input.byte()? % 9 {
        0 => {
            let bytes = header(input)?;
            rig.put(DATA, &bytes);
            let payload = u32::from(input.word()?);
            rig.offer(
                TX,
                &[Part {
                    at: DATA,
                    len: 44 + payload,
                    write: false,
                }],
            );
        }
        1 => {
            let at = DATA + u64::from(input.word()?);
            let len = u32::from(input.word()?);
            rig.offer(
                RX,
                &[Part {
                    at,
                    len,
                    write: true,
                }],
            );
        }
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
            rig.descriptor(
                queue,
                index,
                at,
                u32::from(input.word()?),
                input.word()?,
                input.word()?,
            );
        }
        4 => hosts.push(expect(control, 1000 + u32::from(input.byte()? % 4))),
        5 => {
            let byte = input.byte()?;
            if let Some(host) = hosts.last_mut() {
                let _ = host.write(&vec![byte; usize::from(byte) * 100]);
            }
        }
        6 => {
            if let Some(host) = hosts.last_mut() {
                let _ = host.read(&mut vec![0; 100_000]);
            }
        }
        7 => drop(hosts.pop()),
        _ => {
            let port = 1000 + u32::from(input.byte()? % 4);
            let _ = control.send(Request::Cancel { port }, vec![]);
        }
    }
    for event in [TX as u16, RX as u16, HOST] {
        rig.kick(event);
    }
    while let Ok(Some(_)) = control.try_recv() {}
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let (control, device) = pair().unwrap();
    let mux = Mux::new(3, DeviceChannel::new(device), None).unwrap();
    let mut rig = Rig::new(Vsock::new(3, mux));
    let mut hosts = Vec::new();
    let mut input = Input(data);
    while step(&mut input, &mut rig, &control, &mut hosts).is_some() {}
});
