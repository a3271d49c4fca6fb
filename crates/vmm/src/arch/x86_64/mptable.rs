//! The table of processors and interrupt lines (Intel MultiProcessor Specification 1.4).
//!
//! The smallest description that makes a kernel use the I/O APIC; without any it would fall back to
//! the controllers of 1981, whose every acknowledgement leaves the guest.

use super::layout::{IOAPIC, LAPIC, LOW_END, MP_TABLE};
use crate::VmmError;
use crate::memory::Memory;

const LINES: u8 = 24;
const ISA_BUS: u8 = 0;
/// Version register of the APICs.
const APIC_VERSION: u8 = 0x14;

/// Writes the table for `processors`.
pub(super) fn write(memory: &Memory, processors: u8) -> Result<(), VmmError> {
    let table = table(processors);
    memory.write(MP_TABLE, &table)?;
    memory.write(LOW_END, &pointer())
}

/// The floating pointer structure.
fn pointer() -> [u8; 16] {
    let mut bytes = [0; 16];
    let [a, b, c, d] = u32::try_from(MP_TABLE).unwrap_or(0).to_le_bytes();
    // Signature, address, length in units of 16 bytes, revision 1.4.
    bytes[..10].copy_from_slice(&[b'_', b'M', b'P', b'_', a, b, c, d, 1, 4]);
    bytes[10] = checksum(&bytes);
    bytes
}

fn table(processors: u8) -> Vec<u8> {
    let ioapic_id = processors;
    let mut entries: Vec<u8> = Vec::new();
    for id in 0..processors {
        // Usable; the first one boots.
        let flags = if id == 0 { 0b11 } else { 0b01 };
        entries.extend([0, id, APIC_VERSION, flags]);
        // Signature and features: the kernel asks the processor itself.
        entries.extend([0; 16]);
    }
    entries.extend([1, ISA_BUS]);
    entries.extend(b"ISA   ");
    entries.extend([2, ioapic_id, APIC_VERSION, 1]);
    entries.extend(IOAPIC.to_le_bytes());
    let mut count = u16::from(processors).saturating_add(2);
    for line in 0..LINES {
        // An ordinary interrupt, conforming to its bus (edge, active high), to the same line.
        entries.extend([3, 0, 0, 0, ISA_BUS, line, ioapic_id, line]);
        count = count.saturating_add(1);
    }
    // The local lines: the old controller on the first, NMI on the second, of all processors.
    entries.extend([4, 3, 0, 0, ISA_BUS, 0, 0xff, 0]);
    entries.extend([4, 1, 0, 0, ISA_BUS, 0, 0xff, 1]);
    count = count.saturating_add(2);

    let mut table = Vec::with_capacity(entries.len().saturating_add(44));
    let length = u16::try_from(entries.len().saturating_add(44)).unwrap_or(u16::MAX);
    table.extend(b"PCMP");
    table.extend(length.to_le_bytes());
    table.extend([4, 0]); // revision; the checksum's place
    table.extend(b"BULKHEADMACHINE     ");
    table.extend([0; 6]); // no table of the maker's
    table.extend(count.to_le_bytes());
    table.extend(LAPIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    let sum = checksum(&table);
    if let Some(place) = table.get_mut(7) {
        *place = sum;
    }
    table
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_sums_to_zero_and_tells_its_length() {
        for processors in [1, 2, 64] {
            let table = table(processors);
            assert_eq!(checksum(&table), 0);
            let length = u16::from_le_bytes([table[4], table[5]]);
            assert_eq!(usize::from(length), table.len());
            let count = u16::from_le_bytes([table[34], table[35]]);
            assert_eq!(count, u16::from(processors) + 2 + 24 + 2);
        }
        assert_eq!(checksum(&pointer()), 0);
    }

    #[test]
    fn table_lies_outside_usable_memory() {
        let end = MP_TABLE + table(64).len() as u64;
        assert!(MP_TABLE > LOW_END && end < super::super::layout::HIGH_START);
    }
}
