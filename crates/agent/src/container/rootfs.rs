//! Making the container's root file system the root, and the agent's disappear.

use std::ffi::CStr;

use rustix::{
    fs::CWD,
    mount::{
        MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive,
        mount_change, unmount,
    },
    process::{chdir, chroot, pivot_root},
};

use super::{
    ContainerError,
    failure::{During, Step, shown},
    mounts::split,
    sys::mount_setattr,
};

/// Lays the root file system over itself and makes the result the process'
/// root. The kernel's initial file system has no parent, and what has no parent
/// cannot be pivoted away from.
pub fn make_pivotable() -> Result<(), ContainerError> {
    let step = || "lay the root file system over itself".to_owned();
    mount_bind("/", "/").while_trying(step)?;
    // The root of a process is where it was; ".." at the root leads to what
    // was mounted over it.
    chdir("/..").while_trying(step)?;
    chroot(".").while_trying(step)
}

/// Moves the process, which has a mount namespace of its own, into `rootfs`.
/// Nothing of the former root remains, and nothing propagates either way.
pub fn enter(rootfs: &CStr, prepare: impl FnOnce() -> Step) -> Step {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .during(|| "make the mounts private".to_owned())?;
    prepare()?;
    let step = || format!("make {} the root", shown(rootfs));
    mount_bind_recursive(rootfs, rootfs).during(step)?;
    chdir(rootfs).during(step)?;
    // With "." twice the old root ends up on top of the new one, so that no
    // directory has to be made for it.
    pivot_root(".", ".").during(step)?;
    unmount(".", UnmountFlags::DETACH).during(|| "unmount the former root".to_owned())
}

/// `root.readonly`: of the root mount alone, not of what is mounted below.
pub fn make_read_only() -> Step {
    mount_setattr(
        CWD,
        c"/",
        false,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
        MountAttrFlags::empty(),
        MountPropagationFlags::empty(),
    )
    .during(|| "make the root read-only".to_owned())
    .map_err(|failure| failure.with_field("root.readonly"))
}

/// `linux.rootfsPropagation`, as flags; nothing for the modes that every mount
/// of a guest has anyway.
pub fn propagation(word: Option<&str>) -> Result<Option<MountPropagationFlags>, ContainerError> {
    use MountPropagationFlags as P;
    match word.unwrap_or_default() {
        "" | "private" | "rprivate" | "slave" | "rslave" => Ok(None),
        "shared" => Ok(Some(P::SHARED)),
        "rshared" => Ok(Some(P::SHARED | P::REC)),
        "unbindable" => Ok(Some(P::UNBINDABLE)),
        "runbindable" => Ok(Some(P::UNBINDABLE | P::REC)),
        _ => Err(ContainerError::invalid(
            "linux.rootfsPropagation",
            "it must be shared, slave, private or unbindable, or one of these with a leading r",
        )),
    }
}

/// Sets the propagation of the root mount, once everything is mounted.
pub fn propagate(flags: MountPropagationFlags) -> Step {
    let (recursive, flags) = split(flags);
    let none = MountAttrFlags::empty();
    mount_setattr(CWD, c"/", recursive, none, none, flags)
        .during(|| "set the propagation of the root".to_owned())
        .map_err(|failure| failure.with_field("linux.rootfsPropagation"))
}
