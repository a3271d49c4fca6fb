//! The guest's own file systems.

use std::ffi::CStr;

use bulkhead_agent_api::{SHARE_DIR, SHARE_TAG};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::BootError;

struct Mount {
    kind: &'static str,
    source: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: &'static CStr,
    /// Directories to make first, outermost first.
    directories: &'static [&'static str],
    hint: &'static str,
}

const NO_CODE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In the order in which they depend on each other.
const MOUNTS: [Mount; 5] = [
    Mount {
        kind: "proc",
        source: "proc",
        target: "/proc",
        flags: NO_CODE,
        data: c"",
        directories: &["/proc"],
        hint: "",
    },
    Mount {
        kind: "devtmpfs",
        source: "dev",
        target: "/dev",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: c"mode=0755",
        directories: &["/dev"],
        hint: "; the kernel needs CONFIG_DEVTMPFS",
    },
    Mount {
        kind: "sysfs",
        source: "sys",
        target: "/sys",
        flags: NO_CODE,
        data: c"",
        directories: &["/sys"],
        hint: "",
    },
    Mount {
        kind: "cgroup2",
        source: "cgroup",
        target: "/sys/fs/cgroup",
        flags: NO_CODE,
        // A container with a cgroup namespace of its own cannot lift its own limits.
        data: c"nsdelegate",
        directories: &[],
        hint: "; the kernel needs CONFIG_CGROUPS",
    },
    // Devices in the share are what a container's root file system holds; the share as such gives
    // them no life, the container's own mounts decide.
    Mount {
        kind: "virtiofs",
        source: SHARE_TAG,
        target: SHARE_DIR,
        flags: MountFlags::empty(),
        data: c"",
        directories: &["/run", "/run/bulkhead", SHARE_DIR],
        hint: "; the guest needs a virtio-fs device with the tag `bulkhead`",
    },
];

/// Mounts them all.
pub fn mount_all() -> Result<(), BootError> {
    MOUNTS.iter().try_for_each(Mount::make)
}

impl Mount {
    fn make(&self) -> Result<(), BootError> {
        self.try_make().map_err(|error| BootError::Mount {
            kind: self.kind,
            target: self.target,
            hint: self.hint,
            source: error.into(),
        })
    }

    fn try_make(&self) -> Result<(), Errno> {
        for directory in self.directories {
            match rustix::fs::mkdir(*directory, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        mount(self.source, self.target, self.kind, self.flags, self.data)
    }
}
