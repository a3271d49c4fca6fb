//! Loading a kernel that unpacks itself, as distributions install it: a bzImage
//! (Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use super::layout;
use crate::VmmError;
use crate::memory::Memory;

/// Where the set-up header begins in the file, and in the zero page alike.
pub(super) const SETUP_HEADER: usize = 0x1f1;
/// Where the header's magic is; what is behind the byte before tells the header's length.
const MAGIC_PLACE: usize = 0x202;
const MAGIC: [u8; 4] = *b"HdrS";
/// As much of the file as a header may take.
const LOOKED_AT: usize = 0x202 + 0x100;

/// Fields of the header, by their offsets in the file.
const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const LENGTH: usize = 0x201;
const VERSION: usize = 0x206;
const LOAD_FLAGS: usize = 0x211;
const INITRD_MOST: usize = 0x22c;
const EXTENDED_FLAGS: usize = 0x236;
const COMMAND_LINE_MOST: usize = 0x238;
const PREFERRED: usize = 0x258;
const NEEDED: usize = 0x260;

/// The first version that tells whether there is a 64-bit entry.
const OLDEST: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
const HAS_64_BIT_ENTRY: u16 = 1;
/// Where the 64-bit entry is, from the beginning of what is loaded.
const ENTRY: u64 = 0x200;
const SECTOR: u64 = 512;
/// The boot page tables map as much.
const MAPPED: u64 = 1 << 30;

/// What was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// Where the kernel is entered, in 64-bit mode.
    pub(super) entry: u64,
    /// The first address behind what it needs to unpack itself.
    pub(super) end: u64,
    /// The first address the initial file system must not reach.
    pub(super) initrd_end: u64,
    /// The longest command line it takes, without the zero.
    pub(super) command_line: usize,
    /// The header, for the zero page, from [`SETUP_HEADER`] on.
    pub(super) header: Vec<u8>,
}

/// Whether `file` has the magic of such a kernel, whatever else may be wrong with it.
pub(super) fn is_one(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, MAGIC_PLACE as u64).is_ok() && magic == MAGIC
}

/// Loads the kernel `file` to the address it prefers.
///
/// # Errors
/// [`VmmError::Kernel`] when this machine cannot start it; [`VmmError::TooSmall`] when it does not fit.
pub(super) fn load(file: &mut File, memory: &Memory) -> Result<Loaded, VmmError> {
    let size = file.metadata().map_err(unreadable)?.len();
    let mut head = vec![0; LOOKED_AT.min(usize::try_from(size).unwrap_or(LOOKED_AT))];
    file.read_exact_at(&mut head, 0).map_err(unreadable)?;
    if number(&head, BOOT_FLAG) != [0x55, 0xaa] || number(&head, MAGIC_PLACE) != MAGIC {
        return Err(bad("its set-up header is damaged"));
    }
    if u16::from_le_bytes(number(&head, VERSION)) < OLDEST {
        return Err(bad("it is older than Linux 3.8"));
    }
    let extended = u16::from_le_bytes(number(&head, EXTENDED_FLAGS));
    let [flags] = number(&head, LOAD_FLAGS);
    if extended & HAS_64_BIT_ENTRY == 0 || flags & LOADED_HIGH == 0 {
        return Err(bad("it has no 64-bit entry"));
    }
    let [length] = number(&head, LENGTH);
    let header = head
        .get(SETUP_HEADER..MAGIC_PLACE.saturating_add(length.into()))
        .ok_or_else(|| bad("its set-up header is cut short"))?
        .to_vec();

    let sectors = match number(&head, SETUP_SECTORS) {
        [0] => 4,
        [count] => u64::from(count),
    };
    let begins = sectors.saturating_add(1).saturating_mul(SECTOR);
    let payload = size.saturating_sub(begins);
    if payload <= ENTRY {
        return Err(bad("it ends before its code begins"));
    }
    let address = u64::from_le_bytes(number(&head, PREFERRED));
    let needed = u64::from(u32::from_le_bytes(number(&head, NEEDED))).max(payload);
    let end = address.saturating_add(needed);
    if address < layout::HIGH_START || end > MAPPED {
        return Err(bad(
            "it wants to lie where this machine cannot start a kernel",
        ));
    }
    if !memory.holds(address, needed) {
        return Err(VmmError::TooSmall {
            what: "the kernel",
            address,
        });
    }
    file.seek(SeekFrom::Start(begins)).map_err(unreadable)?;
    let length = usize::try_from(payload).map_err(|_| bad("it is too long"))?;
    memory.load("the kernel", address, file, length)?;
    let most = u32::from_le_bytes(number(&head, COMMAND_LINE_MOST));
    Ok(Loaded {
        entry: address.saturating_add(ENTRY),
        end,
        initrd_end: u64::from(u32::from_le_bytes(number(&head, INITRD_MOST))).saturating_add(1),
        command_line: usize::try_from(most).unwrap_or(usize::MAX),
        header,
    })
}

/// The bytes at `offset`; zeros where the file ends before.
fn number<const SIZE: usize>(head: &[u8], offset: usize) -> [u8; SIZE] {
    let part = head.get(offset..).and_then(|rest| rest.first_chunk());
    part.copied().unwrap_or([0; SIZE])
}

fn unreadable(source: std::io::Error) -> VmmError {
    VmmError::Kernel {
        reason: "it cannot be read".to_owned(),
        source: Some(source),
    }
}

fn bad(reason: &str) -> VmmError {
    VmmError::Kernel {
        reason: reason.to_owned(),
        source: None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// A file of one set-up sector and `code`, to lie at 1 MiB.
    pub(crate) fn image(code: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(SETUP_SECTORS, &[1]);
        put(BOOT_FLAG, &[0x55, 0xaa]);
        put(LENGTH, &[0x66]);
        put(MAGIC_PLACE, &MAGIC);
        put(VERSION, &0x20f_u16.to_le_bytes());
        put(LOAD_FLAGS, &[LOADED_HIGH]);
        put(INITRD_MOST, &0x7fff_ffff_u32.to_le_bytes());
        put(EXTENDED_FLAGS, &HAS_64_BIT_ENTRY.to_le_bytes());
        put(COMMAND_LINE_MOST, &2047_u32.to_le_bytes());
        put(PREFERRED, &0x10_0000_u64.to_le_bytes());
        put(NEEDED, &0x10_000_u32.to_le_bytes());
        bytes.resize(bytes.len() + 512, 0);
        bytes.extend(code);
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn changed(at: usize, field: &[u8]) -> Vec<u8> {
        let mut bytes = image(b"code");
        bytes[at..at + field.len()].copy_from_slice(field);
        bytes
    }

    fn load_bytes(bytes: &[u8]) -> Result<Loaded, VmmError> {
        load(&mut file(bytes), &Memory::new(4 << 20).unwrap())
    }

    #[test]
    fn code_is_loaded_where_it_prefers_to_be_and_entered_behind_its_first_sector() {
        let memory = Memory::new(4 << 20).unwrap();
        let mut file = file(&image(b"code"));
        assert!(is_one(&file));

        let loaded = load(&mut file, &memory).unwrap();

        assert_eq!((loaded.entry, loaded.end), (0x10_0200, 0x11_0000));
        assert_eq!((loaded.initrd_end, loaded.command_line), (1 << 31, 2047));
        assert_eq!(loaded.header.len(), 0x202 + 0x66 - SETUP_HEADER);
        let mut bytes = [0; 4];
        memory.read(0x10_0200, &mut bytes).unwrap();
        assert_eq!(&bytes, b"code");
    }

    #[test]
    fn kernel_that_cannot_be_started_here_is_refused_by_reason() {
        let cases = [
            (changed(BOOT_FLAG, &[0, 0]), "damaged"),
            (changed(VERSION, &0x20b_u16.to_le_bytes()), "older"),
            (changed(EXTENDED_FLAGS, &[0, 0]), "64-bit"),
            (changed(LOAD_FLAGS, &[0]), "64-bit"),
            (changed(SETUP_SECTORS, &[200]), "ends before"),
            (changed(PREFERRED, &[0; 8]), "wants to lie"),
            (changed(PREFERRED, &[0xff; 8]), "wants to lie"),
            (image(b"")[..0x230].to_vec(), "64-bit"),
        ];
        for (bytes, reason) in cases {
            let error = load_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn kernel_that_needs_more_than_the_memory_is_told_as_such() {
        let bytes = changed(NEEDED, &(8_u32 << 20).to_le_bytes());
        let error = load_bytes(&bytes).unwrap_err();
        assert!(matches!(error, VmmError::TooSmall { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn header_of_any_bytes_never_panics(
            at in SETUP_HEADER..0x264_usize,
            value in any::<u64>(),
            cut in 0_usize..1600,
        ) {
            let mut bytes = changed(at, &value.to_le_bytes());
            bytes.truncate(cut);
            let _ = load_bytes(&bytes);
        }
    }
}
