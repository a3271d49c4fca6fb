//! Hypervisor drivers: what boots and watches a guest.
//!
//! A [`Driver`] boots a [`Machine`] in a jailed process and hands back a [`Vm`]; that, and waiting
//! for the process to end, is all that every driver does. What only some can do (see
//! [`capabilities`]) is a trait of its own that a `Vm` has or has not, like [`Pausable`].
//!
//! The devices of the guest are not here: the drivers connect it to vhost-user back ends by their
//! sockets.

mod choose;
mod cpu;
mod driver;
mod error;
mod huge;
mod kvm;
mod launch;
mod machine;
mod plug;
mod qemu;
mod uml;

pub use choose::{Choice, Wanted, choose};
pub use cpu::CpuLease;
pub use driver::{
    Abilities, BackEnds, Driver, Isolation, Kind, Measurable, Pausable, Resizable, Vm, capabilities,
};
pub use error::HypervisorError;
pub use kvm::{BuiltIn, KvmVerdict, MachineStatistics, kvm_verdict};
pub use machine::{LaunchIo, Machine, Net};
pub use plug::{PlugKind, Pluggable, Plugged};
pub use qemu::{Accelerator, Qemu};
pub use uml::Uml;
