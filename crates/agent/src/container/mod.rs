//! The OCI container set-up inside the guest: one file per step.
//!
//! [`Container::create`] checks the specification, makes the control group and
//! clones the container's init process, which sets itself up
//! ([`init`]) up to, not including, `execve`, and then waits at its gate.
//! Neither call blocks on the child: what becomes of it is told over
//! [`Child::status`] and read with [`Reports`].
//!
//! # What the agent owes this module
//! - [`prepare_agent`] was called once, before anything was mounted.
//! - `/proc` is mounted, and the cgroup v2 hierarchy at [`CGROUP_ROOT`], whose
//!   controllers are handed over to the groups below it.
//! - The calling process is single-threaded and reaps its children.

mod capabilities;
mod cgroup;
mod create;
mod devices;
mod error;
mod exec;
mod failure;
mod hidden;
mod hooks;
mod init;
mod io;
mod launcher;
mod mounts;
mod namespaces;
mod process;
mod processes;
mod program;
mod refuse;
mod report;
mod rlimits;
mod rootfs;
mod scheduling;
mod seccomp;
mod sharing;
mod spawn;
mod streams;
mod sys;
mod sysctl;
mod terminal;
#[cfg(test)]
mod tests;
mod user;

pub use error::ContainerError;
pub use io::{Child, Io};
pub use report::{Failure, FailureKind, Reports};

use std::{
    os::fd::OwnedFd,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use oci_spec::runtime::{LinuxPersonality, LinuxResources};

use cgroup::Cgroup;
use failure::During;
use launcher::Launcher;

/// Where the guest's cgroup v2 hierarchy is mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Makes the calling process fit to create containers; the agent calls it once,
/// as its first act, before it mounts anything.
///
/// The initial root file system of a kernel cannot be pivoted away from, so the
/// root is laid over itself; and the process is made non-dumpable, which its
/// children inherit: a process on its way into a container cannot be inspected
/// from inside.
pub fn prepare_agent() -> Result<(), ContainerError> {
    sys::prctl(libc::PR_SET_DUMPABLE, 0)
        .while_trying(|| "make the agent non-dumpable".to_owned())?;
    rootfs::make_pivotable()
}

/// A container of this guest.
#[derive(Debug)]
pub struct Container {
    init: Pid,
    /// Of the init process; says whether it still is the same process.
    pidfd: OwnedFd,
    namespaces: namespaces::Namespaces,
    filter: Option<seccomp::Filter>,
    personality: Option<LinuxPersonality>,
    cgroup: Cgroup,
    frozen: AtomicBool,
    launchers: Mutex<Vec<Launcher>>,
}

impl Container {
    /// Sends `signal` to every process of the container.
    pub fn signal_all(&self, signal: Signal) -> Result<(), ContainerError> {
        self.cgroup.signal(signal)
    }

    /// Freezes every process of the container; blocks until they stand still,
    /// at most ten seconds.
    pub fn pause(&self) -> Result<(), ContainerError> {
        self.cgroup.freeze()?;
        self.frozen.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Undoes [`Container::pause`].
    pub fn resume(&self) -> Result<(), ContainerError> {
        self.cgroup.thaw()?;
        self.frozen.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Changes limits: all of them, or none and an error. Device rules stay as they are.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), ContainerError> {
        self.cgroup.update(resources)
    }

    /// The processes of the container, by PID.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, ContainerError> {
        processes::of(&self.cgroup)
    }

    /// What the container uses and may use.
    pub fn stats(&self) -> Result<Stats, ContainerError> {
        self.cgroup.stats()
    }

    /// How many processes of the container the memory controller has killed.
    pub fn oom_kills(&self) -> Result<u64, ContainerError> {
        self.cgroup.oom_kills()
    }

    /// Kills what is left and removes the control group. Blocks until the last process is gone, at
    /// most ten seconds.
    ///
    /// Nothing is written back here: the shares write through, and what was written into a mapping
    /// went to the host when the mapping was closed, at the latest with its process.
    pub fn destroy(self) -> Result<(), ContainerError> {
        self.cgroup.remove()
    }
}

/// A process of a container as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// In the guest's root PID namespace.
    pub pid: u32,
    /// Its parent, likewise.
    pub parent: u32,
    /// Effective user.
    pub uid: u32,
    /// The kernel's name for it (at most 15 bytes).
    pub command: String,
    /// Its command line; empty for a zombie.
    pub args: Vec<String>,
    /// User and system time.
    pub cpu: Duration,
    /// When it started, counted from the guest's boot.
    pub started: Duration,
}

/// Usage and limits of a container, from its control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time, microseconds.
    pub cpu_usage_us: u64,
    /// Of it in user mode, microseconds.
    pub cpu_user_us: u64,
    /// Of it in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Time spent waiting because of the CPU quota, microseconds.
    pub cpu_throttled_us: u64,
    /// Memory in use, bytes.
    pub memory_current_bytes: u64,
    /// `None` for no limit.
    pub memory_limit_bytes: Option<u64>,
    /// Most memory ever in use, bytes.
    pub memory_peak_bytes: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids_current: u64,
    /// `None` for no limit.
    pub pids_limit: Option<u64>,
    /// Read from block devices, bytes.
    pub io_read_bytes: u64,
    /// Written to block devices, bytes.
    pub io_write_bytes: u64,
    /// Periods of the CPU quota that have passed.
    pub cpu_periods: u64,
    /// Those of them in which the container was held back.
    pub cpu_throttled_periods: u64,
    /// How often the memory limit was met.
    pub memory_limit_hits: u64,
    /// How often nothing could be freed.
    pub oom_events: u64,
    /// The kernel's account of the memory, by its names.
    pub memory_stat: Vec<(String, u64)>,
    /// Swapped out, bytes.
    pub swap_current_bytes: u64,
    /// `None` for no limit.
    pub swap_limit_bytes: Option<u64>,
}
