//! Owner, mode, attributes and times of what an entry made.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::LayerError;
use super::layer::{refused, shown};
use super::tarball::Entry;
use super::tree;

/// Extended attributes that are not the container's: overlayfs steers itself by its own, and
/// the labels of one host's SELinux are not another's.
const FOREIGN_XATTRS: &[&[u8]] = &[
    b"trusted.overlay.",
    b"user.overlay.",
    b"security.selinux",
    b"system.nfs4_acl",
];

/// Owner, then mode (a change of owner clears set-id bits), then attributes (it clears
/// file capabilities too).
pub(super) fn set_metadata(entry: &Entry, file: impl AsFd) -> Result<(), LayerError> {
    let system = |action| move |errno| refused(action, entry, errno);
    let (uid, gid) = owner(entry)?;
    rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(system("set the owner of"))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
        .map_err(system("set the mode of"))?;
    set_xattrs(entry, |attribute, value| {
        rustix::fs::fsetxattr(&file, attribute, value, XattrFlags::empty())
    })
}

/// Sets the attributes that are the container's. Those for users only (`user.`) are left
/// out where the file system has none.
pub(super) fn set_xattrs(
    entry: &Entry,
    set: impl Fn(&CStr, &[u8]) -> rustix::io::Result<()>,
) -> Result<(), LayerError> {
    for (attribute, value) in &entry.xattrs {
        if FOREIGN_XATTRS
            .iter()
            .any(|prefix| attribute.starts_with(prefix))
        {
            continue;
        }
        let failed = |errno| refused("set an extended attribute of", entry, errno);
        let name = tree::name(attribute).map_err(failed)?;
        match set(&name, value) {
            Ok(()) => {}
            // No attributes of users here, or none on a link.
            Err(Errno::OPNOTSUPP | Errno::PERM) if attribute.starts_with(b"user.") => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

pub(super) fn owner(entry: &Entry) -> Result<(Uid, Gid), LayerError> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(LayerError::Entry {
            entry: shown(&entry.path),
            problem: "its owner is not a number below 4294967295",
        }),
    }
}

pub(super) fn times((tv_sec, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
