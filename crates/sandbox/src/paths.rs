//! Where a sandbox's files are. Every place is derived from the root and the name, so that whoever
//! cleans up after a killed sandbox needs to know nothing else.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::id::Id;

/// Default of `--root`.
pub const DEFAULT_ROOT: &str = "/run/bulkhead";

/// What must outlive memory (writable layers of images, unpacked images).
pub const DATA_DIR: &str = "/var/lib/bulkhead";

/// Directories and files of one sandbox.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    id: Id,
}

impl Paths {
    /// Paths of `id` below `root`. Touches nothing.
    #[must_use]
    pub fn new(root: &Path, id: &Id) -> Self {
        Self {
            root: root.to_owned(),
            id: id.clone(),
        }
    }

    /// The sandbox's name.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// The directory all sandboxes live in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The sandbox's own directory; its existence reserves the name.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.root.join(self.id.as_str())
    }

    /// The journal: [`crate::state::State`] as JSON.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir().join("state.json")
    }

    /// The journal's other copy, one change older: they take turns.
    #[must_use]
    pub fn state_before(&self) -> PathBuf {
        self.dir().join(".state.json")
    }

    /// The Task service.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir().join("sandbox.sock")
    }

    /// Where stand-ins and streams are handed over.
    #[must_use]
    pub fn attach_socket(&self) -> PathBuf {
        self.dir().join("attach.sock")
    }

    /// Where the device process serves the shared file system to the hypervisor.
    #[must_use]
    pub fn fs_socket(&self) -> PathBuf {
        self.dir().join("fs.sock")
    }

    /// Where the device process serves vsock to the hypervisor.
    #[must_use]
    pub fn vsock_socket(&self) -> PathBuf {
        self.dir().join("vsock.sock")
    }

    /// Where the device process serves random bytes to the hypervisor.
    #[must_use]
    pub fn entropy_socket(&self) -> PathBuf {
        self.dir().join("entropy.sock")
    }

    /// Where the device process serves the balloon to the hypervisor.
    #[must_use]
    pub fn balloon_socket(&self) -> PathBuf {
        self.dir().join("balloon.sock")
    }

    /// Where the device process serves the `number`th network card to the hypervisor.
    #[must_use]
    pub fn net_socket(&self, number: usize) -> PathBuf {
        self.dir().join(format!("net{number}.sock"))
    }

    /// Where the device process serves the `number`th disk to the hypervisor.
    #[must_use]
    pub fn disk_socket(&self, number: usize) -> PathBuf {
        self.dir().join(format!("disk{number}.sock"))
    }

    /// The guest's console, its last part.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir().join("console.log")
    }

    /// Messages of the sandbox, device and hypervisor processes themselves.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir().join("sandbox.log")
    }

    /// FIFOs of clients that stream through the file system.
    #[must_use]
    pub fn io(&self) -> PathBuf {
        self.dir().join("io")
    }

    /// The bundle `run` makes when none is given.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.dir().join("bundle")
    }

    /// Writable layer of a container made from an image: `upper` and `work` of its overlay.
    #[must_use]
    pub fn layer(&self) -> PathBuf {
        // Two roots may hold the same name; the root is part of the layer's.
        let root: String = self
            .root
            .to_string_lossy()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        Path::new(DATA_DIR)
            .join("layers")
            .join(format!("{}@{root}", self.id))
    }

    /// Record of a start that failed, kept for `bulkhead why`.
    #[must_use]
    pub fn failure(&self) -> PathBuf {
        self.failures().join(format!("{}.json", self.id))
    }

    /// All such records; bounded by [`crate::failure::MAX_RECORDS`].
    #[must_use]
    pub fn failures(&self) -> PathBuf {
        self.root.join(".failures")
    }
}

/// A name for `file` in the directory open as `dir` that fits a socket address (108 bytes) however
/// long the directory's path is. Valid while `dir` is open, in this process only.
#[must_use]
pub fn socket_path(dir: &OwnedFd, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{file}", dir.as_raw_fd()))
}
