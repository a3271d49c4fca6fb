//! Walls around our own processes.
//!
//! A process that reads bytes written by a guest holds no power over the host. Such a process is
//! started by [`spawn`] in namespaces of its own and, as its first act, calls [`Jail::enter`] (or
//! is the `bulkhead jailed` hat, [`exec::main`], which enters and then executes a program that
//! knows nothing of jails). From then on it sees a root file system that holds only what it was
//! given, runs under its own user id, has the capabilities listed and no way to more, dies when
//! its parent dies, and is killed by the kernel when it makes a system call outside its profile.
//!
//! Everything a jail makes (mounts, host name, network) belongs to the namespaces of the jailed
//! process and vanishes with its last process, whatever way that one ends.

mod capability;
mod confine;
mod error;
pub mod exec;
mod landlock;
mod mount;
mod plug;
mod root;
pub mod seccomp;
mod spawn;

use std::ffi::CStr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use capability::Capability;
pub use error::JailError;
pub use landlock::version as landlock_version;
pub use mount::own_descriptors;
pub use plug::{plug, unplug};
pub use seccomp::Profile;
pub use spawn::{Child, Command, Namespaces, PARENT_FD, spawn};

/// The walls a process puts around itself with [`Jail::enter`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Jail {
    /// Host name inside the jail's UTS namespace; what is longer than 64 bytes is cut off.
    pub hostname: String,
    /// The file system the process will see.
    pub root: Root,
    /// User id (real, effective, saved) on the host.
    pub uid: u32,
    /// Group id (real, effective, saved) on the host; supplementary groups are dropped.
    pub gid: u32,
    /// Bounding, permitted and effective set. Inheritable and ambient sets are always empty.
    pub capabilities: Vec<Capability>,
    /// The system calls that are allowed; any other kills the process.
    pub seccomp: Profile,
    /// Processors the process may run on; empty: those of its parent.
    #[serde(default)]
    pub cpus: Vec<usize>,
    /// Whether the process opens no path any more once it is inside: Landlock then forbids it too,
    /// and TCP, abstract local sockets and signals to others, as far as the host's kernel has it
    /// (see [`landlock_version`]).
    #[serde(default)]
    pub without_paths: bool,
}

impl Jail {
    /// A jail with an empty root, without capabilities, on any processor.
    pub fn new(hostname: &str, uid: u32, gid: u32, seccomp: Profile) -> Self {
        Self {
            hostname: hostname.to_owned(),
            root: Root::default(),
            uid,
            gid,
            capabilities: Vec::new(),
            seccomp,
            cpus: Vec::new(),
            without_paths: false,
        }
    }

    /// Enters the jail. There is no way back.
    ///
    /// Must be called by a process that was started with [`spawn`] and has a single thread; open
    /// descriptors stay open (they are the things the process was given). The order matters: what
    /// needs power comes first, the death signal after the last change of credentials (which
    /// would clear it), the system call filter last.
    ///
    /// # Errors
    /// Any failed step, with the path or the name of the step. The process is then half jailed and
    /// must exit.
    pub fn enter(&self) -> Result<(), JailError> {
        self.enter_with(None)
    }

    /// Enters the jail and leaves one way on: executing the program whose path is at the address
    /// of `program`.
    pub(crate) fn enter_to_execute(&self, program: &CStr) -> Result<(), JailError> {
        self.enter_with(Some(program))
    }

    fn enter_with(&self, program: Option<&CStr>) -> Result<(), JailError> {
        // The compiler of the filter needs only memory, but fails before anything is changed.
        let filter = seccomp::compile(self.seccomp, program)?;
        confine::hostname(&self.hostname)?;
        confine::affinity(&self.cpus)?;
        root::build_and_pivot(&self.root, self.uid, self.gid)?;
        confine::limits()?;
        confine::credentials(self.uid, self.gid, &self.capabilities)?;
        confine::die_with_parent()?;
        if self.without_paths {
            landlock::give_up_paths()?;
        }
        seccomp::install(&filter)
    }
}

/// The root file system of a jail: a tmpfs of its own, with entries placed in it in order.
///
/// It holds no `/proc` and no `/sys`. Set-user-id bits and device nodes on it are without effect.
/// Once all entries are in place it becomes read-only; [`Entry::Tmpfs`] is for scratch space.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Size limit of the tmpfs, in bytes. Zero means one page: room for the mount points only.
    pub tmpfs_bytes: u64,
    /// Whether programs and executable mappings on the tmpfs itself are allowed.
    pub exec: bool,
    /// What to place, in this order.
    pub entries: Vec<Entry>,
}

/// One thing placed in a jail's root.
///
/// Paths inside the jail are absolute, without `.` and `..`; missing parent directories are
/// created (mode 0755), symbolic links in them are never followed. Paths of the host are resolved
/// as usual, before the old root goes away.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A directory.
    Dir {
        /// Where.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// A file or directory of the host. The mount point is created, a file for a file.
    ///
    /// Symbolic links that lie in the bound tree are data: the kernel does not follow them
    /// (`nosymfollow`), so whoever can write to the tree cannot redirect the jailed process.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Where.
        target: PathBuf,
        /// Refuse writes.
        read_only: bool,
        /// Ignore set-user-id bits and file capabilities.
        nosuid: bool,
        /// Ignore device nodes.
        nodev: bool,
        /// Refuse execution and executable mappings.
        noexec: bool,
        /// Include what is mounted below the source, with the same flags.
        recursive: bool,
    },
    /// An overlay of directories of the host, mounted without set-user-id and device nodes.
    Overlay {
        /// Read-only layers, the uppermost first.
        lower: Vec<PathBuf>,
        /// Where changes go.
        upper: PathBuf,
        /// Scratch directory of the kernel, empty, on the file system of `upper`.
        work: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// Scratch space in memory, owned by the jail's user.
    Tmpfs {
        /// Where.
        target: PathBuf,
        /// Size limit in bytes.
        bytes: u64,
        /// Permission bits of its root.
        mode: u32,
        /// Whether executable mappings are allowed.
        exec: bool,
    },
    /// A node for a device of the host, of the jail's own: its user may read and write it,
    /// whatever the permissions of the host's node. The directory of a node is a small read-only
    /// file system, mounted for the first node in it.
    Device {
        /// Path on the host.
        source: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// A symbolic link.
    Symlink {
        /// Its text.
        text: PathBuf,
        /// Where.
        path: PathBuf,
    },
}
