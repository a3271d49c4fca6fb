//! virtio-fs: the shared directory tree, served by virtiofsd's passthrough file system.
//!
//! The tree is the device process's own root (see [`crate::process`]), so that a path of the guest
//! cannot name anything else even if every check of the passthrough failed.

mod device;
#[cfg(test)]
mod tests;
mod tree;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, PassthroughFs};

pub use device::Fs;
pub use tree::Tree;

/// How long the guest may use names and attributes without asking again. The host may change what
/// is shared at any time; a guest that runs a program touches the same few files within moments.
const VALIDITY: Duration = Duration::from_secs(1);

/// Descriptors that the process keeps for itself out of its limit.
const RESERVED_FDS: u64 = 1200;

/// The shared tree cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// A tag that the configuration space cannot hold.
    #[error("The file system tag {tag:?} must have 1 to {} bytes", device::TAG_LEN)]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A root that virtiofsd cannot name.
    #[error("The path of the shared directory {path:?} must be valid UTF-8")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The rules for extended attributes are not understood.
    #[error("Cannot set the rules for extended attributes: {0}")]
    Attributes(String),
    /// The passthrough could not be set up.
    #[error("Cannot share the directory {path:?}")]
    Passthrough {
        /// The path.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
}

/// What of a file's extended attributes is a guest's to see and to set. The others speak to the
/// host's kernel: labels of its security policy, notes of its overlays.
const ATTRIBUTES: &str = "\
    :ok:all:user.:user.: \
    :ok:all:security.capability:security.capability: \
    :ok:all:system.posix_acl_:system.posix_acl_: \
    :unsupported:all:::";

fn attributes() -> Result<XattrMap, FsError> {
    XattrMap::try_from(ATTRIBUTES).map_err(|error| FsError::Attributes(error.to_string()))
}

/// Opens `root` for sharing. `proc_fd` is an open `/proc/self/fd`, which the passthrough needs to
/// turn a name into an open file and which a jail does not have; `fd_limit` is the number of
/// descriptors the process may have.
///
/// # Errors
/// [`FsError`].
pub fn share(root: &Path, proc_fd: OwnedFd, fd_limit: u64) -> Result<Tree, FsError> {
    let root_dir = root
        .to_str()
        .ok_or_else(|| FsError::Path {
            path: root.to_owned(),
        })?
        .to_owned();
    let config = Config {
        entry_timeout: VALIDITY,
        attr_timeout: VALIDITY,
        // Contents are fetched again when a file is opened after it changed.
        cache_policy: CachePolicy::Auto,
        root_dir,
        proc_sfd_rawfd: Some(proc_fd.into()),
        // Container images carry file capabilities and user attributes.
        xattr: true,
        xattrmap: Some(attributes()?),
        // A guest that kills a container takes its submounts' superblocks away while reads are under
        // way, which Linux 6.12 does not survive; without them all shares are one file system.
        announce_submounts: false,
        // Handles would need CAP_DAC_READ_SEARCH, which opens every file of a file system.
        inode_file_handles: InodeFileHandlesMode::Never,
        readdirplus: true,
        // Else every write is followed by a question for the file's capabilities.
        killpriv_v2: true,
        guest_fd_limit: fd_limit.saturating_sub(RESERVED_FDS).max(fd_limit / 2),
        ..Config::default()
    };
    PassthroughFs::new(config)
        .map(Tree::new)
        .map_err(|source| FsError::Passthrough {
            path: root.to_owned(),
            source,
        })
}
