//! The jail's root file system: built on a fresh tmpfs, then made the only one there is.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, UnmountFlags};

use crate::mount::{
    NOSYMFOLLOW, attach, attach_over_root, clone_tree, filesystem, private, restrict,
};
use crate::{Entry, JailError, Root};

/// More than any jail has entries; bounds what a mistake can cost in kernel memory.
const ROOT_INODES: &str = "16384";

/// Builds `root` and moves the process into it; the old root is no longer reachable afterwards.
/// `uid` and `gid` own the scratch file systems.
pub(crate) fn build_and_pivot(root: &Root, uid: u32, gid: u32) -> Result<(), JailError> {
    let at_root = |step| failed(step, Path::new("/"));
    // The caller's mask must not close the directories on the way to the mount points.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    private().map_err(at_root("make mounts private below"))?;
    let mut builder = Builder::new(root, uid, gid)?;
    for entry in &root.entries {
        builder.place(entry)?;
    }
    for mount in builder
        .devices
        .iter()
        .map(|(_, mount)| mount)
        .chain([&builder.tree])
    {
        restrict(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false)
            .map_err(at_root("make read-only"))?;
    }
    rustix::process::fchdir(builder.tree.as_fd()).map_err(at_root("change to the new"))?;
    // With both arguments the same directory the old root ends up on top of the new one, from
    // where it is taken away. No directory for it needs to exist in the new root.
    rustix::process::pivot_root(c".", c".").map_err(at_root("pivot to"))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(at_root("detach the old"))?;
    rustix::process::chdir(c"/").map_err(at_root("change to"))
}

pub(crate) fn failed(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> JailError {
    let path = path.to_owned();
    move |source| JailError::Root {
        step,
        path,
        source: source.into(),
    }
}

pub(crate) struct Builder {
    /// The new root's mount.
    tree: OwnedFd,
    /// Directories of device nodes, each a file system of its own.
    devices: Vec<(PathBuf, OwnedFd)>,
    uid: u32,
    gid: u32,
}

impl Builder {
    /// For the root of a jail that exists.
    pub(crate) fn of(tree: OwnedFd) -> Self {
        Self {
            tree,
            devices: Vec::new(),
            uid: 0,
            gid: 0,
        }
    }

    /// A tmpfs mounted over the current root. Lookups of absolute paths still start at the old
    /// root beneath it, so that sources are found; the new tree is reached by its descriptor.
    fn new(root: &Root, uid: u32, gid: u32) -> Result<Self, JailError> {
        let at_root = |step| failed(step, Path::new("/"));
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if !root.exec {
            attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
        }
        // To the kernel a size of 0 would mean no limit.
        let size = root.tmpfs_bytes.max(4096).to_string();
        let options = [
            ("size", size.as_str()),
            ("nr_inodes", ROOT_INODES),
            ("mode", "755"),
        ];
        let tree =
            filesystem("tmpfs", &options, attributes).map_err(at_root("make a tmpfs for"))?;
        attach_over_root(tree.as_fd()).map_err(at_root("mount the tmpfs over"))?;
        Ok(Self {
            tree,
            devices: Vec::new(),
            uid,
            gid,
        })
    }

    fn place(&mut self, entry: &Entry) -> Result<(), JailError> {
        match entry {
            Entry::Dir { path, mode } => self.directory(path, *mode),
            Entry::Bind {
                source,
                target,
                recursive,
                ..
            } => self.bind(source, target, bind_attributes(entry), *recursive),
            Entry::Device { source, target } => self.device(source, target),
            Entry::Overlay {
                lower,
                upper,
                work,
                target,
            } => self.overlay(lower, upper, work, target),
            Entry::Tmpfs {
                target,
                bytes,
                mode,
                exec,
            } => self.tmpfs(target, *bytes, *mode, *exec),
            Entry::Symlink { text, path } => {
                let (parent, name) = self.parent(path)?;
                rustix::fs::symlinkat(text, parent.as_fd(), name)
                    .map_err(failed("make the symbolic link", path))
            }
        }
    }

    fn directory(&self, path: &Path, mode: u32) -> Result<(), JailError> {
        let point = self.mount_point(path, FileType::Directory)?;
        // The umask has had its say in mkdir; and a parent made earlier gets its mode here.
        rustix::fs::chmodat(
            point.as_fd(),
            c".",
            Mode::from_raw_mode(mode),
            AtFlags::empty(),
        )
        .map_err(failed("set the mode of", path))
    }

    fn bind(
        &self,
        source: &Path,
        target: &Path,
        attributes: MountAttrFlags,
        recursive: bool,
    ) -> Result<(), JailError> {
        let tree = clone_tree(source, recursive).map_err(failed("take from the host", source))?;
        let kind = file_type(tree.as_fd()).map_err(failed("inspect", source))?;
        restrict(tree.as_fd(), attributes, recursive).map_err(failed("restrict", source))?;
        let point = self.mount_point(target, kind)?;
        attach(tree.as_fd(), point.as_fd()).map_err(failed("bind on", target))
    }

    fn tmpfs(&self, target: &Path, bytes: u64, mode: u32, exec: bool) -> Result<(), JailError> {
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if !exec {
            attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
        }
        let options = [
            ("size", bytes.max(4096).to_string()),
            ("mode", format!("{mode:o}")),
            ("uid", self.uid.to_string()),
            ("gid", self.gid.to_string()),
        ];
        let options = options
            .each_ref()
            .map(|(key, value)| (*key, value.as_str()));
        let tree = filesystem("tmpfs", &options, attributes)
            .map_err(failed("make a tmpfs for", target))?;
        let point = self.mount_point(target, FileType::Directory)?;
        attach(tree.as_fd(), point.as_fd()).map_err(failed("mount a tmpfs on", target))
    }

    /// A node of the jail's own, so that it does not matter who may open the host's.
    fn device(&mut self, source: &Path, target: &Path) -> Result<(), JailError> {
        let bad = || JailError::BadTarget {
            path: target.to_owned(),
        };
        let (parent, name) = target.parent().zip(target.file_name()).ok_or_else(bad)?;
        let host = rustix::fs::stat(source).map_err(failed("inspect", source))?;
        let kind = FileType::from_raw_mode(host.st_mode);
        if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
            return Err(failed("find a device at", source)(Errno::NOTBLK));
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let directory = self.device_directory(parent)?;
        rustix::fs::mknodat(
            directory,
            name,
            kind,
            Mode::from_raw_mode(0o600),
            host.st_rdev,
        )
        .map_err(failed("make the device node", target))?;
        rustix::fs::chownat(
            directory,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed("give to the jail's user", target))
    }

    /// The file system for the device nodes in the directory `path`, mounted there if it is not.
    fn device_directory(&mut self, path: &Path) -> Result<BorrowedFd<'_>, JailError> {
        let index = match self.devices.iter().position(|(known, _)| known == path) {
            Some(index) => index,
            None => {
                let options = [("size", "4096"), ("nr_inodes", "64"), ("mode", "755")];
                let attributes =
                    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                let tree = filesystem("tmpfs", &options, attributes)
                    .map_err(failed("make a tmpfs for", path))?;
                let point = self.mount_point(path, FileType::Directory)?;
                attach(tree.as_fd(), point.as_fd()).map_err(failed("mount a tmpfs on", path))?;
                self.devices.push((path.to_owned(), tree));
                self.devices.len().saturating_sub(1)
            }
        };
        match self.devices.get(index) {
            Some((_, tree)) => Ok(tree.as_fd()),
            None => Err(JailError::BadTarget {
                path: path.to_owned(),
            }),
        }
    }

    fn overlay(
        &self,
        lower: &[PathBuf],
        upper: &Path,
        work: &Path,
        target: &Path,
    ) -> Result<(), JailError> {
        let point = self.mount_point(target, FileType::Directory)?;
        // Descriptors, because mount options are limited to a page, separate layers by colons and
        // would show the host's paths in the jail's mount table.
        let open = |path: &Path| {
            rustix::fs::open(
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(failed("open the overlay layer", path))
        };
        let lower = lower
            .iter()
            .map(|path| open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let (upper, work) = (open(upper)?, open(work)?);
        let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.iter().map(name).collect::<Vec<_>>().join(":"),
            name(&upper),
            name(&work),
        );
        let options = CString::new(options).map_err(|_| JailError::Nul {
            what: "the options of an overlay",
        })?;
        // The older call takes its target as a path: make it the working directory.
        rustix::process::fchdir(point.as_fd()).map_err(failed("change to", target))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(c"overlay", c".", c"overlay", flags, options.as_c_str())
            .map_err(failed("mount an overlay on", target))
    }

    /// What lies at `path`, made if missing: a directory, or for any other kind an empty file.
    pub(crate) fn mount_point(&self, path: &Path, kind: FileType) -> Result<OwnedFd, JailError> {
        let (parent, name) = self.parent(path)?;
        if kind == FileType::Directory {
            return descend(parent.as_fd(), name).map_err(failed("make the directory", path));
        }
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = rustix::fs::openat(
            parent.as_fd(),
            name,
            flags | OFlags::EXCL,
            Mode::from_raw_mode(0o444),
        );
        match created {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make the mount point", path)(errno)),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent.as_fd(), name, flags, Mode::empty())
            .map_err(failed("open the mount point", path))
    }

    /// The directory that holds `path` (made if missing) and the last component.
    pub(crate) fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), JailError> {
        let bad = || JailError::BadTarget {
            path: path.to_owned(),
        };
        let mut components = path.components();
        if components.next() != Some(Component::RootDir) {
            return Err(bad());
        }
        let mut names = Vec::new();
        for component in components {
            match component {
                Component::Normal(name) => names.push(name),
                _ => return Err(bad()),
            }
        }
        let last = names.pop().ok_or_else(bad)?;
        let mut directory = rustix::io::fcntl_dupfd_cloexec(self.tree.as_fd(), 0)
            .map_err(failed("open", Path::new("/")))?;
        for name in names {
            directory = descend(directory.as_fd(), name)
                .map_err(failed("make the parent directories of", path))?;
        }
        Ok((directory, last))
    }
}

/// Opens the directory `name`, making it if it is missing. Never follows a symbolic link.
fn descend(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            rustix::fs::openat(parent, name, flags, Mode::empty())
        }
        result => result,
    }
}

/// The attributes a bind mount asks for; none for another entry.
pub(crate) fn bind_attributes(entry: &Entry) -> MountAttrFlags {
    let Entry::Bind {
        read_only,
        nosuid,
        nodev,
        noexec,
        ..
    } = entry
    else {
        return MountAttrFlags::empty();
    };
    let flags = [
        (*read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (*nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (*nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (*noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (true, NOSYMFOLLOW),
    ];
    flags
        .into_iter()
        .filter_map(|(wanted, flag)| wanted.then_some(flag))
        .collect()
}

pub(crate) fn file_type(fd: BorrowedFd<'_>) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}
