//! Why a control group of the host could not be used.

use std::io;
use std::path::PathBuf;

use super::systemd::BusError;

/// What went wrong with a control group of the host.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// `linux.cgroupsPath` in systemd's form without the option.
    #[error(
        "linux.cgroupsPath {0:?} is systemd's form (slice:prefix:name): give --systemd-cgroup, or the path of \
         a control group as in /parent/name (podman --cgroup-manager cgroupfs; docker: \
         native.cgroupdriver=cgroupfs; containerd: SystemdCgroup = false)"
    )]
    SystemdForm(String),
    /// `linux.cgroupsPath` in another form than systemd's with the option.
    #[error(
        "linux.cgroupsPath {0:?} is not of the form slice:prefix:name that --systemd-cgroup asks for, as in \
         system.slice:bulkhead:name: write it so, or leave the option out"
    )]
    NotSystemd(String),
    /// `--systemd-cgroup` where there is no systemd.
    #[error(
        "--systemd-cgroup is given, but systemd does not run on this host (/run/systemd/system is missing): use \
         the cgroupfs manager (podman --cgroup-manager cgroupfs; docker: native.cgroupdriver=cgroupfs; \
         containerd: SystemdCgroup = false)"
    )]
    NoSystemd,
    /// systemd could not be asked, or refused.
    #[error("Failed to {what} the scope {unit} through systemd")]
    Systemd {
        /// What was to be done.
        what: &'static str,
        /// The scope.
        unit: String,
        /// The reason.
        #[source]
        source: BusError,
    },
    /// `linux.cgroupsPath` leads elsewhere than to a group below the hierarchy's root.
    #[error(
        "linux.cgroupsPath {0:?} is not the path of a control group: write it as in /parent/name, without `..`"
    )]
    Path(String),
    /// The host's hierarchies could not be read.
    #[error("Failed to read the host's control group hierarchies from {path}")]
    Discover {
        /// The file.
        path: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// There are none.
    #[error(
        "linux.cgroupsPath is set, but no control group hierarchy is mounted on this host: mount \
         /sys/fs/cgroup, or leave the path out (podman --cgroups=disabled)"
    )]
    None,
    /// A directory could not be made or prepared.
    #[error("Failed to make the control group {path}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A process could not be put into the group.
    #[error("Failed to move process {pid} into the control group {path}")]
    Join {
        /// The process; 0 for the sandbox process itself.
        pid: u32,
        /// The group.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A limit that nothing on this host would enforce.
    #[error(
        "{field} cannot be set: this host has no control group controller {controller:?} here; enable \
         it or leave the field out"
    )]
    NoController {
        /// The field of the configuration.
        field: &'static str,
        /// The controller it needs.
        controller: &'static str,
    },
    /// A limit the kernel did not take.
    #[error("{field} cannot be set: failed to write {value:?} to {path}")]
    Set {
        /// The field of the configuration.
        field: &'static str,
        /// What was written.
        value: String,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}
