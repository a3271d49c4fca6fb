//! The control groups of the host: where the processes of a sandbox live as an engine sees it
//! (`linux.cgroupsPath`), so that it can count them, and what bounds the virtual machine as a whole.
//!
//! The container itself is bounded in the guest, by the guest's own control group. On the host the
//! same CPU limits hold for the machine as a whole, and memory and number of processes for the
//! machine plus what its processes need beyond it ([`limit::Bounds`]).
//!
//! Version 1 and version 2 are both spoken, also at once: each controller is used where the host has
//! it. With `--systemd-cgroup` systemd is asked for the group. Without `linux.cgroupsPath` none is made
//! otherwise.

mod error;
mod group;
mod hierarchy;
pub mod limit;
mod record;
mod systemd;

pub use error::CgroupError;
pub use group::{Group, Place};
pub use hierarchy::{Hierarchies, Hierarchy, Version};
pub use record::{Dir, Record};
pub use systemd::{BusError, Scope};
