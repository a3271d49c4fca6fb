//! x86-64: where things lie, how the kernel is entered, what the processor is.

pub(crate) mod boot;
pub(crate) mod bzimage;
pub(crate) mod cpuid;
pub(crate) mod interrupts;
pub(crate) mod layout;
mod mptable;
mod pvh;
pub(crate) mod report;
pub(crate) mod vcpu;
