//! A guest that drives a disk's ring with any requests in chains of any shape.
//!
//! The input is a list of steps: a byte chooses, the following ones are its arguments.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_devices::block::{Block, Medium};
use bulkhead_devices::rig::{DATA, Part, RING, Rig};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 64 * 512;
const STATUS: u64 = DATA + 0x8000;

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

    fn part(&mut self) -> Option<Part> {
        Some(Part {
            at: u64::from(self.word()?) << (self.byte()? % 49),
            len: u32::from(self.word()?) << (self.byte()? % 17),
            write: self.byte()? % 2 == 1,
        })
    }
}

fn step(input: &mut Input<'_>, rig: &mut Rig<Block>) -> Option<()> {
    match input.byte()? % 3 {
        // A request with header and status in their places.
        0 => {
            let header: Vec<u8> = (0..16).map_while(|_| input.byte()).collect();
            rig.put(DATA, &header);
            let mut parts = vec![Part {
                at: DATA,
                len: 16,
                write: false,
            }];
            for _ in 0..input.byte()? % 4 {
                parts.push(Part {
                    at: DATA + u64::from(input.word()?),
                    len: u32::from(input.word()?),
                    write: input.byte()? % 2 == 1,
                });
            }
            parts.push(Part {
                at: STATUS,
                len: 1,
                write: true,
            });
            rig.offer(0, &parts);
        }
        1 => {
            let count = input.byte()? % 5;
            let parts: Vec<Part> = (0..=count).map_while(|_| input.part()).collect();
            if !parts.is_empty() {
                rig.offer(0, &parts);
            }
        }
        _ => {
            let index = input.word()? % RING;
            let at = DATA + u64::from(input.word()?);
            let (len, flags, next) = (input.word()?, input.word()?, input.word()?);
            rig.descriptor(0, index, at, u32::from(len), flags, next);
        }
    }
    rig.kick(0);
    Some(())
}

fn run(file: &File, data: &[u8], read_only: bool) {
    file.write_all_at(&[7; SIZE as usize], 0).unwrap();
    let medium = Medium::new(file.try_clone().unwrap(), read_only, "bulkhead-0").unwrap();
    let mut rig = Rig::new(Block::new(medium));
    let mut input = Input(data);
    while step(&mut input, &mut rig).is_some() {}
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    if read_only {
        let mut bytes = [0; SIZE as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}

fuzz_target!(|data: &[u8]| {
    // The disk is one of memory: the target is the device, not a file system.
    let file = File::from(
        rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
    );
    let read_only = data.first().is_some_and(|byte| byte % 2 == 1);
    run(&file, data.get(1..).unwrap_or_default(), read_only);
});
