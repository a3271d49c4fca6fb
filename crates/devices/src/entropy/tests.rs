//! The device against a guest that asks for bytes, and one that asks for what it may not have.

use proptest::prelude::*;

use super::{Entropy, MOST};
use crate::rig::{DATA, MEMORY, Part, Rig};

fn part(at: u64, len: u32, write: bool) -> Part {
    Part { at, len, write }
}

fn ask(rig: &mut Rig<Entropy>, parts: &[Part]) -> u32 {
    let head = rig.offer(0, parts);
    rig.kick(0);
    let used = rig.used(0);
    assert_eq!(used.len(), 1, "every request is answered once");
    assert_eq!(used[0].0, head);
    used[0].1
}

#[test]
fn request_is_filled_and_the_next_one_with_other_bytes() {
    let mut rig = Rig::new(Entropy::default());
    assert_eq!(ask(&mut rig, &[part(DATA, 64, true)]), 64);
    let first = rig.get(DATA, 64);
    assert_eq!(ask(&mut rig, &[part(DATA, 64, true)]), 64);
    let second = rig.get(DATA, 64);
    assert_ne!(first, [0; 64]);
    assert_ne!(first, second);
    assert_eq!(rig.get(DATA + 64, 8), [0; 8], "no byte beyond");
}

#[test]
fn request_in_parts_is_filled_through_all_of_them() {
    let mut rig = Rig::new(Entropy::default());
    let parts = [part(DATA, 3, true), part(DATA + 100, 61, true)];
    assert_eq!(ask(&mut rig, &parts), 64);
    assert_ne!(rig.get(DATA + 100, 61), [0; 61]);
}

#[test]
fn request_for_much_gets_a_part() {
    let mut rig = Rig::new(Entropy::default());
    let much = u32::try_from(MOST).unwrap() * 4;
    assert_eq!(ask(&mut rig, &[part(DATA, much, true)]) as usize, MOST);
    assert_eq!(rig.get(DATA + MOST as u64, 8), [0; 8]);
}

#[test]
fn request_without_room_gets_nothing() {
    let mut rig = Rig::new(Entropy::default());
    rig.put(DATA, &[7; 64]);
    assert_eq!(ask(&mut rig, &[part(DATA, 64, false)]), 0);
    assert_eq!(rig.get(DATA, 64), [7; 64]);
}

#[test]
fn request_for_memory_the_guest_has_not_gets_nothing() {
    let mut rig = Rig::new(Entropy::default());
    assert_eq!(ask(&mut rig, &[part(MEMORY as u64, 64, true)]), 0);
    assert_eq!(ask(&mut rig, &[part(u64::MAX - 8, 64, true)]), 0);
    assert_eq!(ask(&mut rig, &[part(DATA, 16, true)]), 16, "and goes on");
}

proptest! {
    #[test]
    fn no_chain_gets_more_than_its_room_or_the_limit(
        parts in proptest::collection::vec((DATA..MEMORY as u64 * 2, 0..8192_u32, any::<bool>()), 1..6)
    ) {
        let mut rig = Rig::new(Entropy::default());
        let room: usize = parts.iter().filter(|part| part.2).map(|part| part.1 as usize).sum();
        let parts: Vec<Part> = parts.iter().map(|(at, len, write)| part(*at, *len, *write)).collect();
        rig.offer(0, &parts);
        rig.kick(0);
        for (_, len) in rig.used(0) {
            prop_assert!(len as usize <= room.min(MOST));
        }
    }
}
