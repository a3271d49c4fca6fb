//! A systemd of a test's own, with a system bus: process 1 of its own namespaces, in the root file system
//! of the newer engines, on the control groups of version 1 below one group of ours.

use std::fs;
use std::path::{Path, PathBuf};

use super::engines::Engines;
use super::ground;
use super::invocation::{Invocation, Output};
use super::product::product;
use super::running::Running;
use super::test::Test;
use super::wait;

/// Enters the group `$group` of every hierarchy and starts the rest in namespaces of its own.
const OUTSIDE: &str = r#"set -e; dir=$1 group=$3 inside=$4
for hierarchy in /sys/fs/cgroup/*/cgroup.procs; do
  hierarchy=${hierarchy%/cgroup.procs}
  [ "$hierarchy" != /sys/fs/cgroup/unified ] || continue
  mkdir "$hierarchy/$group"
  for file in cpuset.cpus cpuset.mems; do
    [ ! -e "$hierarchy/$file" ] || cat "$hierarchy/$file" >"$hierarchy/$group/$file"
  done
  echo 0 >"$hierarchy/$group/cgroup.procs"
done
mkfifo "$dir/ready"
cat "$dir/ready" &
unshare --cgroup --pid --fork --kill-child --mount --net --ipc --uts --propagation private \
  sh -c "$inside" sh "$@" &
set +e
read line
kill -9 $!
wait
"#;

/// Makes `$root` the root, with units that start the bus and nothing else, and becomes systemd.
const INSIDE: &str = r#"set -e; dir=$1 root=$2; shift 4
mount -t tmpfs layers /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
hierarchies=$(cd /sys/fs/cgroup; echo *)
cd /mnt/root
mkdir -p mnt
for place in /dev /sys "$@"; do
  mkdir -p ".$place"
  mount --rbind "$place" ".$place"
done
mount -t proc proc proc
mount -t tmpfs -o mode=755 run run
mkdir run/dbus
umount --recursive sys/fs/cgroup
mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
for name in $hierarchies; do
  mkdir "sys/fs/cgroup/$name"
  case $name in
    unified) rmdir sys/fs/cgroup/unified ;;
    systemd) mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd ;;
    *) mount -t cgroup -o "$name" cgroup "sys/fs/cgroup/$name" ;;
  esac
done
>run/console
mount --bind run/console dev/console
mkdir -p etc/systemd/system
cat >etc/systemd/system/tests.target <<END
[Unit]
DefaultDependencies=no
Requires=dbus.service ready.service
END
cat >etc/systemd/system/dbus.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat >etc/systemd/system/dbus.service <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation
END
cat >etc/systemd/system/ready.service <<END
[Unit]
DefaultDependencies=no
After=dbus.service
[Service]
ExecStart=/bin/sh -c 'busctl get-property org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager Version && echo ready >$dir/ready'
END
pivot_root . mnt
umount -l /mnt
exec env -i container=tests PATH=/usr/sbin:/usr/bin SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 \
  SYSTEMD_PROC_CMDLINE="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1" \
  /usr/lib/systemd/systemd --system --unit=tests.target
"#;

/// It, as long as this lives.
#[derive(Debug)]
pub struct Systemd {
    /// Ends it when this process ends.
    holder: Running,
    /// Process 1, as this machine numbers it.
    pid: u32,
    runtime: PathBuf,
    group: String,
}

impl Systemd {
    /// Starts it.
    ///
    /// # Errors
    /// Why this machine has none.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(test: &Test) -> Result<Self, String> {
        let Engines::Newer(root) = Engines::newer()? else {
            unreachable!("newer engines are not the installed ones");
        };
        if !Path::new("/sys/fs/cgroup/systemd/cgroup.procs").exists() {
            return Err("this host has no hierarchy name=systemd of version 1".into());
        }
        let runtime = ground::runtime(&test.driver, test.dir(), None);
        let group = format!("bulkhead-systemd-{}", test.new_id());
        let mut holder = Invocation::new("sh")
            .args(["-c", OUTSIDE, "sh"])
            .args([test.dir(), &root])
            .args([&group, INSIDE])
            .args([test.dir(), product().bin.parent().unwrap(), &product().lib])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin_pipe()
            .spawn();
        holder.line_is("ready");
        let scope = Path::new("/sys/fs/cgroup/systemd").join(&group);
        let list = fs::read_to_string(scope.join("init.scope/cgroup.procs")).unwrap();
        let pid = list.lines().next().expect("it runs").parse().unwrap();
        Ok(Self {
            holder,
            pid,
            runtime,
            group,
        })
    }

    /// A command in there.
    #[must_use]
    pub fn command<A: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        Invocation::new("nsenter")
            .arg(format!("--target={}", self.pid))
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
            ])
            .args(args)
            .env("PATH", "/usr/sbin:/usr/bin")
    }

    /// The runtime under test: `runtime --systemd-cgroup --root ROOT ARGS…`.
    #[must_use]
    pub fn runtime(&self, test: &Test, args: &[&str]) -> Output {
        // The container keeps the streams it is created with.
        let script = r#""$@" >/dev/null 2>"$0"; code=$?; cat "$0" >&2; exit $code"#;
        let errors = test.dir().join("errors");
        self.command(["sh", "-c", script])
            .args([&errors, &self.runtime])
            .args(["--systemd-cgroup", "--root"])
            .arg(test.root())
            .args(args)
            .output()
    }

    /// The runtime under test, as an executable.
    #[must_use]
    pub fn executable(&self) -> &Path {
        &self.runtime
    }

    /// Starts a daemon that says when it is ready, as a service.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn serve(&self, name: &str, command: &[&str]) {
        // Whatever else it might want is not there.
        let properties = ["DefaultDependencies=no", "Type=notify", "Delegate=yes"];
        self.command(["systemd-run", "--quiet", "--unit", name])
            .args(properties.map(|property| format!("--property={property}")))
            .args(command)
            .output()
            .expect_code(0);
    }

    /// A property of a unit.
    #[must_use]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let show = ["systemctl", "show", "--value", "--property", name, unit];
        self.command(show).output().text().to_owned()
    }

    /// A file of the control group of a scope in a slice.
    #[must_use]
    pub fn file(&self, controller: &str, path: &str) -> String {
        let path = format!("/sys/fs/cgroup/{controller}/{path}");
        self.command(["cat", &path]).output().text().to_owned()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.holder.close_stdin();
        let _ = self.holder.exited();
        wait::gone(self.pid);
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            remove(&hierarchy.path().join(&self.group));
        }
    }
}

/// Removes a control group with those below it.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // What is left shows in the next inventory.
    let _ = fs::remove_dir(group);
}
