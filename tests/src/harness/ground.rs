//! The ground an engine stands on: a network and a mount namespace of a test's own.
//!
//! What an engine mounts, and the bridges and rules it makes, are gone when the last process in there has
//! ended; the machine's own network is never touched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::driver::Driver;
use super::engines::Engines;
use super::invocation::Invocation;
use super::product::product;
use super::running::Running;

/// Where Debian has what engines call.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What every ground has; `$1` is the directory of the engine.
const SET_UP: &str = r#"set -e; dir=$1 root=$2; shift 2
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1
if [ -d /sys/fs/cgroup/unified ]; then
  ! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
  mount -t tmpfs hidden /sys/fs/cgroup/unified
fi
"#;

/// Makes the root file system `$root` the root, writable in memory only. The rest of the arguments are
/// directories that stay where they are.
const CHANGE_ROOT: &str = r#"if [ -n "$root" ]; then
  mount -t tmpfs layers /mnt
  mkdir /mnt/upper /mnt/work /mnt/root
  mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
  for place in /dev /proc /sys "$@"; do
    mkdir -p "/mnt/root$place"
    mount --rbind "$place" "/mnt/root$place"
  done
  cd /mnt/root; mkdir -p mnt
  pivot_root . mnt
  umount -l /mnt
fi
"#;

/// Says so, and ends when the test does.
const WAIT: &str = r#"mount -t tmpfs -o mode=755 run /run
mkdir -m 700 /run/lock
echo ready
set +e
read line
kill $(cat "$dir"*.pid 2>/dev/null) 2>/dev/null
"#;

/// Namespaces that live as long as this.
#[derive(Debug)]
pub struct Ground {
    holder: Running,
    home: PathBuf,
}

impl Ground {
    /// New namespaces, with `lo` up, for an engine that has its files in `dir`. When the test process
    /// ends in whatever way, the daemons with a `*.pid` there are ended too. crun, which refuses a host
    /// that has cgroup v1 and v2 side by side, does not see v2 in there; what runsc leaves in its place is nobody's.
    ///
    /// Newer engines have their own root file system there, of which nothing is changed, with `dir`,
    /// `/tmp` and the product at their places.
    ///
    /// # Panics
    /// When they cannot be made.
    #[must_use]
    pub fn new(dir: &Path, engines: &Engines) -> Self {
        let home = dir.join("home");
        fs::create_dir(&home).unwrap();
        let script = format!("{SET_UP}{CHANGE_ROOT}{WAIT}");
        let mut unshare = Invocation::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c"])
            .args([&script, "sh"])
            .arg(dir.join(""))
            .arg(match engines {
                Engines::Installed => Path::new(""),
                Engines::Newer(root) => root,
            });
        if *engines != Engines::Installed {
            let bin = product().bin.parent().unwrap();
            unshare = unshare.args([dir, Path::new("/tmp"), bin, &product().lib]);
        }
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
    fs::write(dir.join("config.toml"), driver.config()).unwrap();
    let path = dir.join("bulkhead");
    let root = root.map(|root| format!("--root {} ", root.display()));
    let script = format!(
        "#!/bin/sh\nexport BULKHEAD_LIB={} BULKHEAD_CONFIG_DIR={}\nexec {} {}\"$@\"\n",
        driver.lib().display(),
        dir.display(),
        product().bin.display(),
        root.unwrap_or_default(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
