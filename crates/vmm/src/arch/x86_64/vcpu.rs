//! The state a processor begins with.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::boot::Entry;
use super::layout::{BOOT_PARAMS, GDT, PAGE_TABLES, START_INFO};
use crate::VmmError;

pub(crate) use super::cpuid::{numbered, supported};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// Enabled, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Registers of the local APIC with its two lines.
const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
const DELIVER_EXTERNAL: u32 = 0x700;
const DELIVER_NMI: u32 = 0x400;

/// Makes the first processor begin at `entry`, as its boot protocol wants it. The others wait for the
/// kernel to start them.
///
/// # Errors
/// [`VmmError::Kvm`].
pub(crate) fn enter_at(vcpu: &VcpuFd, entry: Entry) -> Result<(), VmmError> {
    let mut segments = vcpu
        .get_sregs()
        .map_err(VmmError::kvm("read the system registers"))?;
    let long = matches!(entry, Entry::Long(_));
    let data = segment(0x18, 0x3, false);
    segments.cs = segment(0x10, 0xb, long);
    (segments.ds, segments.es, segments.ss) = (data, data, data);
    (segments.fs, segments.gs) = (data, data);
    segments.gdt.base = GDT;
    segments.gdt.limit = 31;
    segments.idt.limit = 0;
    segments.cr0 = CR0_PE | CR0_ET;
    if long {
        segments.cr3 = PAGE_TABLES;
        segments.cr4 = CR4_PAE;
        segments.cr0 |= CR0_PG;
        segments.efer = EFER_LME | EFER_LMA;
    } else {
        // A busy task segment of the smallest size; those KVM begins with are of 16 bits.
        segments.tr = kvm_segment {
            limit: 0x67,
            s: 0,
            g: 0,
            db: 0,
            ..segment(0, 0xb, false)
        };
    }
    vcpu.set_sregs(&segments)
        .map_err(VmmError::kvm("set the system registers"))?;
    let mut registers = kvm_regs {
        rflags: 2,
        rsp: BOOT_PARAMS.saturating_sub(16),
        ..Default::default()
    };
    match entry {
        Entry::Long(address) => (registers.rip, registers.rsi) = (address, BOOT_PARAMS),
        Entry::Pvh(address) => (registers.rip, registers.rbx) = (address.into(), START_INFO),
    }
    vcpu.set_regs(&registers)
        .map_err(VmmError::kvm("set the registers"))
}

/// What all processors have in common.
///
/// # Errors
/// [`VmmError::Kvm`].
pub(crate) fn prepare(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(VmmError::kvm("set the floating-point unit"))?;
    for (index, data) in [
        (MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEFAULT, MTRR_WRITE_BACK),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let list = Msrs::from_entries(&[entry]).map_err(|_| VmmError::Internal {
            what: "a list of one model-specific register",
        })?;
        // Both only speed a kernel up; a KVM without one of them does well.
        vcpu.set_msrs(&list)
            .map_err(VmmError::kvm("set the model-specific registers"))?;
    }
    let mut lapic = vcpu
        .get_lapic()
        .map_err(VmmError::kvm("read the local interrupt controller"))?;
    for (register, mode) in [(LAPIC_LINT0, DELIVER_EXTERNAL), (LAPIC_LINT1, DELIVER_NMI)] {
        for (byte, place) in mode.to_le_bytes().into_iter().zip(register..) {
            if let Some(place) = lapic.regs.get_mut(place) {
                *place = libc::c_char::from_ne_bytes([byte]);
            }
        }
    }
    vcpu.set_lapic(&lapic)
        .map_err(VmmError::kvm("set the local interrupt controller"))
}

/// A flat segment of all 4 GiB; `long` is code of 64 bits.
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
