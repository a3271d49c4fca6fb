//! What a kernel that is entered by PVH is told: the start information of Xen's boot ABI
//! (xen/include/public/arch-x86/hvm/start_info.h, version 1).

use super::layout::{COMMAND_LINE, START_INFO};
use crate::VmmError;
use crate::memory::Memory;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Where the lists lie, behind the start information itself.
const MODULES: u64 = START_INFO + 64;
const MEMORY_MAP: u64 = MODULES + 32;
const USABLE: u32 = 1;

/// Writes the start information for a machine with its initial file system at `ramdisk` (start and size)
/// and the memory `map` (start and size of each usable part).
///
/// # Errors
/// [`VmmError::TooSmall`] when there is no memory for it.
pub(super) fn write(
    memory: &Memory,
    ramdisk: (u32, u32),
    map: &[(u64, u64)],
) -> Result<(), VmmError> {
    let parts = u32::try_from(map.len()).unwrap_or(0);
    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, 1] {
        info.extend(word.to_le_bytes());
    }
    // The last one would be ACPI's tables, of which there are none.
    for address in [MODULES, COMMAND_LINE, 0, MEMORY_MAP] {
        info.extend(address.to_le_bytes());
    }
    info.extend(parts.to_le_bytes());
    memory.write(START_INFO, &info)?;

    let (start, size) = ramdisk;
    let module: Vec<u8> = [u64::from(start), u64::from(size), 0, 0]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    memory.write(MODULES, &module)?;

    let mut list = Vec::new();
    for (start, size) in map {
        list.extend(start.to_le_bytes());
        list.extend(size.to_le_bytes());
        list.extend(USABLE.to_le_bytes());
        list.extend([0; 4]);
    }
    memory.write(MEMORY_MAP, &list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_information_names_module_command_line_and_memory() {
        let memory = Memory::new(4 << 20).unwrap();
        let map = [(0, 0x9_fc00), (0x10_0000, 0x30_0000)];

        write(&memory, (0x3f_f000, 7), &map).unwrap();

        let word = |address| {
            let mut bytes = [0; 8];
            memory.read(address, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!(
            word(START_INFO),
            u64::from(VERSION) << 32 | u64::from(MAGIC)
        );
        assert_eq!(word(START_INFO + 8) >> 32, 1);
        assert_eq!(word(word(START_INFO + 16)), 0x3f_f000);
        assert_eq!(word(START_INFO + 24), COMMAND_LINE);
        assert_eq!(word(START_INFO + 48), 2);
        let list = word(START_INFO + 40);
        assert_eq!(
            (word(list), word(list + 8), word(list + 16)),
            (0, 0x9_fc00, 1)
        );
        assert_eq!(word(list + 24), 0x10_0000);
    }
}
