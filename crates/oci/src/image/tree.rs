//! A directory tree that hostile names cannot lead out of. Every name is resolved by the
//! kernel below the tree's root, and nothing is ever opened by a path from outside.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::beneath::retry;

/// How a directory of the tree is opened to work in it.
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Why a directory of the tree cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// A link on the way leads out of the tree; the link is the first so many parts.
    Leaves(usize),
    /// Something on the way is not a directory.
    NotADirectory,
    /// The system's reason.
    System(Errno),
}

/// The root of a tree.
pub(super) struct Tree {
    root: OwnedFd,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory; links on the way are followed as long as they stay in the tree.
    pub(super) fn open(&self, parts: &[&[u8]]) -> Result<OwnedFd, Unreachable> {
        self.resolve(parts, ResolveFlags::BENEATH)
            .map_err(|errno| match errno {
                Errno::XDEV => Unreachable::Leaves(self.leaving_link(parts)),
                Errno::NOTDIR => Unreachable::NotADirectory,
                errno => Unreachable::System(errno),
            })
    }

    /// Opens a directory as a process would whose root is the tree's: a link that leads
    /// out of the tree leads to the same place in it.
    pub(super) fn open_as_root(&self, parts: &[&[u8]]) -> Result<OwnedFd, Unreachable> {
        self.resolve(parts, ResolveFlags::IN_ROOT)
            .map_err(|errno| match errno {
                Errno::NOTDIR => Unreachable::NotADirectory,
                errno => Unreachable::System(errno),
            })
    }

    fn resolve(&self, parts: &[&[u8]], within: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let path = match parts {
            [] => c".".to_owned(),
            parts => name(&parts.join(&b'/'))?,
        };
        let resolve = within | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        retry(|| rustix::fs::openat2(&self.root, path.as_c_str(), PLACE, Mode::empty(), resolve))
    }

    /// The shortest path to the link that leads out.
    fn leaving_link(&self, parts: &[&[u8]]) -> usize {
        let leaves = |length: &usize| {
            let prefix = parts.get(..*length).unwrap_or_default();
            matches!(
                self.resolve(prefix, ResolveFlags::BENEATH),
                Err(Errno::XDEV)
            )
        };
        (1..=parts.len()).find(leaves).unwrap_or(parts.len())
    }
}

/// A name without NUL bytes.
pub(super) fn name(bytes: &[u8]) -> rustix::io::Result<CString> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

/// Opens a directory in a directory, if it is one and not a link to one.
pub(super) fn open_dir(parent: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The type of what has the name; a link is a link.
pub(super) fn file_type(parent: impl AsFd, name: &CStr) -> rustix::io::Result<FileType> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// A path to an open file or to a name in an open directory, for calls that take no
/// descriptor.
pub(super) fn proc_path(fd: impl AsFd, name: Option<&CStr>) -> rustix::io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into_bytes();
    if let Some(name) = name {
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
    }
    self::name(&path)
}

/// Names in a directory, without `.` and `..`.
pub(super) fn names(dir: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::new(rustix::fs::openat(dir, c".", flags, Mode::empty())?)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes what has the name, with everything below it. Nothing there is fine.
///
/// Walks with one open directory at a time, so that no depth is too deep. The tree must
/// not be changed by others meanwhile.
pub(super) fn remove(parent: impl AsFd, name: &CStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let mut above: Vec<CString> = Vec::new();
    let mut here = open_dir(&parent, name)?;
    loop {
        if let Some(inner) = clear_files(&here)? {
            here = open_dir(&here, &inner)?;
            above.push(inner);
            continue;
        }
        match above.pop() {
            Some(inner) => {
                here = open_dir(&here, c"..")?;
                rustix::fs::unlinkat(&here, &inner, AtFlags::REMOVEDIR)?;
            }
            None => return rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
        }
    }
}

/// Removes files and empty directories; gives the name of a directory that is not empty.
fn clear_files(dir: &OwnedFd) -> rustix::io::Result<Option<CString>> {
    for name in names(dir)? {
        match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name)),
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn tree(path: &Path) -> Tree {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Tree::new(rustix::fs::open(path, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn open_link_inside_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
        symlink("usr/lib", dir.path().join("lib")).unwrap();
        assert!(tree(dir.path()).open(&[b"lib"]).is_ok());
    }

    #[test]
    fn open_link_that_leaves_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        symlink("/etc", dir.path().join("a/absolute")).unwrap();
        symlink("../..", dir.path().join("a/climbing")).unwrap();
        let tree = tree(dir.path());
        for link in ["absolute", "climbing"] {
            let outcome = tree.open(&[b"a", link.as_bytes(), b"x"]);
            assert_eq!(outcome.unwrap_err(), Unreachable::Leaves(2), "{link}");
        }
        assert_eq!(tree.open(&[b".."]).unwrap_err(), Unreachable::Leaves(1));
    }

    #[test]
    fn open_as_root_link_that_leaves_leads_inside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        symlink("/run", dir.path().join("link")).unwrap();
        assert!(tree(dir.path()).open_as_root(&[b"link"]).is_ok());
        assert!(tree(dir.path()).open_as_root(&[b"etc"]).is_err());
    }

    #[test]
    fn remove_deep_tree_leaves_nothing_and_follows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "x").unwrap();
        let top = tree(dir.path());
        let mut here = rustix::fs::openat(top.root(), c".", PLACE, Mode::empty()).unwrap();
        for _ in 0..600 {
            rustix::fs::mkdirat(&here, c"d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat(outside.path(), &here, c"link").unwrap();
            here = open_dir(&here, c"d").unwrap();
        }
        remove(top.root(), c"d").unwrap();
        remove(top.root(), c"link").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(outside.path().join("kept").exists());
    }
}
