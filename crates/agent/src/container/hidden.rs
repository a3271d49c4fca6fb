//! `linux.maskedPaths` and `linux.readonlyPaths`.

use std::{
    ffi::{CStr, CString},
    os::fd::BorrowedFd,
};

use rustix::{
    fs::{CWD, FileType, OFlags, fstat},
    io::Errno,
    mount::{
        MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount,
        mount_bind, mount_bind_recursive, move_mount, open_tree,
    },
    process::fchdir,
};

use super::{
    ContainerError, Failure,
    failure::{During, Step, shown},
    mounts::{Own, target},
    sys::{leak, mount_setattr},
};

const NULL: &CStr = c"/dev/null";

/// Checks a list of paths.
pub fn plan(field: &str, paths: Option<&[String]>) -> Result<Vec<CString>, ContainerError> {
    paths
        .unwrap_or_default()
        .iter()
        .enumerate()
        .map(|(index, path)| {
            let field = || format!("{field}[{index}]");
            if !path.starts_with('/') {
                return Err(ContainerError::invalid(
                    field(),
                    "it must be an absolute path",
                ));
            }
            CString::new(path.as_str())
                .map_err(|_| ContainerError::invalid(field(), "it contains a null byte"))
        })
        .collect()
}

/// Covers what is at the paths: a file with the null device, a directory with
/// an empty one. What is not there needs no cover.
pub fn mask(paths: &[CString], own: &Own) -> Step {
    let mut null_is_null = own.has(c"/dev");
    for path in paths {
        mask_one(path, own, &mut null_is_null)
            .map_err(|failure| failure.with_field("linux.maskedPaths"))?;
    }
    Ok(())
}

fn mask_one(path: &CStr, own: &Own, null_is_null: &mut bool) -> Step {
    let step = || format!("mask {}", shown(path));
    if own.covers(path) && *null_is_null {
        return match mount_bind(NULL, path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR) => cover_directory(path).during(step),
            Err(errno) => Err(errno).during(step),
        };
    }
    let place = match target::open(path, OFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        result => result.during(step)?,
    };
    if FileType::from_raw_mode(fstat(place).during(step)?.st_mode) == FileType::Directory {
        fchdir(place).during(step)?;
        return cover_directory(c".").during(step);
    }
    if !*null_is_null {
        check_null()?;
        *null_is_null = true;
    }
    let null = open_tree(
        CWD,
        NULL,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map(leak)
    .during(step)?;
    put(null, place).during(step)
}

fn cover_directory(path: &CStr) -> Result<(), Errno> {
    // The smallest file system there is: no room, and its own root only.
    mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::RDONLY,
        c"size=0k,nr_inodes=2,mode=0755",
    )
}

/// Where `/dev` came with the image, its null device may be anything.
fn check_null() -> Step {
    let step = || "find the null device at /dev/null, which masks files".to_owned();
    let stat = rustix::fs::lstat(NULL).during(step)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null {
        Ok(())
    } else {
        Err(Failure::plain(step()))
    }
}

/// Makes what is at the paths read-only. What is not there is passed over.
pub fn make_read_only(paths: &[CString], own: &Own) -> Step {
    for path in paths {
        read_only_one(path, own).map_err(|failure| failure.with_field("linux.readonlyPaths"))?;
    }
    Ok(())
}

fn read_only_one(path: &CStr, own: &Own) -> Step {
    let step = || format!("make {} read-only", shown(path));
    if own.covers(path) {
        return match mount_bind_recursive(path, path) {
            Err(Errno::NOENT) => Ok(()),
            result => result.and_then(|()| set_read_only(CWD, path)).during(step),
        };
    }
    let place = match target::open(path, OFlags::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        result => result.during(step)?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(place, c"", flags).map(leak).during(step)?;
    set_read_only(tree, c"").during(step)?;
    put(tree, place).during(step)
}

fn set_read_only(dir: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    mount_setattr(
        dir,
        path,
        false,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
        MountAttrFlags::empty(),
        MountPropagationFlags::empty(),
    )
    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn put(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", place, c"", flags)
}
