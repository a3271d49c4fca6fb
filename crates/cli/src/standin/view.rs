//! What an engine finds in the stand-in's mount namespace: the container's files.
//!
//! `podman cp` and the like enter the mount namespace of the container's PID and go on from its root.
//! So the stand-in's root is the container's root file system on the host, with the volumes where the
//! container has them and a `/proc` that knows the stand-in only. What exists in the guest alone (its
//! tmpfs mounts, `/dev`) is not there.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use serde::{Deserialize, Serialize};

/// The container's files on the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct View {
    /// Root file system.
    pub rootfs: PathBuf,
    /// Bind mounts, in their order.
    pub binds: Vec<Bind>,
}

/// One bind mount.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
}

impl View {
    /// Makes the container's files the root of this process, which must be alone in a new mount
    /// namespace. The source of every mount is held before the root changes, and its target is looked
    /// up after: a link in the container's files leads nowhere else.
    ///
    /// # Errors
    /// What was attempted on which path.
    pub fn enter(&self) -> Result<(), String> {
        let on = |step: &str, path: &Path| {
            let text = format!("{step} {}", path.display());
            move |error: rustix::io::Errno| format!("Failed to {text}: {}", io::Error::from(error))
        };
        let root = Path::new("/");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(root, private).map_err(on("detach the mounts of", root))?;
        let mut trees = Vec::new();
        for bind in &self.binds {
            let tree = detach(&bind.source, bind.recursive)
                .map_err(on("take hold of the mount source", &bind.source))?;
            trees.push(tree);
        }
        let tree = detach(&self.rootfs, true)
            .map_err(on("take hold of the root file system", &self.rootfs))?;
        attach(&tree, &self.rootfs).map_err(on("mount", &self.rootfs))?;
        rustix::process::chdir(&self.rootfs).map_err(on("enter", &self.rootfs))?;
        rustix::process::pivot_root(".", ".").map_err(on("make a root of", &self.rootfs))?;
        unmount(".", UnmountFlags::DETACH).map_err(on("leave", root))?;
        rustix::process::chdir(root).map_err(on("enter", root))?;
        for (bind, tree) in self.binds.iter().zip(&trees) {
            // A read-only root file system without the place: the container will not start either,
            // and has the better message.
            if make_target(&bind.source, tree, &bind.target).is_ok() {
                attach(tree, &bind.target).map_err(on("mount", &bind.target))?;
            }
        }
        // Without the directory there is no place where anybody would look for processes.
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let _ = mount("proc", "/proc", "proc", flags, None);
        Ok(())
    }
}

fn detach(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = if recursive {
        flags | OpenTreeFlags::AT_RECURSIVE
    } else {
        flags
    };
    open_tree(CWD, path, flags)
}

fn attach(tree: &OwnedFd, target: &Path) -> rustix::io::Result<()> {
    move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// The engine expects the runtime to make the place, as the agent does in the guest.
fn make_target(source: &Path, tree: &OwnedFd, target: &Path) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    let stat = rustix::fs::fstat(tree)?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    tracing::debug!("Making {} for {}", target.display(), source.display());
    if kind == rustix::fs::FileType::Directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create_new(target).map(drop)
}
