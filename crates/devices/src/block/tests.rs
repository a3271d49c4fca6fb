//! The disk against a guest that does what drivers do, and one that does what none would.

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use vhost_user_backend::VhostUserBackendMut;

use super::{Block, Medium};
use crate::rig::{DATA, MEMORY, Part, Rig};

const SIZE: usize = 64 * 512;
const OK: u8 = 0;
const ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// Where the guest has its status byte and its data.
const STATUS: u64 = DATA + 0x1000;
const BUFFER: u64 = DATA + 0x2000;

struct Guest {
    rig: Rig<Block>,
    file: File,
}

impl Guest {
    /// A disk of 64 sectors, each filled with its number.
    fn new(read_only: bool) -> Self {
        let file = tempfile::tempfile().unwrap();
        let sectors: Vec<u8> = (0..64).flat_map(|number| [number; 512]).collect();
        assert_eq!(sectors.len(), SIZE);
        file.write_all_at(&sectors, 0).unwrap();
        let medium = Medium::new(file.try_clone().unwrap(), read_only, "bulkhead-0").unwrap();
        Self {
            rig: Rig::new(Block::new(medium)),
            file,
        }
    }

    /// One request with `parts` between header and status; the status, and how many bytes the device
    /// says it has written.
    fn ask(&mut self, kind: u32, sector: u64, parts: &[Part]) -> (u8, u32) {
        let header = [
            &kind.to_le_bytes()[..],
            &0_u32.to_le_bytes(),
            &sector.to_le_bytes(),
        ];
        self.rig.put(DATA, &header.concat());
        self.rig.put(STATUS, &[0xff]);
        let mut chain = vec![part(DATA, 16, false)];
        chain.extend(parts);
        chain.push(part(STATUS, 1, true));
        self.rig.offer(0, &chain);
        self.rig.kick(0);
        let used = self.rig.used(0);
        assert_eq!(used.len(), 1, "every request is answered once");
        (self.rig.get(STATUS, 1)[0], used[0].1)
    }

    fn clear(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        let range = [
            &sector.to_le_bytes()[..],
            &count.to_le_bytes(),
            &flags.to_le_bytes(),
        ];
        self.rig.put(BUFFER, &range.concat());
        self.ask(kind, 0, &[part(BUFFER, 16, false)]).0
    }

    fn sector(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        self.file.read_exact_at(&mut bytes, number * 512).unwrap();
        bytes
    }
}

fn part(at: u64, len: u32, write: bool) -> Part {
    Part { at, len, write }
}

#[test]
fn sectors_read_are_those_of_the_file() {
    let mut guest = Guest::new(false);
    let parts = [part(BUFFER, 100, true), part(BUFFER + 100, 924, true)];
    assert_eq!(guest.ask(IN, 7, &parts), (OK, 1025));
    assert_eq!(guest.rig.get(BUFFER, 512), [7; 512]);
    assert_eq!(guest.rig.get(BUFFER + 512, 512), [8; 512]);
}

#[test]
fn sectors_written_are_in_the_file() {
    let mut guest = Guest::new(false);
    guest.rig.put(BUFFER, &[0xab; 1024]);
    let parts = [part(BUFFER, 1, false), part(BUFFER + 1, 1023, false)];
    assert_eq!(guest.ask(OUT, 62, &parts), (OK, 1));
    assert_eq!(guest.sector(61), [61; 512]);
    assert_eq!(guest.sector(62), [0xab; 512]);
    assert_eq!(guest.sector(63), [0xab; 512]);
    assert_eq!(guest.ask(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn request_beyond_the_end_changes_nothing() {
    for (sector, len) in [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
    ] {
        for kind in [IN, OUT] {
            let mut guest = Guest::new(false);
            let parts = [part(BUFFER, len, kind == IN)];
            assert_eq!(
                guest.ask(kind, sector, &parts),
                (ERROR, 1),
                "{sector} {len}"
            );
            assert_eq!(guest.file.metadata().unwrap().len(), SIZE as u64);
        }
    }
}

#[test]
fn request_for_a_part_of_a_sector_refused() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.ask(IN, 0, &[part(BUFFER, 511, true)]).0, ERROR);
    assert_eq!(guest.ask(OUT, 0, &[part(BUFFER, 513, false)]).0, ERROR);
    assert_eq!(guest.sector(0), [0; 512]);
}

#[test]
fn read_only_disk_is_not_written() {
    let mut guest = Guest::new(true);
    guest.rig.put(BUFFER, &[0xab; 512]);
    assert_eq!(guest.ask(OUT, 3, &[part(BUFFER, 512, false)]).0, ERROR);
    assert_eq!(guest.clear(DISCARD, 3, 1, 0), ERROR);
    assert_eq!(guest.clear(WRITE_ZEROES, 3, 1, 0), ERROR);
    assert_eq!(guest.sector(3), [3; 512]);
    let writable = Guest::new(false).rig.device.features();
    assert_ne!(guest.rig.device.features() & 1 << 5, 0, "says so");
    assert_eq!(writable & 1 << 5, 0);
}

#[test]
fn ranges_are_cleared_and_nothing_beside_them() {
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        let mut guest = Guest::new(false);
        assert_eq!(guest.clear(kind, 10, 2, flags), OK, "{kind} {flags}");
        assert_eq!(guest.sector(9), [9; 512]);
        assert_eq!(guest.sector(10), [0; 512]);
        assert_eq!(guest.sector(11), [0; 512]);
        assert_eq!(guest.sector(12), [12; 512]);
    }
}

#[test]
fn ranges_that_make_no_sense_refused() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.clear(DISCARD, 63, 2, 0), ERROR);
    assert_eq!(guest.clear(DISCARD, 0, u32::MAX, 0), ERROR);
    assert_eq!(guest.clear(DISCARD, 0, 1, 1), UNSUPPORTED);
    assert_eq!(guest.clear(WRITE_ZEROES, 0, 1, 2), UNSUPPORTED);
    assert_eq!(guest.ask(DISCARD, 0, &[part(BUFFER, 15, false)]).0, ERROR);
    assert_eq!(guest.sector(0), [0; 512]);
    assert_eq!(guest.sector(63), [63; 512]);
}

#[test]
fn name_is_told() {
    let mut guest = Guest::new(false);
    let answer = guest.ask(GET_ID, 0, &[part(BUFFER, 20, true)]);
    assert_eq!(answer, (OK, 21));
    assert_eq!(guest.rig.get(BUFFER, 12), b"bulkhead-0\0\0");
}

#[test]
fn size_is_told_and_beyond_the_space_are_zeros() {
    let guest = Guest::new(false);
    let space = guest.rig.device.get_config(0, 96);
    assert_eq!(space.len(), 96);
    assert_eq!(space[..8], 64_u64.to_le_bytes());
    assert_eq!(space[60..], [0; 36]);
}

#[test]
fn request_of_an_unknown_kind_is_told_unsupported() {
    assert_eq!(Guest::new(false).ask(99, 0, &[]), (UNSUPPORTED, 1));
}

#[test]
fn request_without_room_for_a_status_is_given_back() {
    let mut guest = Guest::new(false);
    guest.rig.put(DATA, &[0; 16]);
    guest.rig.offer(0, &[part(DATA, 16, false)]);
    guest.rig.kick(0);
    assert_eq!(guest.rig.used(0).len(), 1);
}

#[test]
fn memory_the_guest_has_not_got_is_an_error() {
    let mut guest = Guest::new(false);
    let outside = part(MEMORY as u64 - 1, 512, false);
    guest.rig.offer(0, &[part(DATA, 16, false), outside]);
    guest.rig.kick(0);
    assert_eq!(guest.rig.used(0), [(0, 0)]);
    assert_eq!(guest.sector(0), [0; 512]);
}

proptest! {
    #[test]
    fn chains_of_any_shape_are_given_back(
        kind in 0_u32..16,
        sector in prop_oneof![0_u64..80, any::<u64>()],
        parts in proptest::collection::vec((0_u64..0x2000, 0_u32..4096, any::<bool>()), 0..6),
    ) {
        let mut guest = Guest::new(false);
        let parts: Vec<Part> = parts
            .into_iter()
            .map(|(at, len, write)| part(BUFFER + at, len, write))
            .collect();
        guest.ask(kind, sector, &parts);
        prop_assert_eq!(guest.file.metadata().unwrap().len(), SIZE as u64);
    }
}
