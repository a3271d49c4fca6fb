//! Loading an uncompressed kernel: ELF, 64 bits, by physical addresses.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::VmmError;
use crate::arch::layout;
use crate::memory::Memory;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// More segments than any kernel has.
const MOST_SEGMENTS: u16 = 64;

/// Constants of the format.
const MAGIC: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
const MACHINE_X86_64: u16 = 62;
const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// More notes than any kernel has, bytes.
const MOST_NOTES: u64 = 64 * 1024;
/// Owner and type of the note that names where a kernel is entered by PVH.
const PVH_OWNER: &[u8] = b"Xen\0";
const PVH_ENTRY: u32 = 18;
/// Owner of notes that Linux alone has.
const LINUX_OWNER: &[u8] = b"Linux\0";

/// What was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// Where the kernel begins, by the file's header.
    pub(crate) entry: u64,
    /// Where it begins when it is entered by PVH, if it can be.
    pub(crate) pvh: Option<u32>,
    /// Whether a note says that it is Linux, whose header names a 64-bit entry.
    pub(crate) linux: bool,
    /// The first address behind it.
    pub(crate) end: u64,
}

/// Loads the kernel `file`. Memory that the file does not fill is left as it is, which is zero.
///
/// # Errors
/// [`VmmError::Kernel`] when the file is no such kernel; [`VmmError::TooSmall`] when it does not fit.
pub(crate) fn load(file: &mut File, memory: &Memory) -> Result<Loaded, VmmError> {
    let mut header = [0; HEADER];
    read(file, &mut header, 0)?;
    if !header.starts_with(&MAGIC) || number16(&header, 18) != MACHINE_X86_64 {
        return Err(bad("it is not a 64-bit ELF file for x86-64"));
    }
    let entry = number64(&header, 24);
    let table = number64(&header, 32);
    let count = number16(&header, 56);
    if usize::from(number16(&header, 54)) != PROGRAM_HEADER || count > MOST_SEGMENTS {
        return Err(bad("its table of segments is none"));
    }
    let mut loaded = Loaded {
        entry,
        pvh: None,
        linux: false,
        end: 0,
    };
    for index in 0..u64::from(count) {
        let mut segment = [0; PROGRAM_HEADER];
        let place = index
            .checked_mul(PROGRAM_HEADER as u64)
            .and_then(|offset| offset.checked_add(table))
            .ok_or_else(|| bad("its table of segments lies beyond any file"))?;
        read(file, &mut segment, place)?;
        match number32(&segment, 0) {
            LOAD => loaded.end = loaded.end.max(load_segment(file, memory, &segment)?),
            NOTE => look_at_notes(&read_notes(file, &segment)?, &mut loaded)?,
            _ => {}
        }
    }
    let begins = match loaded.pvh {
        Some(address) if !loaded.linux => address.into(),
        _ => entry,
    };
    if loaded.end == 0 || begins >= loaded.end {
        return Err(bad("it has nothing at its entry"));
    }
    Ok(loaded)
}

fn read_notes(file: &File, segment: &[u8; PROGRAM_HEADER]) -> Result<Vec<u8>, VmmError> {
    let (offset, size) = (number64(segment, 8), number64(segment, 32));
    if size > MOST_NOTES {
        return Err(bad("its notes are too long"));
    }
    let size = usize::try_from(size).map_err(|_| bad("its notes are too long"))?;
    let mut notes = vec![0; size];
    read(file, &mut notes, offset)?;
    Ok(notes)
}

/// Owner and contents of each note are padded to four bytes.
fn look_at_notes(mut notes: &[u8], loaded: &mut Loaded) -> Result<(), VmmError> {
    const HEADING: usize = 12;
    let cut_short = || bad("one of its notes is cut short");
    while !notes.is_empty() {
        let rest = notes.get(HEADING..).ok_or_else(cut_short)?;
        let length = |at| usize::try_from(number32(notes, at)).map_err(|_| cut_short());
        let (owner_length, content_length) = (length(0)?, length(4)?);
        let owner = rest.get(..owner_length).ok_or_else(cut_short)?;
        let rest = rest
            .get(padded(owner_length)..)
            .filter(|rest| rest.len() >= content_length)
            .ok_or_else(cut_short)?;
        loaded.linux |= owner == LINUX_OWNER;
        if owner == PVH_OWNER && number32(notes, 8) == PVH_ENTRY {
            let address = match content_length {
                4 => u64::from(number32(rest, 0)),
                8 => number64(rest, 0),
                _ => return Err(bad("the note of its PVH entry holds no address")),
            };
            let address = u32::try_from(address)
                .map_err(|_| bad("its PVH entry lies beyond what 32 bits can name"))?;
            loaded.pvh = Some(address);
        }
        notes = rest.get(padded(content_length)..).unwrap_or_default();
    }
    Ok(())
}

fn padded(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// Returns the first address behind the segment.
fn load_segment(
    file: &mut File,
    memory: &Memory,
    segment: &[u8; PROGRAM_HEADER],
) -> Result<u64, VmmError> {
    let (offset, address) = (number64(segment, 8), number64(segment, 24));
    let (in_file, in_memory) = (number64(segment, 32), number64(segment, 40));
    if address < layout::HIGH_START || in_file > in_memory {
        return Err(bad(
            "a segment of it lies where the machine's own tables are",
        ));
    }
    if !memory.holds(address, in_memory) {
        return Err(VmmError::TooSmall {
            what: "the kernel",
            address,
        });
    }
    let length = usize::try_from(in_file).map_err(|_| bad("a segment of it is too long"))?;
    std::io::Seek::seek(file, std::io::SeekFrom::Start(offset)).map_err(unreadable)?;
    memory.load("the kernel", address, file, length)?;
    Ok(address.saturating_add(in_memory))
}

fn read(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), VmmError> {
    file.read_exact_at(bytes, offset).map_err(unreadable)
}

fn unreadable(source: std::io::Error) -> VmmError {
    VmmError::Kernel {
        reason: "it cannot be read as far as its headers say".to_owned(),
        source: Some(source),
    }
}

fn bad(reason: &str) -> VmmError {
    VmmError::Kernel {
        reason: reason.to_owned(),
        source: None,
    }
}

/// The little-endian number at `offset`; zero where there is none.
fn number64(bytes: &[u8], offset: usize) -> u64 {
    let part = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    part.copied().map_or(0, u64::from_le_bytes)
}

fn number32(bytes: &[u8], offset: usize) -> u32 {
    let part = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    part.copied().map_or(0, u32::from_le_bytes)
}

fn number16(bytes: &[u8], offset: usize) -> u16 {
    let part = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    part.copied().map_or(0, u16::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// An ELF file with one segment of `content` at `address`, `in_memory` long.
    fn image(entry: u64, address: u64, content: &[u8], in_memory: u64) -> Vec<u8> {
        let mut header = vec![0; HEADER];
        header[..7].copy_from_slice(&MAGIC);
        header[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        header[24..32].copy_from_slice(&entry.to_le_bytes());
        header[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        header[54..56].copy_from_slice(&56_u16.to_le_bytes());
        header[56..58].copy_from_slice(&1_u16.to_le_bytes());
        let mut segment = vec![0; PROGRAM_HEADER];
        segment[..4].copy_from_slice(&LOAD.to_le_bytes());
        segment[8..16].copy_from_slice(&((HEADER + PROGRAM_HEADER) as u64).to_le_bytes());
        segment[24..32].copy_from_slice(&address.to_le_bytes());
        segment[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
        segment[40..48].copy_from_slice(&in_memory.to_le_bytes());
        [header, segment, content.to_vec()].concat()
    }

    /// `code` at 1 MiB, which is where PVH enters it.
    pub(crate) fn image_with_pvh(code: &[u8]) -> Vec<u8> {
        with_notes(
            code,
            &note(b"Xen\0", PVH_ENTRY, &0x10_0000_u32.to_le_bytes()),
        )
    }

    fn image_with_notes(notes: &[u8]) -> Vec<u8> {
        with_notes(b"kernel", notes)
    }

    /// As [`image`], with a segment of `notes` behind the other.
    fn with_notes(content: &[u8], notes: &[u8]) -> Vec<u8> {
        let mut bytes = image(0x10_0000, 0x10_0000, content, 0x1000);
        let mut segment = vec![0; PROGRAM_HEADER];
        segment[..4].copy_from_slice(&NOTE.to_le_bytes());
        let place = (bytes.len() + PROGRAM_HEADER) as u64;
        segment[8..16].copy_from_slice(&place.to_le_bytes());
        segment[32..40].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        bytes[56..58].copy_from_slice(&2_u16.to_le_bytes());
        // The content moves up by one header.
        let first = HEADER + PROGRAM_HEADER;
        let moved = ((first + PROGRAM_HEADER) as u64).to_le_bytes();
        bytes[HEADER + 8..HEADER + 16].copy_from_slice(&moved);
        bytes.splice(first..first, segment);
        bytes.extend(notes);
        bytes
    }

    fn note(owner: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend(u32::try_from(owner.len()).unwrap().to_le_bytes());
        note.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
        note.extend(kind.to_le_bytes());
        for part in [owner, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn memory() -> Memory {
        Memory::new(4 << 20).unwrap()
    }

    #[test]
    fn segment_is_loaded_where_it_belongs() {
        let memory = memory();
        let image = image(0x10_0000, 0x10_0000, b"kernel", 0x1000);

        let loaded = load(&mut file(&image), &memory).unwrap();

        assert_eq!((loaded.entry, loaded.end), (0x10_0000, 0x10_1000));
        let mut bytes = [0; 7];
        memory.read(0x10_0000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"kernel\0");
    }

    #[test]
    fn pvh_entry_is_found_among_other_notes_in_both_widths() {
        for address in [
            &0x10_0040_u32.to_le_bytes()[..],
            &0x10_0040_u64.to_le_bytes(),
        ] {
            let notes = [
                note(b"GNU\0", 3, b"an identity"),
                note(b"Xen\0", 19, b"something else"),
                note(b"Xen\0", PVH_ENTRY, address),
            ];
            let loaded = load(&mut file(&image_with_notes(&notes.concat())), &memory()).unwrap();
            assert_eq!(loaded.pvh, Some(0x10_0040));
            assert!(!loaded.linux);
        }
    }

    #[test]
    fn linux_is_known_by_its_notes() {
        let notes = [
            note(b"Linux\0", 0x101, &[0; 4]),
            note(b"Xen\0", PVH_ENTRY, &0x10_0040_u64.to_le_bytes()),
        ];
        let loaded = load(&mut file(&image_with_notes(&notes.concat())), &memory()).unwrap();
        assert!(loaded.linux);
        assert_eq!((loaded.entry, loaded.pvh), (0x10_0000, Some(0x10_0040)));
    }

    #[test]
    fn notes_damaged_are_refused() {
        let whole = note(b"Xen\0", PVH_ENTRY, &0x10_0040_u64.to_le_bytes());
        let mut endless = whole.clone();
        endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let cases = [
            whole[..whole.len() - 1].to_vec(),
            whole[..5].to_vec(),
            endless,
            note(b"Xen\0", PVH_ENTRY, b"odd"),
            note(b"Xen\0", PVH_ENTRY, &u64::MAX.to_le_bytes()),
            // Nothing is loaded there.
            note(b"Xen\0", PVH_ENTRY, &0x20_0000_u32.to_le_bytes()),
        ];
        for notes in cases {
            let result = load(&mut file(&image_with_notes(&notes)), &memory());
            assert!(matches!(result, Err(VmmError::Kernel { .. })), "{notes:x?}");
        }
    }

    #[test]
    fn kernel_larger_than_the_memory_is_told_as_such() {
        let image = image(0x10_0000, 0x10_0000, b"kernel", 8 << 20);
        let error = load(&mut file(&image), &memory()).unwrap_err();
        assert!(
            matches!(
                error,
                VmmError::TooSmall {
                    what: "the kernel",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn segment_over_the_machines_tables_is_refused() {
        let image = image(0x7000, 0x7000, b"kernel", 0x1000);
        assert!(matches!(
            load(&mut file(&image), &memory()),
            Err(VmmError::Kernel { .. })
        ));
    }

    #[test]
    fn file_cut_short_is_an_error() {
        let image = image(0x10_0000, 0x10_0000, b"kernel", 0x1000);
        assert!(load(&mut file(&image[..image.len() - 1]), &memory()).is_err());
    }

    #[test]
    fn script_is_no_kernel() {
        let text = b"#!/bin/sh\n".repeat(10);
        assert!(matches!(
            load(&mut file(&text), &memory()),
            Err(VmmError::Kernel { .. })
        ));
    }

    proptest! {
        #[test]
        fn headers_of_any_bytes_never_panic(
            rest in proptest::collection::vec(any::<u8>(), 0..200),
            at in 0_usize..118,
            value in any::<u64>(),
        ) {
            let mut bytes = image(0x10_0000, 0x10_0000, b"kernel", 0x1000);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            bytes.extend(rest);
            let _ = load(&mut file(&bytes), &memory());
        }

        #[test]
        fn notes_of_any_bytes_never_panic(notes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = load(&mut file(&image_with_notes(&notes)), &memory());
        }
    }
}
