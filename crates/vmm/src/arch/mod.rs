//! What differs between processors.

mod x86_64;

pub(crate) use x86_64::{boot, interrupts, layout, report, vcpu};
