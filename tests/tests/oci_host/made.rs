//! Containers made by `create`, as an engine makes them.

use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_tests::harness::bundle::Bundle;
use bulkhead_tests::{Invocation, Output, Test, wait};
use serde_json::{Value, json};

/// A container that was created, or could not be. Removed by force when dropped.
#[derive(Debug)]
pub struct Made<'t> {
    test: &'t Test,
    /// Its name.
    pub id: String,
    /// Its bundle's directory.
    pub dir: PathBuf,
}

impl<'t> Made<'t> {
    /// What is to be created of a bundle.
    pub fn of(test: &'t Test, bundle: &Bundle<'t>) -> Self {
        if !test.driver.is_peer() {
            // `create` has no option for it.
            let config = test.driver.config();
            fs::write(test.config_dir().join("config.toml"), config).unwrap();
        }
        Self {
            test,
            id: bundle.id.clone(),
            dir: bundle.dir.clone(),
        }
    }

    /// `create`; what it says is in the output, what the container says is not.
    pub fn try_create(&self) -> Output {
        self.creation().output()
    }

    /// The command for [`Self::try_create`].
    pub fn creation(&self) -> Invocation {
        let said = self.dir.join("said");
        let create = self.test.verb(["create"]);
        let create = create.arg("--bundle").arg(&self.dir).arg(&self.id);
        // The container keeps the streams, and a pipe would not end.
        let script = format!(
            "exec 3>&2; \"$@\" </dev/null >{0} 2>&1 3>&-; code=$?; cat {0} >&3; exit $code",
            said.display()
        );
        create.in_shell(&script)
    }

    /// `create`, which succeeds.
    #[track_caller]
    pub fn create(self) -> Self {
        self.try_create().expect_code(0);
        self
    }

    /// `start`, which succeeds.
    #[track_caller]
    pub fn start(self) -> Self {
        self.verb("start", &[]).expect_code(0);
        self
    }

    /// `VERB ID ARGS…`, run to its end.
    pub fn verb(&self, verb: &str, args: &[&str]) -> Output {
        self.test.verb([verb, &self.id]).args(args).output()
    }

    /// `VERB OPTIONS… ID`, run to its end.
    pub fn with(&self, verb: &str, options: &[&str]) -> Output {
        self.test.verb([verb]).args(options).arg(&self.id).output()
    }

    /// `exec ID sh -c SCRIPT`: its output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let exec = self.test.verb(["exec", &self.id, "/bin/sh", "-c", script]);
        exec.output().text().to_owned()
    }

    /// `state`.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.verb("state", &[]).json()
    }

    /// The PID an engine is told.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let pid = self.state()["pid"].as_u64().filter(|pid| *pid > 0);
        u32::try_from(pid.expect("it runs")).unwrap()
    }

    /// `kill ID SIGNAL`, and waits until that has ended the process the engine was told of.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        let pid = self.pid();
        self.verb("kill", &[signal]).expect_code(0);
        wait::gone(pid);
    }

    /// `delete --force`.
    #[track_caller]
    pub fn delete(&self) {
        self.with("delete", &["--force"]).expect_code(0);
    }

    /// A file the container or a hook writes to its bundle.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        let path = self.dir.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// runc leaves the groups above a container's.
    fn remove_parents(&self) {
        let config = fs::read(self.dir.join("config.json")).unwrap_or_default();
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let path = config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let parents = Path::new(path.trim_start_matches('/')).ancestors().skip(1);
            for parent in parents.filter(|parent| !parent.as_os_str().is_empty()) {
                let _ = fs::remove_dir(hierarchy.path().join(parent));
            }
        }
    }

    /// Whether there is a file of that name in the bundle.
    pub fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.test.tell();
        }
        let _ = self.with("delete", &["--force"]);
        if self.test.driver.is_peer() {
            self.remove_parents();
        }
    }
}

/// A hook that runs a script of the host's shell, with the bundle's directory as `$DIR`.
pub fn hook(dir: &Path, script: &str) -> Value {
    json!({
        "path": "/bin/sh",
        "args": ["sh", "-c", script],
        "env": [format!("DIR={}", dir.display()), "PATH=/bin:/usr/bin"],
    })
}

/// Writes hooks into a bundle's configuration.
pub fn set_hooks(bundle: &Bundle<'_>, hooks: &Value) {
    change(bundle, |config| config["hooks"] = hooks.clone());
}

/// Makes a bundle's container share namespaces with the one whose process an engine knows as `pid`, and
/// with that its machine.
pub fn join(bundle: &Bundle<'_>, pid: u32) {
    change(bundle, |config| {
        let all = config["linux"]["namespaces"].as_array_mut().unwrap();
        for (kind, file) in [("ipc", "ipc"), ("uts", "uts"), ("network", "net")] {
            let joined = all.iter_mut().find(|entry| entry["type"] == kind);
            joined.unwrap()["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
        config.as_object_mut().unwrap().remove("hostname");
    });
}

/// Changes a bundle's configuration.
pub fn change(bundle: &Bundle<'_>, change: impl FnOnce(&mut Value)) {
    let path = bundle.dir.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}
