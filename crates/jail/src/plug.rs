//! Mounts for a jail that is in use: a further container of a machine brings its files.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::mount::{attach, clone_tree, relax, restrict};
use crate::root::{Builder, bind_attributes, failed, file_type};
use crate::{Entry, JailError};

/// Binds `entries` (bind mounts only) into the root of the jail of the process behind `pidfd`: a number
/// could be another process's by now. Sources are looked up on the host.
///
/// Works in a thread of its own, which is gone when this returns; needs CAP_SYS_ADMIN over the
/// namespace.
///
/// # Errors
/// The step that failed; what was bound until then is taken away again.
pub fn plug(pidfd: &OwnedFd, entries: &[Entry]) -> Result<(), JailError> {
    aside(|| {
        let mut trees = Vec::new();
        for entry in entries {
            let Entry::Bind {
                source,
                target,
                recursive,
                ..
            } = entry
            else {
                return Err(JailError::NotABind);
            };
            let tree =
                clone_tree(source, *recursive).map_err(failed("take from the host", source))?;
            let kind = file_type(tree.as_fd()).map_err(failed("inspect", source))?;
            restrict(tree.as_fd(), bind_attributes(entry), *recursive)
                .map_err(failed("restrict", source))?;
            trees.push((tree, kind, target));
        }
        let root = Inside::enter(pidfd)?;
        let mut done = Vec::new();
        for (tree, kind, target) in trees {
            let placed = root.place(tree.as_fd(), kind, target);
            done.push(target.clone());
            if placed.is_err() {
                root.remove(&done);
                return placed;
            }
        }
        Ok(())
    })
}

/// Takes away what [`plug`] bound at `targets`. What is still in use goes with its last user.
///
/// # Errors
/// When the jail is gone.
pub fn unplug(pidfd: &OwnedFd, targets: &[PathBuf]) -> Result<(), JailError> {
    aside(|| {
        Inside::enter(pidfd)?.remove(targets);
        Ok(())
    })
}

/// Runs `work` in a thread that may go to other namespaces without the others following.
fn aside(work: impl FnOnce() -> Result<(), JailError> + Send) -> Result<(), JailError> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // SAFETY: only the working directory and root of this thread become its own.
            unsafe { unshare_unsafe(UnshareFlags::FS) }
                .map_err(failed("leave the working directory of", Path::new("/")))?;
            work()
        });
        worker.join().unwrap_or(Err(JailError::Crashed))
    })
}

/// The jail's root, seen from inside.
struct Inside {
    /// As the jail has it: read-only.
    root: Builder,
    /// The same file system through a mount of our own that can be written to.
    writable: Builder,
}

impl Inside {
    fn enter(pidfd: &OwnedFd) -> Result<Self, JailError> {
        let at_root = |step| failed(step, Path::new("/"));
        move_into_link_name_space(pidfd.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(at_root("enter the mount namespace with the root"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).map_err(at_root("open"))?;
        let writable = clone_tree(Path::new("/"), false).map_err(at_root("take"))?;
        relax(writable.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)
            .map_err(at_root("make writable for us"))?;
        Ok(Self {
            root: Builder::of(root),
            writable: Builder::of(writable),
        })
    }

    fn place(&self, tree: BorrowedFd<'_>, kind: FileType, target: &Path) -> Result<(), JailError> {
        self.writable.mount_point(target, kind)?;
        let point = self.root.mount_point(target, kind)?;
        attach(tree, point.as_fd()).map_err(failed("bind on", target))
    }

    /// Best effort: what is not there need not be taken away.
    fn remove(&self, targets: &[PathBuf]) {
        for target in targets.iter().rev() {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(target, flags);
            let Ok((parent, name)) = self.writable.parent(target) else {
                continue;
            };
            let removed = rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
            if removed.is_err() {
                let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
            }
        }
        // The container's own directory, once nothing is in it any more.
        if let Some(directory) = targets.first().and_then(|target| target.parent())
            && let Ok((parent, name)) = self.writable.parent(directory)
        {
            let _ = rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
        }
    }
}
