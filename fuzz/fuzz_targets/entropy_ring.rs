//! A guest that asks for random bytes by chains of any shape.
//!
//! The input is a list of chains: a byte chooses how many parts, the following ones are those.

#![no_main]

use bulkhead_devices::entropy::Entropy;
use bulkhead_devices::rig::{DATA, Part, RING, Rig};
use libfuzzer_sys::fuzz_target;

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

fn step(input: &mut Input<'_>, rig: &mut Rig<Entropy>) -> Option<()> {
    match input.byte()? % 8 {
        0 => {
            let index = input.word()? % RING;
            let at = DATA + u64::from(input.word()?);
            let (len, flags, next) = (input.word()?, input.word()?, input.word()?);
            rig.descriptor(0, index, at, u32::from(len), flags, next);
        }
        count => {
            let parts: Vec<Part> = (0..count).map_while(|_| input.part()).collect();
            if !parts.is_empty() {
                rig.offer(0, &parts);
            }
        }
    }
    rig.kick(0);
    // The answers say nothing: a guest can have random bytes put over them.
    rig.used(0);
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let mut rig = Rig::new(Entropy::default());
    let mut input = Input(data);
    while step(&mut input, &mut rig).is_some() {}
});
