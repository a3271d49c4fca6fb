//! What a front end asks a new sandbox process to do: the JSON argument of `bulkhead sandbox`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::Id;

/// The request. Descriptors are numbers the sandbox process inherits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The container's name; its directory below `root` exists already.
    pub id: Id,
    /// `--root`.
    pub root: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// `auto`, `uml` or `qemu`; `None` leaves it to annotation and configuration.
    #[serde(default)]
    pub hypervisor: Option<String>,
    /// Installed kernel; `None` leaves it to annotation and configuration.
    #[serde(default)]
    pub kernel: Option<String>,
    /// The root file system is this read-only directory under a writable layer.
    #[serde(default)]
    pub lower: Option<PathBuf>,
    /// Remove everything once the container has ended.
    #[serde(default)]
    pub auto_remove: bool,
    /// Host user who asked.
    pub owner: String,
    /// When the command began (`CLOCK_MONOTONIC`, nanoseconds).
    pub origin_ns: u64,
    /// The listening socket of the Task service.
    pub listener_fd: RawFd,
    /// The lock of the container's directory, see [`crate::claim`].
    pub lock_fd: RawFd,
    /// Read end of a pipe whose write end the attached command holds: when that command dies, the
    /// container goes with it. A byte written to it means that the command leaves on purpose.
    #[serde(default)]
    pub lifeline_fd: Option<RawFd>,
    /// The listening socket on which stand-ins and streams are handed over, see [`crate::standin`].
    #[serde(default)]
    pub attach_fd: Option<RawFd>,
    /// PID of the stand-in for the container's init process, if an engine asked for one.
    #[serde(default)]
    pub standin: Option<u32>,
    /// `--systemd-cgroup`: the container's control group on the host is a scope of systemd's.
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// The network namespace an engine has made for the container; `None` for the one its
    /// configuration names, if it does.
    #[serde(default)]
    pub netns: Option<PathBuf>,
}
