//! OCI bundles, and `run` in runc's form.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::container::Container;
use super::invocation::{Invocation, Output};
use super::rootfs;
use super::test::Test;

/// A bundle to be run: `run --bundle DIR ID`.
#[derive(Debug)]
pub struct Bundle<'t> {
    test: &'t Test,
    /// Its directory.
    pub dir: PathBuf,
    /// The container it is going to be.
    pub id: String,
}

impl<'t> Bundle<'t> {
    /// Writes a bundle with its own root file system.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn new(test: &'t Test, config: &Value) -> Self {
        let dir = test.new_dir();
        rootfs::make(&dir.join("rootfs"));
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        Self {
            test,
            dir,
            id: test.new_id(),
        }
    }

    /// Its root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The command that runs it; `--bundle` is left out when `dir` is none.
    #[must_use]
    fn command(&self, dir: Option<&Path>) -> Invocation {
        let mut command = self.test.verb(["run"]);
        if !self.test.driver.is_peer() {
            command = command.args(["--hypervisor", self.test.driver.hypervisor()]);
        }
        if let Some(dir) = dir {
            command = command.arg("--bundle").arg(dir);
        }
        command.arg(&self.id)
    }

    /// The command that runs it.
    #[must_use]
    pub fn invocation(&self) -> Invocation {
        self.command(Some(&self.dir))
    }

    /// The command that runs it as the bundle in the current directory.
    #[must_use]
    pub fn invocation_here(&self) -> Invocation {
        self.command(None).dir(&self.dir)
    }

    /// Runs it to its end.
    #[must_use]
    pub fn output(&self) -> Output {
        self.invocation().output()
    }

    /// Starts it and leaves it running; its input is the test's to write.
    #[must_use]
    pub fn start(&self) -> Container<'t> {
        let running = self.invocation().stdin_pipe().spawn();
        Container::new(self.test, self.id.clone(), running)
    }
}

/// A configuration such as `runc spec` makes, which runs `/bin/true`.
#[must_use]
pub fn default_config() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/true"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs" },
        "hostname": "box",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" },
            ],
        },
    })
}

/// One entry of `mounts`.
#[must_use]
pub fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

/// Adds an entry to a list of a configuration, which is made if it is not there.
///
/// # Panics
/// When something else is at the pointer.
pub fn push(config: &mut Value, pointer: &str, entry: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).expect("a parent");
    let list = &mut parent[name];
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().expect("a list").push(entry);
}
