//! A guest that gives memory away, its own and what it only says is.
//!
//! The input is a list of steps: a byte chooses ring and kind, the following ones are its arguments.
//! Whatever it names, what lies beside its memory in the same file stays as it was.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_devices::balloon::Balloon;
use bulkhead_devices::rig::{DATA, MEMORY, Part, RING, Rig};
use bulkhead_devices::session::Memory;
use libfuzzer_sys::fuzz_target;
use vm_memory::{FileOffset, GuestAddress};

/// What lies before and behind the guest's memory, bytes.
const AROUND: usize = 16 << 12;
const MARK: u8 = 0x5a;

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

fn step(input: &mut Input<'_>, rig: &mut Rig<Balloon>) -> Option<()> {
    let choice = input.byte()?;
    let ring = choice % 3;
    match choice / 3 % 3 {
        // Numbers of pages.
        0 => {
            let count = usize::from(input.byte()?);
            let bytes: Vec<u8> = (0..count * 4).map_while(|_| input.byte()).collect();
            rig.put(DATA, &bytes);
            let len = u32::try_from(bytes.len()).ok()?;
            let (at, write) = (DATA, false);
            rig.offer(usize::from(ring), &[Part { at, len, write }]);
        }
        1 => {
            let count = input.byte()? % 5;
            let parts: Vec<Part> = (0..=count).map_while(|_| input.part()).collect();
            if !parts.is_empty() {
                rig.offer(usize::from(ring), &parts);
            }
        }
        _ => {
            let index = input.word()? % RING;
            let at = DATA + u64::from(input.word()?);
            let (len, flags, next) = (input.word()?, input.word()?, input.word()?);
            rig.descriptor(usize::from(ring), index, at, u32::from(len), flags, next);
        }
    }
    rig.kick(u16::from(ring));
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let file = File::from(
        rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
    );
    file.set_len((AROUND + MEMORY + AROUND) as u64).unwrap();
    let places = [0, (AROUND + MEMORY) as u64];
    for place in places {
        file.write_all_at(&[MARK; AROUND], place).unwrap();
    }
    let part = Some(FileOffset::new(file.try_clone().unwrap(), AROUND as u64));
    let memory = Memory::from_ranges_with_files([(GuestAddress(0), MEMORY, part)]).unwrap();
    let mut rig = Rig::with_memory(Balloon::default(), memory);
    let mut input = Input(data);
    while step(&mut input, &mut rig).is_some() {}
    for place in places {
        let mut bytes = [0; AROUND];
        file.read_exact_at(&mut bytes, place).unwrap();
        assert!(bytes.iter().all(|byte| *byte == MARK));
    }
});
