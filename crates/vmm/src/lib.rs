//! Our KVM machine.
//!
//! Made for one purpose: to start a container's kernel with few instructions, exits and pages. It has
//! processors, memory from one memfd, the interrupt controllers of the host's kernel, a serial port for
//! the kernel's first and last words, a reset line, and virtio devices over memory-mapped registers
//! ([`transport`]). What is behind those registers is in another process: rings, memory and events are
//! handed to the device process by vhost-user, so nothing here reads a ring.
//!
//! [`run`] is the process, `bulkhead vmm`; [`control`] commands it. `docs/vmm.md` has the machine on one
//! page.

mod arch;
mod bus;
mod config;
pub mod control;
mod counts;
mod elf;
#[cfg(test)]
mod entered;
mod error;
mod gate;
mod machine;
mod memory;
mod process;
mod processor;
mod serial;
#[cfg(test)]
mod tiny;
pub mod transport;

pub use arch::boot::place_of;
pub use config::{DeviceConfig, DeviceKind, VmmConfig};
pub use counts::{ExitCounts, Metrics};
pub use error::VmmError;
pub use process::run;
pub use processor::End;

/// The most processors of a machine.
pub const MAX_VCPUS: u8 = 64;
