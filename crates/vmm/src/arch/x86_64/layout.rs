//! Addresses and interrupts of the machine.

/// Where the tables for entering 64-bit mode lie; the kernel replaces them by its own.
pub(crate) const GDT: u64 = 0x500;
pub(crate) const BOOT_PARAMS: u64 = 0x7000;
/// The same place, for a kernel that is entered by PVH.
pub(crate) const START_INFO: u64 = BOOT_PARAMS;
/// A list of further things the kernel is told, one page.
pub(crate) const SETUP_DATA: u64 = 0x8000;
pub(crate) const PAGE_TABLES: u64 = 0x9000;
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line the kernel takes, with its terminating zero.
pub(crate) const COMMAND_LINE_SIZE: usize = 2048;

/// The end of what the guest may use of the first MiB. Here the kernel looks for the description of
/// processors and interrupts first.
pub(crate) const LOW_END: u64 = 0x9_fc00;
/// The description itself: it may be longer than the room at [`LOW_END`].
pub(crate) const MP_TABLE: u64 = 0xe_0000;
/// From here on memory is ordinary again.
pub(crate) const HIGH_START: u64 = 0x10_0000;

/// Between the two parts of the memory: devices.
const HOLE_START: u64 = 0xc000_0000;
const HOLE_END: u64 = 0x1_0000_0000;

/// Virtio devices, one page each.
pub(crate) const MMIO: u64 = 0xd000_0000;
pub(crate) const MMIO_PAGE: u64 = 0x1000;

/// Three pages and one that some processors need for real mode, in the hole.
pub(crate) const TSS: usize = 0xfffb_d000;
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;

pub(crate) const IOAPIC: u32 = 0xfec0_0000;
pub(crate) const LAPIC: u32 = 0xfee0_0000;

/// Of the serial port.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
pub(crate) const SERIAL_IRQ: u32 = 4;

/// Interrupts for devices: those of the old controllers that stand for nothing on a PC, then the rest
/// of the new one's.
const DEVICE_IRQS: [u32; 17] = [
    5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];

/// Most devices a machine has.
pub(crate) const MOST_DEVICES: usize = DEVICE_IRQS.len();

/// The interrupt of the `number`th device.
pub(crate) fn device_irq(number: usize) -> Option<u32> {
    DEVICE_IRQS.get(number).copied()
}

/// The page of the `number`th device.
pub(crate) fn device_address(number: usize) -> u64 {
    MMIO.saturating_add((number as u64).saturating_mul(MMIO_PAGE))
}

/// Start and size of the parts of a memory of `bytes`.
pub(crate) fn ram(bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let low = bytes.min(HOLE_START);
    [(0, low), (HOLE_END, bytes.saturating_sub(low))]
        .into_iter()
        .filter(|(_, size)| *size > 0)
}
