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
//! - `/proc` is mounted, and the cgroup v2 hierarchy at [`CGROUP_ROOT`].
//! - The calling process is single-threaded and reaps its children.

mod error;
mod io;
mod report;

pub use error::ContainerError;
pub use io::{Child, Io};
pub use report::{Failure, FailureKind, Reports};

use std::{path::Path, time::Duration};

use nix::{sys::signal::Signal, unistd::Pid};
use oci_spec::runtime::{Process, Spec};

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
    Err(ContainerError::unsupported(
        "prepare_agent",
        "not built yet",
    ))
}

/// A container of this guest.
#[derive(Debug)]
pub struct Container {
    id: String,
    init: Pid,
}

impl Container {
    /// Creates a container from its specification, up to, not including, the
    /// `execve` of its init process. `rootfs` is its root file system as the
    /// agent sees it.
    ///
    /// Does not wait for the child: see [`Child`].
    pub fn create(
        id: &str,
        spec: Spec,
        rootfs: &Path,
        io: Io,
    ) -> Result<(Container, Child), ContainerError> {
        let _ = (id, spec, rootfs, io);
        Err(ContainerError::unsupported("create", "not built yet"))
    }

    /// Creates a further process in the container, up to, not including, `execve`.
    pub fn exec(&self, process: &Process, io: Io) -> Result<Child, ContainerError> {
        let _ = (process, io);
        Err(ContainerError::unsupported("exec", "not built yet"))
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its init process, in the guest's root PID namespace.
    pub fn init_pid(&self) -> Pid {
        self.init
    }

    /// Sends `signal` to every process of the container.
    pub fn signal_all(&self, signal: Signal) -> Result<(), ContainerError> {
        let _ = signal;
        Err(ContainerError::unsupported("signal_all", "not built yet"))
    }

    /// Freezes every process of the container; returns when they stand still.
    pub fn pause(&self) -> Result<(), ContainerError> {
        Err(ContainerError::unsupported("pause", "not built yet"))
    }

    /// Undoes [`Container::pause`].
    pub fn resume(&self) -> Result<(), ContainerError> {
        Err(ContainerError::unsupported("resume", "not built yet"))
    }

    /// The processes of the container, by PID.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, ContainerError> {
        Err(ContainerError::unsupported("processes", "not built yet"))
    }

    /// What the container uses and may use.
    pub fn stats(&self) -> Result<Stats, ContainerError> {
        Err(ContainerError::unsupported("stats", "not built yet"))
    }

    /// How many processes of the container the memory controller has killed.
    pub fn oom_kills(&self) -> Result<u64, ContainerError> {
        Err(ContainerError::unsupported("oom_kills", "not built yet"))
    }

    /// Kills what is left, removes the control group, writes the root file
    /// system's dirty data back. Blocks until the last process is gone.
    pub fn destroy(self) -> Result<(), ContainerError> {
        Err(ContainerError::unsupported("destroy", "not built yet"))
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
}
