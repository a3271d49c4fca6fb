//! The device against a guest that gives memory away, and one that names what it may not.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use vm_memory::{FileOffset, GuestAddress};

use super::give::{PAGE, runs};
use super::{Balloon, DEFLATE, INFLATE, REPORTS};
use crate::rig::{DATA, MEMORY, Part, Rig};
use crate::session::Memory;

/// What is in each page at first.
const MARK: u8 = 0x5a;
/// Where the parts of the memory lie in the file: not where the guest has them.
const FILE_START: u64 = 16 * PAGE;
const HIGH: u64 = 1 << 32;
const HIGH_SIZE: usize = 1 << 20;

struct Guest {
    rig: Rig<Balloon>,
    file: File,
}

impl Guest {
    /// Two parts of memory in one file, the second above a hole, all of it touched; between them in the
    /// file, and around, what is somebody else's.
    fn new() -> Self {
        let file = File::from(
            rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        );
        let size = usize::try_from(2 * FILE_START).unwrap() + MEMORY + HIGH_SIZE;
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![MARK; size], 0).unwrap();
        let part = |start| Some(FileOffset::new(file.try_clone().unwrap(), start));
        let memory = Memory::from_ranges_with_files([
            (GuestAddress(0), MEMORY, part(FILE_START)),
            (
                GuestAddress(HIGH),
                HIGH_SIZE,
                part(FILE_START + MEMORY as u64),
            ),
        ])
        .unwrap();
        // The rings must read as empty.
        let guest = Self {
            rig: Rig::with_memory(Balloon::default(), memory),
            file,
        };
        guest.rig.put(0, &vec![0; usize::try_from(DATA).unwrap()]);
        guest
    }

    /// Pages of the file that take memory of the host.
    fn pages(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512 / PAGE
    }

    fn ask(&mut self, ring: u16, parts: &[Part]) {
        let head = self.rig.offer(usize::from(ring), parts);
        self.rig.kick(ring);
        let used = self.rig.used(usize::from(ring));
        assert_eq!(used, [(head, 0)], "every request is answered once");
    }

    fn list(&mut self, ring: u16, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        self.rig.put(DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.ask(
            ring,
            &[Part {
                at: DATA,
                len,
                write: false,
            }],
        );
    }

    fn report(&mut self, pieces: &[(u64, u32)]) {
        let pieces: Vec<Part> = pieces
            .iter()
            .map(|(at, len)| Part {
                at: *at,
                len: *len,
                write: true,
            })
            .collect();
        self.ask(REPORTS, &pieces);
    }

    fn is_given(&self, at: u64) -> bool {
        match self
            .rig
            .get(at, 4096)
            .iter()
            .collect::<std::collections::BTreeSet<_>>()
        {
            bytes if bytes.iter().all(|byte| **byte == 0) => true,
            bytes if bytes.iter().all(|byte| **byte == MARK) => false,
            _ => panic!("half a page was given back"),
        }
    }
}

#[test]
fn report_gives_back_exactly_what_it_names() {
    let mut guest = Guest::new();
    let before = guest.pages();

    guest.report(&[(0x10_0000, 0x4000), (0x20_0000, 0x1000)]);

    assert_eq!(before - guest.pages(), 5);
    assert!(guest.is_given(0x10_0000) && guest.is_given(0x10_3000) && guest.is_given(0x20_0000));
    assert!(!guest.is_given(0xf_f000) && !guest.is_given(0x10_4000) && !guest.is_given(0x20_1000));
}

#[test]
fn report_above_the_hole_gives_back_what_is_there() {
    let mut guest = Guest::new();
    let before = guest.pages();

    guest.report(&[(HIGH, 0x1000), (HIGH + HIGH_SIZE as u64 - PAGE, 0x1000)]);

    assert_eq!(before - guest.pages(), 2);
    assert!(guest.is_given(HIGH) && !guest.is_given(HIGH + PAGE));
}

#[test]
fn report_of_what_is_not_the_guests_gives_nothing_and_the_rest_goes_on() {
    let mut guest = Guest::new();
    let before = guest.pages();
    let end = MEMORY as u64;

    guest.report(&[
        (end, 0x1000),
        (end - PAGE, 0x2000),
        (HIGH - PAGE, 0x2000),
        (HIGH + HIGH_SIZE as u64 - PAGE, 0x2000),
        (u64::MAX - 0xfff, 0x2000),
        (0x10_0800, 0x1000),
        (0x10_0000, 0x0800),
    ]);
    assert_eq!(guest.pages(), before);

    guest.report(&[(end, 0x1000), (0x10_0000, 0x1000)]);
    assert_eq!(before - guest.pages(), 1);
}

#[test]
fn report_the_device_may_not_write_gives_nothing() {
    let mut guest = Guest::new();
    let before = guest.pages();

    guest.ask(
        REPORTS,
        &[Part {
            at: 0x10_0000,
            len: 0x1000,
            write: false,
        }],
    );

    assert_eq!(guest.pages(), before);
}

#[test]
fn pages_listed_to_inflate_are_given_back() {
    let mut guest = Guest::new();
    let before = guest.pages();

    guest.list(INFLATE, &[0x102, 0x100, 0x101, 0x200]);

    assert_eq!(before - guest.pages(), 4);
    assert!(guest.is_given(0x10_2000) && guest.is_given(0x20_0000));
    assert!(!guest.is_given(0x10_3000));
}

#[test]
fn page_deflated_stays_and_is_memory_again() {
    let mut guest = Guest::new();
    guest.list(INFLATE, &[0x100]);
    let before = guest.pages();

    guest.list(DEFLATE, &[0x100, 0x101]);

    assert_eq!(guest.pages(), before, "nothing more goes");
    guest.rig.put(0x10_0000, b"again");
    assert_eq!(guest.rig.get(0x10_0000, 5), b"again");
}

#[test]
fn pages_listed_that_are_not_there_cost_nothing() {
    let mut guest = Guest::new();
    let before = guest.pages();

    guest.list(INFLATE, &[u32::MAX, 0xf_ffff, 0x400]);

    assert_eq!(guest.pages(), before);
}

#[test]
fn runs_join_neighbours_and_doubles() {
    let joined: Vec<_> = runs(&[1, 2, 2, 3, 7, 9, 10]).collect();
    assert_eq!(joined, [(1, 3), (7, 1), (9, 2)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nothing_outside_the_guests_memory_is_ever_given(
        pieces in proptest::collection::vec((any::<u64>(), 0..40_u32, any::<u32>()), 1..6),
        numbers in proptest::collection::vec(any::<u32>(), 0..20),
    ) {
        let mut guest = Guest::new();
        let pieces: Vec<(u64, u32)> = pieces
            .into_iter()
            .map(|(at, shift, len)| (at >> shift, len))
            // Not the rings.
            .filter(|(at, _)| *at >= DATA)
            .collect();
        if !pieces.is_empty() {
            guest.report(&pieces);
        }
        let numbers: Vec<u32> = numbers.into_iter().filter(|number| *number >= 0x80).collect();
        guest.list(INFLATE, &numbers);
        let around = usize::try_from(FILE_START).unwrap();
        let end = FILE_START + MEMORY as u64 + HIGH_SIZE as u64;
        for place in [0, end] {
            let mut bytes = vec![0; around];
            std::os::unix::fs::FileExt::read_exact_at(&guest.file, &mut bytes, place).unwrap();
            prop_assert!(bytes.iter().all(|byte| *byte == MARK));
        }
    }
}
