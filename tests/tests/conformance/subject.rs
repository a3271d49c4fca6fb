//! One runtime with a place of its own, to be asked whether it meets a requirement.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bulkhead_tests::harness::bundle::push;
use bulkhead_tests::harness::driver::{Driver, in_path};
use bulkhead_tests::{Bundle, Created, Output, Test};
use serde_json::{Value, json};

use crate::requirement::Kind;

/// A runtime and a test's own place for it.
#[derive(Debug)]
pub struct Subject {
    test: Test,
}

impl Subject {
    /// A place for a runtime; the reason where it is not to be had.
    pub fn new(kind: Kind, name: &str) -> Result<Self, String> {
        let installed = |name: &str| in_path(name).ok_or(format!("{name} is not installed"));
        let driver = match kind {
            Kind::Runc => Driver::Peer(installed("runc")?),
            Kind::Crun => Driver::Peer(installed("crun")?),
            Kind::Bulkhead => match std::env::var("BULKHEAD_TEST_HYPERVISOR").as_deref() {
                Ok("peer") => return Err("restricted to the peers".into()),
                Ok(named @ ("qemu" | "kvm")) => Driver::named(named)?,
                _ => Driver::named("uml")?,
            },
        };
        let mut test = Test::new(driver, name);
        match &test.driver {
            Driver::Peer(path) if kind == Kind::Crun => {
                test.driver = Driver::Peer(without_unified(&test, path));
            }
            Driver::Peer(_) => {}
            own => {
                let config = test.config_dir().join("config.toml");
                fs::write(config, own.config()).unwrap();
            }
        }
        Ok(Self { test })
    }

    /// Makes sure that nothing is left.
    pub fn finish(self) {
        self.test.finish();
    }

    /// Runs a script as a bundle's process to its end, by `run`.
    pub fn ran(&self, script: &str, change: impl FnOnce(&mut Value)) -> Output {
        let bundle = self.test.bundle_sh(script, change);
        self.test
            .verb(["run", "--bundle"])
            .arg(&bundle.dir)
            .arg(&bundle.id)
            .output()
    }

    /// Creates a container with a script as its process.
    pub fn created(&self, script: &str, change: impl FnOnce(&mut Value)) -> Created<'_> {
        Created::new(&self.test, self.test.bundle_sh(script, change), |it| it)
    }

    /// A container whose process has said `ready` and waits for a line, which it is never given.
    pub fn running(&self, change: impl FnOnce(&mut Value)) -> Created<'_> {
        self.running_script("echo ready; read line", change)
    }

    /// A container whose script has said `ready`; its input is the test's to write.
    pub fn running_script(&self, script: &str, change: impl FnOnce(&mut Value)) -> Created<'_> {
        let bundle = self.test.bundle_sh(script, change);
        let mut container = Created::new(&self.test, bundle, |it| it.stdin_pipe());
        container.start();
        container.line_is("ready");
        container
    }

    /// A container whose process has ended with 3 and was waited for.
    pub fn stopped(&self) -> Created<'_> {
        let mut container = self.created("exit 3", |_| {});
        container.start();
        container.wait();
        container
    }

    /// Asserts that a bundle is refused by `create`, or, where the runtime looks at it late, by `start`,
    /// and that there is no such container then. Returns what was said.
    #[track_caller]
    pub fn refused(&self, change: impl FnOnce(&mut Value)) -> String {
        let bundle = self.test.bundle_sh("echo unreached", change);
        self.refused_bundle(&bundle, &[])
    }

    /// The same of a bundle, with options.
    #[track_caller]
    pub fn refused_bundle(&self, bundle: &Bundle<'_>, options: &[&str]) -> String {
        let create = self.test.verb(["create"]).args(options).arg("--bundle");
        let mut create = create.arg(&bundle.dir).arg(&bundle.id).spawn();
        if create.exited().success() {
            let _ = self.test.verb(["delete", "--force", &bundle.id]).output();
            panic!("created: {}", create.finish());
        }
        let output = create.finish();
        assert!(!output.stderr.is_empty(), "nothing is said: {output}");
        self.assert_missing(&bundle.id);
        output.error()
    }

    /// Asserts that there is no container of a name.
    #[track_caller]
    pub fn assert_missing(&self, id: &str) {
        let state = self.test.verb(["state", id]).output();
        assert_ne!(state.code(), 0, "it is there: {state}");
    }

    /// Asserts that an operation failed and said something.
    #[track_caller]
    pub fn assert_error(&self, output: &Output) {
        assert_ne!(output.code(), 0, "no failure: {output}");
        assert!(!output.stderr.is_empty(), "nothing is said: {output}");
    }

    /// The mount options of a mount point, as the container's `/proc/self/mountinfo` has them: those of
    /// the mount, then those of the file system.
    #[track_caller]
    pub fn mount_options(&self, entry: Value) -> Vec<String> {
        let destination = entry["destination"].as_str().unwrap().to_owned();
        let output = self.ran("cat /proc/self/mountinfo", |config| {
            push(config, "/mounts", entry);
        });
        mount_options(output.text(), &destination)
    }
}

impl Deref for Subject {
    type Target = Test;

    fn deref(&self) -> &Test {
        &self.test
    }
}

/// The options of the last mount at a place.
#[track_caller]
pub fn mount_options(mountinfo: &str, place: &str) -> Vec<String> {
    let fields = |line: &&str| line.split(' ').nth(4) == Some(place);
    let line = mountinfo.lines().rfind(fields);
    let line = line.unwrap_or_else(|| panic!("{place} is no mount: {mountinfo}"));
    let (left, right) = line.split_once(" - ").unwrap();
    let own = left.split(' ').nth(5).unwrap();
    let fs = right.split(' ').nth(2).unwrap();
    let all = own.split(',').chain(fs.split(','));
    all.map(str::to_owned).collect()
}

/// A value of a line `NAME:\tVALUE`, as `/proc/PID/status` has them.
#[track_caller]
pub fn status<'a>(text: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    let value = text.lines().find_map(value);
    value.unwrap_or_else(|| panic!("no {name}: {text}")).trim()
}

/// Removes an entry of `linux.namespaces`.
pub fn without_namespace(config: &mut Value, kind: &str) {
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != kind);
}

/// Sets the path of an entry of `linux.namespaces`.
pub fn namespace_path(config: &mut Value, kind: &str, path: &str) {
    without_namespace(config, kind);
    let entry = json!({ "type": kind, "path": path });
    push(config, "/linux/namespaces", entry);
}

/// crun refuses a host that has cgroup v1 and v2 side by side, unless it does not see v2. What it makes
/// where v2 was goes with the test's directory.
fn without_unified(test: &Test, crun: &std::path::Path) -> PathBuf {
    let (crun, instead) = (crun.display(), test.new_dir());
    let instead = instead.display();
    let script = format!(
        "#!/bin/sh\n\
         [ -d /sys/fs/cgroup/unified ] || exec {crun} \"$@\"\n\
         exec unshare --mount --propagation slave sh -c '\
         umount /sys/fs/cgroup/unified; mount --bind {instead} /sys/fs/cgroup/unified; \
         exec {crun} \"$@\"' sh \"$@\"\n"
    );
    let path = test.dir().join("crun");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
