//! The ground an engine stands on: a network and a mount namespace of a test's own.
//!
//! What an engine mounts, and the bridges and rules it makes, are gone when the last process in there has
//! ended; the machine's own network is never touched.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::driver::{Driver, in_path};
use super::invocation::Invocation;
use super::product::product;
use super::running::Running;

/// Where Debian has what engines call.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Namespaces that live as long as this.
#[derive(Debug)]
pub struct Ground {
    holder: Running,
    home: PathBuf,
}

impl Ground {
    /// New namespaces, with `lo` up, for an engine that has its files in `dir`. When the test process
    /// ends in whatever way, the daemons with a `*.pid` there are ended too. crun, which refuses a host that has cgroup v1 and v2 side by side,
    /// does not see v2 in there.
    ///
    /// # Panics
    /// When they cannot be made.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let home = dir.join("home");
        fs::create_dir(&home).unwrap();
        let script = "ip link set lo up && sysctl -qw net.ipv4.ip_forward=1 && \
            { [ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified; } && \
            mount -t tmpfs -o mode=755 run /run && mkdir -m 700 /run/lock && \
            echo ready && read line; kill $(cat \"$1\"*.pid 2>/dev/null) 2>/dev/null";
        let unshare = Invocation::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c"])
            .args([script, "sh", &dir.join("").display().to_string()]);
        let mut holder = unshare.env("PATH", PATH).stdin_pipe().spawn();
        holder.line_is("ready");
        Self { holder, home }
    }

    /// A command in the namespaces, with an empty home directory.
    #[must_use]
    pub fn command(&self, program: &str) -> Invocation {
        let of = |kind: &str| format!("--{kind}=/proc/{}/ns", self.holder.pid());
        let namespaces = [of("net") + "/net", of("mount") + "/mnt"];
        self.environment(Invocation::new("nsenter").args(namespaces))
            .args(["--", program])
    }

    fn environment(&self, command: Invocation) -> Invocation {
        command
            .env("PATH", PATH)
            .env("HOME", &self.home)
            .env("TMPDIR", &self.home)
            .env("XDG_RUNTIME_DIR", "/run")
    }

    /// The process that holds them.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// An empty directory for an engine's own files of the user.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }
}

/// The runtime a driver stands for, as an executable that needs no environment and no options: engines call
/// it with their own. It is written to `dir`, if it is ours; `root` is then the state directory, if the
/// engine does not choose one.
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn runtime(driver: &Driver, dir: &Path, root: Option<&Path>) -> PathBuf {
    if let Driver::Peer(path) = driver {
        return path.clone();
    }
    let dir = dir.join(format!("bin-{driver}"));
    fs::create_dir(&dir).unwrap();
    let config = format!("hypervisor = {:?}\n", driver.hypervisor());
    fs::write(dir.join("config.toml"), config).unwrap();
    let path = dir.join("bulkhead");
    let root = root.map(|root| format!("--root {} ", root.display()));
    let script = format!(
        "#!/bin/sh\nexport BULKHEAD_LIB={} BULKHEAD_CONFIG_DIR={}\nexec {} {}\"$@\"\n",
        product().lib.display(),
        dir.display(),
        product().bin.display(),
        root.unwrap_or_default(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Whether all of these programs are installed; the first that is not as a reason to skip.
///
/// # Errors
/// The reason.
pub fn installed<P: AsRef<OsStr>>(programs: impl IntoIterator<Item = P>) -> Result<(), String> {
    for program in programs {
        let name = program.as_ref().to_string_lossy();
        if in_path(&name).is_none() {
            return Err(format!("{name} is not installed: cargo xtask setup"));
        }
    }
    Ok(())
}
