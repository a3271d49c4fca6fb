//! File systems made before they have a place, by the mount API of Linux 5.2.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

use super::options::MountOptions;

/// Makes a file system of type `filesystem` that is mounted nowhere yet.
/// `source` is looked up from the caller's root.
pub fn make(filesystem: &str, source: &str, options: &MountOptions) -> Result<OwnedFd, Errno> {
    let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    for (flag, name) in [
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::LAZYTIME, "lazytime"),
        (MountFlags::PERMIT_MANDATORY_FILE_LOCKING, "mand"),
    ] {
        if options.superblock.contains(flag) {
            fsconfig_set_flag(&context, name)?;
        }
    }
    if options
        .attributes
        .set
        .contains(MountAttrFlags::MOUNT_ATTR_RDONLY)
    {
        // Of a file system on a device the device must not be written to either.
        fsconfig_set_flag(&context, "ro")?;
    }
    for word in &options.data {
        match word.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, word.as_str()),
        }?;
    }
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        options.attributes.set,
    )
}
