//! What differs between processors.

mod x86_64;

#[cfg(test)]
pub(crate) use x86_64::bzimage;
pub(crate) use x86_64::{boot, interrupts, layout, report, vcpu};
