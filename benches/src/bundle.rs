//! A bundle every runtime can run: busybox, no network, no seccomp profile.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

/// A bundle on disk.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory.
    pub dir: PathBuf,
}

impl Bundle {
    /// Makes a bundle that runs `args`.
    pub fn make(dir: &Path, args: &[&str]) -> Result<Self> {
        let rootfs = dir.join("rootfs");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(rootfs.join(name)).context("make a root file system")?;
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox"))
            .context("copy /bin/busybox: install busybox-static")?;
        for applet in ["sh", "true", "sleep", "dd", "cat"] {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args,
                "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
                "capabilities": {"bounding": [], "effective": [], "permitted": []}
            },
            "root": {"path": "rootfs", "readonly": false},
            "hostname": "bench",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
            ],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}
            ]}
        });
        fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }
}
