//! `tmpcopyup`: a new tmpfs starts with what it hides.

use std::{
    ffi::CStr,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, mkdirat,
        mknodat, openat, openat2, readlinkat, statat, symlinkat,
    },
    io::Errno,
};

use super::target;
use crate::container::failure::{During, Step, shown};

/// Directories deeper than this are not copied: the walk is recursive.
const MAX_DEPTH: u32 = 256;

/// Copies what is in `hidden`, a directory that was just mounted over, to what
/// is now at `place`: names, contents, owners, modes, links and device nodes.
pub fn fill(hidden: BorrowedFd<'_>, place: &CStr) -> Step {
    let step = || format!("copy {} into the tmpfs on it", shown(place));
    let to = target::open(place, OFlags::DIRECTORY).during(step)?;
    // `hidden` is a bare path handle; reading needs a real one.
    let from = open_directory(hidden, c".").during(step)?;
    copy_directory(from.as_fd(), to, 0).during(step)
}

fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat2(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(from, to, name, depth)?;
    }
    Ok(())
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    depth: u32,
) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            mkdirat(to, name, mode)?;
            let (below, into) = (open_directory(from, name)?, open_directory(to, name)?);
            copy_directory(below.as_fd(), into.as_fd(), depth + 1)?;
        }
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut source = File::from(openat(from, name, flags | OFlags::RDONLY, Mode::empty())?);
            let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut copy = File::from(openat(to, name, create, mode)?);
            std::io::copy(&mut source, &mut copy)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        _ => mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        // Changing the owner took the set-id bits away.
        chmodat(to, name, mode, AtFlags::empty())?;
    }
    Ok(())
}
