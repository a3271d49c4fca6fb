//! Device nodes and the links every container finds in `/dev`.

use std::{
    ffi::{CStr, CString},
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::{Component, Path},
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, makedev, mknodat, symlinkat},
    io::Errno,
};

use super::{
    ContainerError,
    failure::{During, Step, shown},
    mounts::{Own, target},
};

/// Nodes of `/dev` the specification promises, with their numbers.
const DEFAULT: [(&CStr, u32, u32); 6] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
    (c"/dev/ptmx", c"pts/ptmx"),
];

/// A node to make.
#[derive(Debug)]
pub struct Device {
    path: CString,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    owner: Option<(u32, u32)>,
}

/// Checks `linux.devices`.
pub fn plan(devices: Option<&[LinuxDevice]>) -> Result<Vec<Device>, ContainerError> {
    let devices = devices.unwrap_or_default();
    devices
        .iter()
        .enumerate()
        .map(|(index, device)| plan_one(index, device))
        .collect()
}

fn plan_one(index: usize, device: &LinuxDevice) -> Result<Device, ContainerError> {
    let field = |part: &str| format!("linux.devices[{index}].{part}");
    let path = clean(device.path())
        .ok_or_else(|| ContainerError::invalid(field("path"), "it must be an absolute path"))?;
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            return Err(ContainerError::invalid(
                field("type"),
                "it must be c, b, u or p",
            ));
        }
    };
    let number = |part: &str, value: i64, bits: u32| {
        u32::try_from(value)
            .ok()
            .filter(|value| value >> bits == 0)
            .ok_or_else(|| {
                ContainerError::invalid(field(part), format!("{value} is no device number"))
            })
    };
    let (major, minor) = if kind == FileType::Fifo {
        (0, 0)
    } else {
        // The kernel has 12 and 20 bits for them.
        (
            number("major", device.major(), 12)?,
            number("minor", device.minor(), 20)?,
        )
    };
    let owner = match (device.uid(), device.gid()) {
        (None | Some(0), None | Some(0)) => None,
        (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
    };
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    Ok(Device {
        path,
        kind,
        major,
        minor,
        mode,
        owner,
    })
}

fn clean(path: &Path) -> Option<CString> {
    let mut clean = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                clean.push(b'/');
                clean.extend(name.as_bytes());
            }
            Component::ParentDir | Component::Prefix(_) => return None,
            Component::RootDir | Component::CurDir => {}
        }
    }
    (path.is_absolute() && !clean.is_empty())
        .then(|| CString::new(clean).ok())
        .flatten()
}

/// Makes the nodes and links. `own` tells whether `/dev` is a fresh file system
/// of ours; `bound` whether it was bound from elsewhere, in which case it has
/// what it has and nothing is added.
pub fn make(devices: &[Device], own: &Own, bound: bool) -> Step {
    for device in devices {
        device
            .make(own)
            .map_err(|failure| failure.with_field("linux.devices"))?;
    }
    if bound {
        return Ok(());
    }
    for (path, major, minor) in DEFAULT {
        if !devices.iter().any(|device| device.path.as_c_str() == path) {
            node(path, own, FileType::CharacterDevice, 0o666, (major, minor))?;
        }
    }
    for (path, to) in LINKS {
        link(path, to, own)?;
    }
    Ok(())
}

impl Device {
    fn make(&self, own: &Own) -> Step {
        node(
            &self.path,
            own,
            self.kind,
            self.mode,
            (self.major, self.minor),
        )?;
        let Some((uid, gid)) = self.owner else {
            return Ok(());
        };
        let step = || format!("give {} to its owner", shown(&self.path));
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(
            CWD,
            self.path.as_c_str(),
            owner.0,
            owner.1,
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .during(step)
    }
}

fn node(path: &CStr, own: &Own, kind: FileType, mode: u32, numbers: (u32, u32)) -> Step {
    let make = |dir: BorrowedFd<'_>, name: &CStr| {
        mknodat(
            dir,
            name,
            kind,
            Mode::from_raw_mode(mode),
            makedev(numbers.0, numbers.1),
        )
    };
    place(path, own, make)
}

fn link(path: &CStr, to: &CStr, own: &Own) -> Step {
    place(path, own, |dir, name| symlinkat(to, dir, name))
}

/// Makes something at `path`; what is there already stays, as in runc.
fn place(
    path: &CStr,
    own: &Own,
    make: impl Fn(BorrowedFd<'_>, &CStr) -> Result<(), Errno>,
) -> Step {
    let step = || format!("make {}", shown(path));
    if own.covers(path) {
        match make(CWD, path) {
            Ok(()) | Err(Errno::EXIST) => return Ok(()),
            // A directory on the way is missing.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).during(step),
        }
    }
    let bytes = path.to_bytes();
    let slash = bytes.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    let (parent, name) = bytes.split_at(slash);
    let parent = if parent.is_empty() { b"/" } else { parent };
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::INVAL);
    let name = c_string(name.strip_prefix(b"/").unwrap_or(name)).during(step)?;
    let dir = target::directory(&c_string(parent).during(step)?)?;
    match make(dir, &name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).during(step),
    }
}

/// Shows the terminal at `/dev/console`.
pub fn bind_console(pts: &CStr) -> Step {
    let step = || "show the terminal at /dev/console".to_owned();
    let console = target::any(c"/dev/console", || Ok(target::Leaf::File))?;
    let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
        | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, pts, flags)
        .map(super::sys::leak)
        .during(step)?;
    rustix::mount::move_mount(
        tree,
        c"",
        console,
        c"",
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
            | rustix::mount::MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .during(step)
}
