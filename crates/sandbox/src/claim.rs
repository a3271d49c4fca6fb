//! Who owns a sandbox's directory: the lock on it is held by the command that makes it and then by
//! the sandbox process, and is gone with them, whatever killed them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::paths::Paths;

/// Why a name could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another container has it.
    #[error(
        "Container id {0} is already in use: choose another one, or remove that container with \
         `bulkhead delete {0}`"
    )]
    InUse(String),
    /// The directory could not be made or locked.
    #[error("Failed to make the container's directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Reserves the name by making its directory. The descriptor holds the lock; pass it on to the
/// sandbox process.
///
/// # Errors
/// [`ClaimError::InUse`] when the directory exists.
pub fn claim(paths: &Paths) -> Result<OwnedFd, ClaimError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| ClaimError::Directory { path, source }
    };
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700).recursive(true);
    builder.create(paths.root()).map_err(failed(paths.root()))?;
    let dir = paths.dir();
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    // A second round is needed only if somebody cleaned the directory up before it was locked.
    for _ in 0..8 {
        match builder.create(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ClaimError::InUse(paths.id().to_string()));
            }
            Err(error) => return Err(failed(&dir)(error)),
        }
        let lock = lock(&dir, false).map_err(failed(&dir))?;
        if let Some(lock) = lock
            && is_same(&lock, &dir)
        {
            return Ok(lock);
        }
    }
    Err(failed(&dir)(io::ErrorKind::ResourceBusy.into()))
}

/// Takes the lock of a directory nobody owns any more. `None` when somebody does.
///
/// # Errors
/// When the directory cannot be opened.
pub fn take_over(paths: &Paths) -> io::Result<Option<OwnedFd>> {
    lock(&paths.dir(), true)
}

/// Waits until nobody owns a directory any more, or it is gone. False if somebody still does after
/// `limit`.
#[must_use]
pub fn wait_until_free(paths: &Paths, limit: Duration) -> bool {
    let dir = paths.dir();
    match open_dir(&dir) {
        Ok(fd) => within(limit, move || {
            flock(fd, FlockOperation::LockExclusive).is_ok() || !dir.exists()
        }),
        Err(_) => !dir.exists(),
    }
}

/// Waits until nobody owns an open directory any more, whatever its name leads to. False if somebody still
/// does after `limit`.
pub(crate) fn wait_for(dir: &fs::File, limit: Duration) -> bool {
    match dir.try_clone() {
        Ok(fd) => within(limit, move || {
            let free = flock(&fd, FlockOperation::LockExclusive).is_ok();
            // The lock would stay with `dir`.
            free && flock(&fd, FlockOperation::Unlock).is_ok()
        }),
        Err(_) => false,
    }
}

/// Whether `wait` comes to a good end in time. What it holds is let go of by then.
fn within(limit: Duration, wait: impl FnOnce() -> bool + Send + 'static) -> bool {
    let (sender, free) = mpsc::channel();
    // There is no flock with a limit; the thread ends with the process at the latest.
    thread::spawn(move || {
        let waited = wait();
        // Nobody listens any more once the limit has passed.
        let _ = sender.send(waited);
    });
    free.recv_timeout(limit).unwrap_or(false)
}

fn lock(dir: &Path, try_only: bool) -> io::Result<Option<OwnedFd>> {
    let fd = open_dir(dir)?;
    let operation = if try_only {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::LockExclusive
    };
    match flock(fd.as_fd(), operation) {
        Ok(()) => Ok(Some(fd)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(dir, flags, Mode::empty())?)
}

fn is_same(lock: &OwnedFd, dir: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (rustix::fs::fstat(lock), fs::metadata(dir)) else {
        return false;
    };
    ours.st_ino == there.ino() && ours.st_dev == there.dev()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_taken_name_refused_until_released_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path(), &"a".parse().unwrap());
        let lock = claim(&paths).unwrap();
        assert!(matches!(claim(&paths), Err(ClaimError::InUse(_))));
        assert!(take_over(&paths).unwrap().is_none());
        drop(lock);
        assert!(take_over(&paths).unwrap().is_some());
        fs::remove_dir(paths.dir()).unwrap();
        claim(&paths).unwrap();
    }
}
