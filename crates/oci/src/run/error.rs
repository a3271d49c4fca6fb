//! What can be wrong with the options of a `run` command, and with what they refer to.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::bundle::BundleError;
use crate::refuse::Refusal;
use crate::text::{quoted, quoted_path};

/// Why the text of an option cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionError {
    /// A size in bytes.
    #[error("Size {} is not understood; write a number of bytes, or one with a unit, as in 512m or 1g", quoted(.0))]
    Size(String),
    /// A number of CPUs.
    #[error("Number of CPUs {} is not understood; write a number of at least 0.01, as in 0.5 or 2", quoted(.0))]
    Cpus(String),
    /// A limit on the number of processes.
    #[error("Limit of processes {} is not understood; write a number, or -1 for no limit", quoted(.0))]
    Pids(String),
    /// A volume.
    #[error("Volume {} {problem}", quoted(.volume))]
    Volume {
        /// The option's text.
        volume: String,
        /// What is wrong with it.
        problem: VolumeProblem,
    },
    /// A tmpfs.
    #[error("Tmpfs {} {problem}", quoted(.tmpfs))]
    Tmpfs {
        /// The option's text.
        tmpfs: String,
        /// What is wrong with it.
        problem: VolumeProblem,
    },
    /// An environment variable; its value is not shown.
    #[error(
        "Environment variable number {0} has no name; write NAME=value, or NAME to pass on the caller's"
    )]
    Env(usize),
    /// A capability.
    #[error("Capability {} is not known; write a name as in NET_ADMIN, or ALL", quoted(.0))]
    Capability(String),
    /// A security option.
    #[error("Security option {} is not known; use seccomp=FILE, seccomp=unconfined, no-new-privileges, apparmor=unconfined, label=disable or systempaths=unconfined", quoted(.0))]
    Security(String),
    /// An annotation.
    #[error("Annotation {} has no =; write NAME=value", quoted(.0))]
    Annotation(String),
}

/// What is wrong with a volume or a tmpfs.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VolumeProblem {
    /// Parts are missing or too many.
    #[error("is not understood; write SOURCE:DESTINATION or SOURCE:DESTINATION:OPTIONS")]
    Shape,
    /// The source is a name.
    #[error(
        "names a volume, and named volumes are not built in this version; write a path that begins with / or ./"
    )]
    Named,
    /// The destination is not absolute.
    #[error("has the destination {}, which is not an absolute path; begin it with /", quoted(.0))]
    Destination(String),
    /// The destination is the root.
    #[error("would cover the container's root; use --rootfs for that")]
    Root,
    /// The destination climbs.
    #[error("has the destination {}, which climbs with ..; write the path it means", quoted(.0))]
    Climbs(String),
    /// An option that is not known.
    #[error("has the option {}, which is not known; use {known}", quoted(.option))]
    Option {
        /// The option.
        option: String,
        /// Those that are.
        known: &'static str,
    },
    /// An option that is known and refused.
    #[error("has the option {}: {reason}; remove it", quoted(.option))]
    Refused {
        /// The option.
        option: String,
        /// Why.
        reason: &'static str,
    },
    /// Contains a NUL byte.
    #[error("contains a NUL byte; remove it")]
    HasNul,
}

/// Why no configuration can be made of the options.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// An option's text.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// What the options ask for is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Neither the command line nor the image names a command.
    #[error("No command to run: the image names none; give one after --")]
    NoCommand,
    /// The working directory is not absolute.
    #[error("Working directory {} is not an absolute path; begin it with /", quoted(.0))]
    Workdir(String),
    /// Two mounts on one place.
    #[error("Two volumes or tmpfs have the destination {}; keep one of them", quoted_path(.0))]
    DuplicateMount(PathBuf),
    /// The root file system cannot be opened.
    #[error("Could not open the root file system {}", quoted_path(.path))]
    Rootfs {
        /// The root file system.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file of the root file system that says who is who cannot be read.
    #[error("Could not read /{} of the root file system {}", .file, quoted_path(.rootfs))]
    Accounts {
        /// `etc/passwd` or `etc/group`.
        file: &'static str,
        /// The root file system.
        rootfs: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A user that is not in /etc/passwd.
    #[error("User {} is not in the container's /etc/passwd; use a number, or a user of the image", quoted(.0))]
    NoUser(String),
    /// A group that is not in /etc/group.
    #[error("Group {} is not in the container's /etc/group; use a number, or a group of the image", quoted(.0))]
    NoGroup(String),
    /// A user option without a user.
    #[error("User {} is not understood; write USER or USER:GROUP, each a name or a number below 4294967295", quoted(.0))]
    UserSyntax(String),
    /// The seccomp profile cannot be read.
    #[error("Could not read the seccomp profile {}", quoted_path(.path))]
    ProfileUnreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The seccomp profile is not one.
    #[error("Seccomp profile {} is not valid: {problem}; it must be a JSON profile as docker and podman take it", quoted_path(.path))]
    ProfileInvalid {
        /// The file.
        path: PathBuf,
        /// What the parser found, with its position.
        problem: String,
    },
    /// The configuration that was made does not pass its own checks.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}
