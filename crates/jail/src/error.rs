//! What can go wrong while a jail is built or a jailed process is started.

use std::io;
use std::path::PathBuf;

use crate::seccomp::Profile;

/// A failed step of [`spawn`](crate::spawn), [`Jail::enter`](crate::Jail::enter) or
/// [`exec::main`](crate::exec::main). Nothing outlives a failure: all that a jail makes belongs to
/// the namespaces of the process that was being jailed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Two of the caller's descriptors want one number, or one wants a number that is reserved.
    #[error(
        "Cannot give the jailed process descriptor {number}: the number is taken twice or reserved"
    )]
    DescriptorNumber {
        /// The number asked for.
        number: i32,
    },
    /// Only bind mounts can be added to a jail in use.
    #[error("Cannot add to a jail in use what is not a bind mount")]
    NotABind,
    /// A thread of ours panicked; where, is on standard error.
    #[error("Crashed while changing the mounts of a jail; please report this")]
    Crashed,
    /// A string holds a NUL byte and cannot be handed to the kernel.
    #[error("Cannot pass {what} to the kernel: it contains a NUL byte")]
    Nul {
        /// Which string.
        what: &'static str,
    },
    /// A step in the parent, before the child exists, failed.
    #[error("Could not prepare the start of {program:?}: {step}")]
    Prepare {
        /// What was attempted.
        step: &'static str,
        /// The program to be started.
        program: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the new process or one of its namespaces.
    #[error(
        "Could not create the jailed process for {program:?} in new namespaces; this needs root (CAP_SYS_ADMIN) and a kernel with all namespaces"
    )]
    Clone {
        /// The program to be started.
        program: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The child failed between clone and exec, or exec itself failed.
    #[error("Could not start {program:?} in its namespaces: {step}")]
    Start {
        /// What was attempted.
        step: &'static str,
        /// The program to be started.
        program: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A path inside the jail is not absolute and plain.
    #[error("Jail path {path:?} is not absolute or contains '.' or '..'")]
    BadTarget {
        /// The offending path.
        path: PathBuf,
    },
    /// A step of building the jail's file system failed.
    #[error("Could not build the jail's root: {step} {path:?}")]
    Root {
        /// What was attempted.
        step: &'static str,
        /// On which path (of the host for sources, of the jail for targets).
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A step that limits the process failed.
    #[error("Could not confine the process: {step}")]
    Confine {
        /// What was attempted.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// None of the requested processors may be used by this process.
    #[error("Could not pin the process to processors {cpus:?}; check the cpuset it was started in")]
    Affinity {
        /// The processors asked for.
        cpus: Vec<usize>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process was not started by [`spawn`](crate::spawn), so its parent is not known.
    #[error(
        "Descriptor {number} does not refer to the parent process: the jail must be entered by a process started with bulkhead_jail::spawn"
    )]
    NoParent {
        /// The descriptor that [`spawn`](crate::spawn) would have placed.
        number: i32,
    },
    /// The parent died while the jail was being built.
    #[error("The parent process died while the jail was being built")]
    ParentDied,
    /// Capabilities were asked for a program that is to be executed inside the jail.
    #[error("A program executed inside a jail gets no capabilities, but {count} were asked for")]
    ExecWithCapabilities {
        /// How many were asked for.
        count: usize,
    },
    /// The system call filter could not be built.
    #[error("Could not build the system call filter {profile:?}: {reason}")]
    Filter {
        /// The profile.
        profile: Profile,
        /// The filter compiler's complaint.
        reason: String,
    },
    /// The program could not be executed inside the jail.
    #[error("Could not execute {program:?} inside the jail")]
    Exec {
        /// Its path inside the jail.
        program: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl JailError {
    pub(crate) fn confine(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> JailError {
        move |source| JailError::Confine {
            step,
            source: source.into(),
        }
    }
}
