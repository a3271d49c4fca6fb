//! Root file systems of containers: a static busybox and who is who.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The static busybox the root file systems are made of.
const BUSYBOX: &str = "/bin/busybox";

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
alice:x:1000:1000:Alice:/home/alice:/bin/sh
";

const GROUP: &str = "\
root:x:0:
daemon:x:1:
video:x:44:alice
staff:x:50:alice,daemon
alice:x:1000:
";

/// Makes a root file system in a new directory: busybox with its applets, users `root`, `daemon` and
/// `alice` (1000, also in groups 44 and 50), the usual empty directories.
///
/// # Panics
/// When busybox is not installed or the directory cannot be written.
pub fn make(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for name in [
        "bin", "dev", "etc", "home", "mnt", "proc", "run", "sbin", "sys", "usr", "var",
    ] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    for (name, mode) in [("root", 0o700), ("tmp", 0o1777), ("home/alice", 0o755)] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).unwrap();
    }
    chown(dir.join("home/alice"), Some(1000), Some(1000)).unwrap();
    fs::write(dir.join("etc/passwd"), PASSWD).unwrap();
    fs::write(dir.join("etc/group"), GROUP).unwrap();
    fs::copy(BUSYBOX, dir.join("bin/busybox")).expect("busybox-static is installed");
    for applet in applets() {
        symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
}

/// Such a root file system as a tar archive.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        make(&rootfs);
        super::image::tar(&rootfs)
    })
}

/// The commands of our busybox.
fn applets() -> &'static [String] {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    APPLETS.get_or_init(|| {
        let list = Command::new(BUSYBOX).arg("--list").output();
        let list = list.expect("busybox-static is installed").stdout;
        let text = String::from_utf8(list).unwrap();
        let applets = text.lines().filter(|name| *name != "busybox");
        applets.map(str::to_owned).collect()
    })
}

/// Adds a shell script to a root file system.
///
/// # Panics
/// When it cannot be written.
pub fn add_script(rootfs: &Path, path: &str, script: &str) {
    let path = rootfs.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}
