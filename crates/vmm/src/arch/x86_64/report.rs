//! A processor's registers, for a person.

use std::fmt::Write as _;

use kvm_ioctls::VcpuFd;

/// The registers that tell what a processor was about, on a few lines.
pub(crate) fn registers(vcpu: &VcpuFd) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    if let Ok(regs) = vcpu.get_regs() {
        let named = [
            ("rip", regs.rip),
            ("rsp", regs.rsp),
            ("rflags", regs.rflags),
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("rbp", regs.rbp),
            ("r8", regs.r8),
            ("r9", regs.r9),
            ("r10", regs.r10),
            ("r11", regs.r11),
            ("r12", regs.r12),
            ("r13", regs.r13),
            ("r14", regs.r14),
            ("r15", regs.r15),
        ];
        for (name, value) in named {
            let _ = write!(text, "{name}={value:#x} ");
        }
    }
    if let Ok(sregs) = vcpu.get_sregs() {
        let _ = write!(
            text,
            "cs={:#x} ss={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
            sregs.cs.selector,
            sregs.ss.selector,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer
        );
    }
    text
}
