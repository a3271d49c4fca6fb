//! The kernel, its command line and initial file system, and what it is told of the machine.
//!
//! The file's content decides how it is entered: Linux, unpacked (ELF) or not (bzImage), by its 64-bit
//! boot protocol (Documentation/arch/x86/boot.rst); another ELF kernel by PVH, if it has that entry.

use std::fs::File;

use super::layout::{
    self, BOOT_PARAMS, COMMAND_LINE, COMMAND_LINE_SIZE, GDT, HIGH_START, LOW_END, PAGE_TABLES,
    SETUP_DATA,
};
use super::{bzimage, mptable, pvh};
use crate::memory::Memory;
use crate::{VmmError, elf};

/// Where and how the first processor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In 64-bit mode, by Linux's protocol.
    Long(u64),
    /// In 32-bit mode without paging, by PVH.
    Pvh(u32),
}

/// A kernel in memory, and what it says of itself.
struct Kernel {
    entry: Entry,
    /// The first address behind it.
    end: u64,
    /// The first address the initial file system must not reach.
    initrd_end: u64,
    /// The longest command line it takes, without the zero.
    command_line: usize,
    /// Its set-up header for the zero page; empty if it has none.
    header: Vec<u8>,
}

/// Descriptors of the boot code: 64-bit code and flat data, at the selectors the protocol names.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Fields of the `boot_params` structure, by their offsets.
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const LOADER_TYPE: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const COMMAND_LINE_POINTER: usize = 0x228;
const FIRST_SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;

/// The kind of setup data that is a seed for random numbers.
const RNG_SEED: u32 = 9;
/// As many bytes as a kernel's generator has bits of state, divided by eight.
pub(crate) const SEED_SIZE: usize = 32;

const PAGE: u64 = 4096;

/// Loads everything and returns where the kernel is entered.
///
/// # Errors
/// When the kernel is none, or the memory is too small for all.
pub(crate) fn load(
    memory: &Memory,
    kernel: &mut File,
    initramfs: &mut File,
    command_line: &str,
    processors: u8,
    seed: &[u8; SEED_SIZE],
) -> Result<Entry, VmmError> {
    let kernel = load_kernel(memory, kernel)?;
    let ramdisk = load_initramfs(memory, initramfs, &kernel)?;
    write_command_line(memory, command_line, kernel.command_line)?;
    mptable::write(memory, processors)?;
    match kernel.entry {
        Entry::Long(_) => {
            memory.write(SETUP_DATA, &setup_data(seed))?;
            memory.write(BOOT_PARAMS, &boot_params(memory, ramdisk, &kernel.header))?;
        }
        Entry::Pvh(_) => pvh::write(memory, ramdisk, &memory_map(memory))?,
    }
    enter_tables(memory)?;
    Ok(kernel.entry)
}

fn load_kernel(memory: &Memory, file: &mut File) -> Result<Kernel, VmmError> {
    if bzimage::is_one(file) {
        let loaded = bzimage::load(file, memory)?;
        return Ok(Kernel {
            entry: Entry::Long(loaded.entry),
            end: loaded.end,
            initrd_end: loaded.initrd_end,
            command_line: loaded.command_line.min(COMMAND_LINE_SIZE - 1),
            header: loaded.header,
        });
    }
    let loaded = elf::load(file, memory)?;
    let entry = match loaded.pvh {
        Some(address) if !loaded.linux => Entry::Pvh(address),
        _ => Entry::Long(loaded.entry),
    };
    Ok(Kernel {
        entry,
        end: loaded.end,
        initrd_end: u64::MAX,
        command_line: COMMAND_LINE_SIZE - 1,
        header: Vec::new(),
    })
}

/// At the end of the lower memory, or as high as the kernel reaches, from where it need not move it. Returns start and
/// size.
fn load_initramfs(
    memory: &Memory,
    file: &mut File,
    kernel: &Kernel,
) -> Result<(u32, u32), VmmError> {
    let what = "the initial file system";
    let size = file
        .metadata()
        .map_err(|source| VmmError::Read {
            what: "the initial file system",
            source,
        })?
        .len();
    let (_, low) = memory.ranges().next().unwrap_or_default();
    let end = low.min(kernel.initrd_end);
    let start = end.saturating_sub(size) & !(PAGE - 1);
    if start < kernel.end {
        return Err(VmmError::TooSmall {
            what,
            address: start,
        });
    }
    let too_small = |_| VmmError::TooSmall {
        what,
        address: start,
    };
    memory.load(what, start, file, usize::try_from(size).map_err(too_small)?)?;
    Ok((
        u32::try_from(start).map_err(too_small)?,
        u32::try_from(size).map_err(too_small)?,
    ))
}

fn write_command_line(memory: &Memory, text: &str, most: usize) -> Result<(), VmmError> {
    if text.len() > most {
        return Err(VmmError::CommandLine {
            length: text.len(),
            most,
        });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    memory.write(COMMAND_LINE, &bytes)
}

fn boot_params(memory: &Memory, (ramdisk, ramdisk_size): (u32, u32), header: &[u8]) -> Vec<u8> {
    let mut page = vec![0_u8; 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        let place = offset..offset.saturating_add(bytes.len());
        if let Some(place) = page.get_mut(place) {
            place.copy_from_slice(bytes);
        }
    };
    put(bzimage::SETUP_HEADER, header);
    put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
    put(HEADER_MAGIC, b"HdrS");
    put(LOADER_TYPE, &[0xff]);
    put(RAMDISK_IMAGE, &ramdisk.to_le_bytes());
    put(RAMDISK_SIZE, &ramdisk_size.to_le_bytes());
    let command_line = u32::try_from(COMMAND_LINE).unwrap_or(0);
    put(COMMAND_LINE_POINTER, &command_line.to_le_bytes());
    let entries = memory_map(memory);
    put(FIRST_SETUP_DATA, &SETUP_DATA.to_le_bytes());
    put(E820_ENTRIES, &[u8::try_from(entries.len()).unwrap_or(0)]);
    for (index, (start, size)) in entries.into_iter().enumerate() {
        let mut entry = [0; 20];
        entry[..8].copy_from_slice(&start.to_le_bytes());
        entry[8..16].copy_from_slice(&size.to_le_bytes());
        entry[16] = 1; // usable memory
        put(E820_TABLE.saturating_add(index.saturating_mul(20)), &entry);
    }
    page
}

/// The seed, as the only element of the list of setup data. A kernel that has it need not wait for
/// entropy, nor make do with little until it has some; it wipes it.
fn setup_data(seed: &[u8; SEED_SIZE]) -> Vec<u8> {
    let next = 0_u64.to_le_bytes();
    let length = u32::try_from(SEED_SIZE).unwrap_or(0);
    [
        &next[..],
        &RNG_SEED.to_le_bytes(),
        &length.to_le_bytes(),
        seed,
    ]
    .concat()
}

/// The memory the kernel may use.
fn memory_map(memory: &Memory) -> Vec<(u64, u64)> {
    let mut entries = vec![(0, LOW_END)];
    for (start, size) in memory.ranges() {
        let end = start.saturating_add(size);
        let start = start.max(HIGH_START);
        entries.push((start, end.saturating_sub(start)));
    }
    entries
}

/// Descriptors, and page tables that map the first GiB to itself by large pages.
fn enter_tables(memory: &Memory) -> Result<(), VmmError> {
    for (index, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        let place = GDT.saturating_add((index as u64).saturating_mul(8));
        memory.write(place, &descriptor.to_le_bytes())?;
    }
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let (second, third) = (
        PAGE_TABLES.saturating_add(PAGE),
        PAGE_TABLES.saturating_add(PAGE.saturating_mul(2)),
    );
    memory.write(PAGE_TABLES, &(second | PRESENT_WRITABLE).to_le_bytes())?;
    memory.write(second, &(third | PRESENT_WRITABLE).to_le_bytes())?;
    let directory: Vec<u8> = (0..512_u64)
        .flat_map(|index| (index << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes())
        .collect();
    memory.write(third, &directory)
}

/// The words that tell the kernel of a virtio device.
pub(crate) fn device_word(number: usize) -> Option<String> {
    place_of(number).map(|place| format!("virtio_mmio.device={place}"))
}

/// Where the `number`th device is, as the kernel's driver wants to be told: size, address, interrupt,
/// number. None of a number no device of a machine has.
#[must_use]
pub fn place_of(number: usize) -> Option<String> {
    let irq = layout::device_irq(number)?;
    let address = layout::device_address(number);
    Some(format!("4K@{address:#x}:{irq}:{number}"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    fn kernel(end: u64, initrd_end: u64) -> Kernel {
        Kernel {
            entry: Entry::Long(end),
            end,
            initrd_end,
            command_line: COMMAND_LINE_SIZE - 1,
            header: Vec::new(),
        }
    }

    #[test]
    fn initramfs_lies_page_aligned_at_the_end_of_memory() {
        let memory = Memory::new(4 << 20).unwrap();

        let kernel = kernel(0x10_0000, u64::MAX);
        let (start, size) = load_initramfs(&memory, &mut file(b"archive"), &kernel).unwrap();

        assert_eq!((start, size), ((4 << 20) - 4096, 7));
        let mut bytes = [0; 7];
        memory.read(u64::from(start), &mut bytes).unwrap();
        assert_eq!(&bytes, b"archive");
    }

    #[test]
    fn initramfs_lies_no_higher_than_the_kernel_reaches() {
        let memory = Memory::new(4 << 20).unwrap();
        let kernel = kernel(0x10_0000, 2 << 20);
        let (start, _) = load_initramfs(&memory, &mut file(b"archive"), &kernel).unwrap();
        assert_eq!(start, (2 << 20) - 4096);
    }

    #[test]
    fn zero_page_of_a_bzimage_has_its_header_and_what_the_loader_adds() {
        let memory = Memory::new(4 << 20).unwrap();
        let image = bzimage::tests::image(b"code");
        let kernel = load_kernel(&memory, &mut file(&image)).unwrap();
        assert_eq!(kernel.entry, Entry::Long(0x10_0200));

        let page = boot_params(&memory, (0x20_0000, 7), &kernel.header);

        let preferred = 0x258..0x260;
        assert_eq!(page[preferred.clone()], image[preferred]);
        assert_eq!(page[LOADER_TYPE], 0xff);
        assert_eq!(page[RAMDISK_IMAGE..][..4], 0x20_0000_u32.to_le_bytes());
    }

    #[test]
    fn file_of_another_kind_is_refused() {
        let memory = Memory::new(4 << 20).unwrap();
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0x1f; 4096]] {
            let result = load_kernel(&memory, &mut file(bytes));
            assert!(matches!(result, Err(VmmError::Kernel { .. })));
        }
    }

    #[test]
    fn initramfs_that_would_hit_the_kernel_is_refused() {
        let memory = Memory::new(4 << 20).unwrap();
        let kernel = kernel((4 << 20) - 4096, u64::MAX);
        let result = load_initramfs(&memory, &mut file(&[0; 8192]), &kernel);
        assert!(matches!(result, Err(VmmError::TooSmall { .. })));
    }

    #[test]
    fn command_line_too_long_is_refused() {
        let memory = Memory::new(4 << 20).unwrap();
        let most = COMMAND_LINE_SIZE - 1;
        write_command_line(&memory, &"x".repeat(most), most).unwrap();
        assert!(matches!(
            write_command_line(&memory, &"x".repeat(COMMAND_LINE_SIZE), most),
            Err(VmmError::CommandLine { .. })
        ));
    }

    #[test]
    fn seed_is_the_only_setup_data_and_named_by_the_zero_page() {
        let memory = Memory::new(4 << 20).unwrap();
        let page = boot_params(&memory, (0, 0), &[]);
        let pointer: [u8; 8] = page[FIRST_SETUP_DATA..][..8].try_into().unwrap();
        assert_eq!(u64::from_le_bytes(pointer), SETUP_DATA);

        let data = setup_data(&[7; SEED_SIZE]);

        assert_eq!(data[..8], [0; 8]);
        assert_eq!(data[8..16], [9, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(data[16..], [7; SEED_SIZE]);
    }

    #[test]
    fn memory_map_leaves_out_tables_and_devices() {
        let memory = Memory::new(4096 << 20).unwrap();
        let map = memory_map(&memory);
        assert_eq!(
            map,
            [
                (0, LOW_END),
                (HIGH_START, 0xc000_0000 - HIGH_START),
                (0x1_0000_0000, 0x4000_0000)
            ]
        );
    }
}
