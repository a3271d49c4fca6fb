//! Opening files of a root file system nobody vouches for: links are followed inside the
//! root as the container would see them, and never out of it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens a directory that is to be a root for [`open_in_root`].
pub(crate) fn open_root(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// Opens a path as a process whose root is `root` would.
pub(crate) fn open_in_root(
    root: impl AsFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    retry(|| {
        rustix::fs::openat2(
            root.as_fd(),
            path.as_cow_c_str()?,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    })
}

/// The kernel gives up with `EAGAIN` when a rename elsewhere races with `..`.
pub(crate) fn retry<T>(
    mut attempt: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    for _ in 0..16 {
        match attempt() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome,
        }
    }
    attempt()
}

/// Reads a regular file of the root, at most `limit` bytes; `None` if there is none.
///
/// # Errors
///
/// `InvalidData` if it is not a regular file or is larger than `limit`.
pub(crate) fn read_in_root(
    root: impl AsFd,
    path: &Path,
    limit: u64,
) -> io::Result<Option<Vec<u8>>> {
    // NONBLOCK: a FIFO of that name must not stop us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in_root(root, path, flags) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        ));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        Ok(Some(bytes))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("larger than {limit} bytes"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn read_in_root_absolute_link_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("real"), "inside").unwrap();
        symlink("/real", dir.path().join("etc/passwd")).unwrap();
        let root = open_root(dir.path()).unwrap();
        let read = read_in_root(&root, Path::new("etc/passwd"), 100).unwrap();
        assert_eq!(read.as_deref(), Some(b"inside".as_slice()));
    }

    #[test]
    fn read_in_root_climbing_link_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        symlink("../../../../../../etc/passwd", dir.path().join("passwd")).unwrap();
        let root = open_root(dir.path()).unwrap();
        assert_eq!(
            read_in_root(&root, Path::new("passwd"), 1 << 20).unwrap(),
            None
        );
    }

    #[test]
    fn read_in_root_too_large_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("passwd"), "12345").unwrap();
        let root = open_root(dir.path()).unwrap();
        let error = read_in_root(&root, Path::new("passwd"), 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(
            read_in_root(&root, Path::new("passwd"), 5)
                .unwrap()
                .is_some()
        );
    }
}
