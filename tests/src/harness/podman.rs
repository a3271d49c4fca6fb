//! Podman with a place of its own: storage, state, network, and the runtime under test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::engines::Engines;
use super::ground::{self, Ground};
use super::inventory;
use super::invocation::{Invocation, Output};
use super::rootfs;
use super::test::Test;
use super::wait;

/// The image that tests run: busybox, with `/bin/sh` as its command.
pub const IMAGE: &str = "localhost/box:v1";

/// A Podman of a test's own.
#[derive(Debug)]
pub struct Podman<'t> {
    /// The test it belongs to.
    pub test: &'t Test,
    ground: Ground,
    dir: PathBuf,
    runtime: PathBuf,
    /// The parent of its containers' control groups.
    group: String,
}

impl<'t> Podman<'t> {
    /// What has to be installed.
    pub const PROGRAMS: [&'static str; 2] = ["podman", "conmon"];

    /// One of these engines, with one image.
    ///
    /// # Panics
    /// When it cannot be had.
    #[must_use]
    pub fn new(test: &'t Test, engines: &Engines) -> Self {
        let dir = test.dir().join("p");
        fs::create_dir(&dir).unwrap();
        let runtime = ground::runtime(&test.driver, &dir, Some(&test.root()));
        let podman = Self {
            test,
            ground: Ground::new(&dir, engines),
            runtime,
            dir,
            group: format!("bulkhead-podman-{}", test.new_id()),
        };
        podman.configure();
        podman.import();
        podman
    }

    fn configure(&self) {
        let name = self.runtime.file_name().unwrap().to_str().unwrap();
        // No more open files and processes than a machine's administrator may allow root.
        let config = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n\
             apparmor_profile = \"\"\n\
             [network]\n\
             network_config_dir = \"{networks}\"\n\
             [engine]\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n\
             lock_type = \"file\"\n\
             runtime_supports_json = [\"crun\", \"runc\", \"bulkhead\"]\n\
             [engine.runtimes]\n\
             {name} = [{path:?}]\n",
            networks = self.dir.join("networks").display(),
            path = self.runtime,
        );
        fs::write(self.dir.join("containers.conf"), config).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            self.dir.join("root"),
            self.dir.join("run"),
        );
        fs::write(self.dir.join("storage.conf"), storage).unwrap();
        let policy = json!({ "default": [{ "type": "insecureAcceptAnything" }] });
        let containers = self.ground.home().join(".config/containers");
        fs::create_dir_all(&containers).unwrap();
        fs::write(containers.join("policy.json"), policy.to_string()).unwrap();
    }

    /// Makes the image of a root file system.
    fn import(&self) {
        let archive = self.dir.join("box.tar");
        fs::write(&archive, rootfs::archive()).unwrap();
        let changes = ["CMD [\"/bin/sh\"]", "ENV PATH=/bin:/sbin"];
        let import = self.command(["import", "--quiet"]);
        let import = changes
            .iter()
            .fold(import, |it, change| it.args(["--change", change]));
        import.arg(&archive).arg(IMAGE).output().expect_code(0);
    }

    /// `podman ARGS…`.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        let place = |name: &str| self.dir.join(name);
        self.ground
            .command("podman")
            .env("CONTAINERS_CONF", place("containers.conf"))
            // Podman 5 says on standard error that they are deprecated.
            .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
            .env("CONTAINERS_STORAGE_CONF", place("storage.conf"))
            .arg("--root")
            .arg(place("root"))
            .arg("--runroot")
            .arg(place("run"))
            .arg("--tmpdir")
            .arg(place("tmp"))
            .args(["--storage-driver", "overlay", "--runtime"])
            .arg(&self.runtime)
            .args(args)
    }

    /// `buildah ARGS…` with the same storage.
    #[must_use]
    pub fn buildah(&self, args: &[&str]) -> Output {
        let place = |name: &str| self.dir.join(name);
        let buildah = self
            .ground
            .command("buildah")
            .env("CONTAINERS_CONF", place("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", place("storage.conf"))
            .env("BUILDAH_ISOLATION", "oci")
            .env("BUILDAH_RUNTIME", &self.runtime);
        let buildah = buildah.args(["--storage-driver", "overlay", "--root"]);
        let buildah = buildah.arg(place("root")).arg("--runroot");
        buildah.arg(place("run")).args(args).output()
    }

    /// `podman ARGS…`, run to its end.
    #[must_use]
    pub fn podman(&self, args: &[&str]) -> Output {
        self.command(args).output()
    }

    /// `podman run OPTIONS… IMAGE sh -c SCRIPT`, not yet run; without a network unless the options say so.
    #[must_use]
    pub fn run(&self, options: &[&str], script: &str) -> Invocation {
        let network = (!options.contains(&"--network")).then_some("--network=none");
        self.command(["run"])
            .args(network)
            .arg(format!("--cgroup-parent=/{}", self.group))
            .args(options)
            .args([IMAGE, "sh", "-c", script])
    }

    /// The same with `--rm`, run to its end.
    #[must_use]
    pub fn ran(&self, options: &[&str], script: &str) -> Output {
        self.run(&[&["--rm"], options].concat(), script).output()
    }

    /// Starts a script in the background; its container's name.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    #[must_use]
    pub fn detached(&self, options: &[&str], script: &str) -> String {
        let name = self.test.new_id();
        let all = [&["--detach", "--name", &name], options].concat();
        self.run(&all, script).output().expect_code(0);
        name
    }

    /// `podman inspect NAME`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn inspect(&self, name: &str) -> Value {
        let list = self.podman(&["inspect", name]).json();
        list[0].clone()
    }

    /// A directory for a test's own files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The ground it stands on.
    #[must_use]
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Removes all containers and pods, and asserts that nothing is left of them.
    ///
    /// # Panics
    /// When something is.
    pub fn finish(self) {
        self.clean().expect_code(0);
        // What Podman lets go on in the background: its monitors and their last calls.
        let all = inventory::processes_of(&self.dir).into_iter();
        all.filter(|pid| *pid != self.ground.pid())
            .for_each(wait::gone);
        let left = self.test.containers();
        assert!(left.is_empty(), "Podman has removed them: {left:?}");
        let left = inventory::control_groups(&self.group);
        assert!(left.is_empty(), "control groups are left: {left:?}");
    }

    fn clean(&self) -> Output {
        let pods = self.podman(&["pod", "rm", "--all", "--force", "--time", "0"]);
        if !pods.status.success() {
            return pods;
        }
        self.podman(&["rm", "--all", "--force", "--time", "0"])
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let all = self.podman(&["ps", "--all"]);
            println!("{all}");
            for pid in inventory::processes_of(self.test.dir()) {
                println!("process {}", inventory::describe(pid));
            }
            self.test.tell();
            let _ = self.clean();
            inventory::kill_all_of(&self.dir);
            inventory::remove_control_groups(&self.group);
        }
    }
}
