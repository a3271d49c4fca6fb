//! Finding, and making where missing, the place where something is mounted.
//!
//! This runs when the container's root is already the process' root, so neither
//! `..` nor an absolute link can lead out of it. What could are the magic links
//! of `/proc`, and those are never followed.

use std::{
    ffi::{CStr, OsStr, OsString},
    os::{
        fd::BorrowedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::container::{
    failure::{During, Step, shown},
    sys::leak,
};

/// Links followed before a path is called a loop, as in the kernel.
const MAX_LINKS: u32 = 40;
const NEW_MODE: Mode = Mode::from_raw_mode(0o755);

/// What to make where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// A directory.
    Directory,
    /// An empty regular file.
    File,
}

/// Opens (`O_PATH`) what is at `path` inside the container.
pub fn open(path: &CStr, flags: OFlags) -> Result<BorrowedFd<'static>, Errno> {
    open_at(CWD, path, flags)
}

fn open_at(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<BorrowedFd<'static>, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(dir, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).map(leak)
}

/// Opens the directory `path`, making it and its parents if missing.
pub fn directory(path: &CStr) -> Step<BorrowedFd<'static>> {
    match open(path, OFlags::DIRECTORY) {
        Err(Errno::NOENT) => make(path, Leaf::Directory),
        result => result,
    }
    .during(|| format!("open the directory {}", shown(path)))
}

/// Opens what is at `path`; makes it, and its parents, if nothing is there.
/// `leaf` says what, and is only asked then.
pub fn any(path: &CStr, leaf: impl FnOnce() -> Result<Leaf, Errno>) -> Step<BorrowedFd<'static>> {
    match open(path, OFlags::empty()) {
        Err(Errno::NOENT) => leaf().and_then(|leaf| make(path, leaf)),
        result => result,
    }
    .during(|| format!("make {} to mount on", shown(path)))
}

/// Makes the directory `path` and its parents.
pub fn make_directory(path: &CStr) -> Result<(), Errno> {
    make(path, Leaf::Directory).map(drop)
}

/// Walks `path` name by name, following links by hand, because what a dangling
/// link points to has to be made as well.
fn make(path: &CStr, leaf: Leaf) -> Result<BorrowedFd<'static>, Errno> {
    let root = open(c"/", OFlags::DIRECTORY)?;
    let mut at = root;
    let mut links = 0;
    let mut rest = names(Path::new(OsStr::from_bytes(path.to_bytes())));
    while let Some(name) = rest.pop() {
        let name = std::ffi::CString::new(name.into_vec()).map_err(|_| Errno::INVAL)?;
        let wanted = if rest.is_empty() {
            leaf
        } else {
            Leaf::Directory
        };
        let found = match open_at(at, &name, OFlags::NOFOLLOW) {
            Err(Errno::NOENT) => {
                make_one(at, &name, wanted)?;
                open_at(at, &name, OFlags::NOFOLLOW)?
            }
            result => result?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let link = rustix::fs::readlinkat(found, c"", Vec::new())?;
            let link = Path::new(OsStr::from_bytes(link.as_bytes()));
            if link.is_absolute() {
                at = root;
            }
            rest.extend(names(link));
        } else if wanted == Leaf::Directory && kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        } else {
            at = found;
        }
    }
    Ok(at)
}

/// Another container with the same root may make the same at the same time: then it is there.
fn make_one(dir: BorrowedFd<'_>, name: &CStr, leaf: Leaf) -> Result<(), Errno> {
    match leaf {
        Leaf::Directory => rustix::fs::mkdirat(dir, name, NEW_MODE),
        Leaf::File => rustix::fs::mknodat(dir, name, FileType::RegularFile, NEW_MODE, 0),
    }
    .or_else(|err| {
        if err == Errno::EXIST {
            Ok(())
        } else {
            Err(err)
        }
    })
}

/// The names of a path, last first.
fn names(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Whether the open `fd` is a directory.
pub fn leaf_like(fd: BorrowedFd<'_>) -> Result<Leaf, Errno> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Leaf::Directory,
        _ => Leaf::File,
    })
}
