//! Podman and Docker with their systemd managers, the newer ones: those of the root file system that
//! systemd runs in.

use std::fs;

use bulkhead_tests::harness::rootfs;
use bulkhead_tests::harness::systemd::Systemd;
use bulkhead_tests::{Output, Test};
use serde_json::json;

/// The image that tests run: busybox.
const IMAGE: &str = "localhost/box:v1";

/// An engine with its files in the test's directory.
#[derive(Debug)]
pub struct Engine<'s> {
    systemd: &'s Systemd,
    /// Program and options, up to the verb.
    command: Vec<String>,
    /// Options that choose the runtime under test for a container.
    chosen: &'static [&'static str],
    /// What its scopes are called, up to the container's name.
    pub scope: &'static str,
    /// Where its scopes are.
    pub slice: &'static str,
}

impl<'s> Engine<'s> {
    /// Podman.
    pub fn podman(test: &Test, systemd: &'s Systemd) -> Self {
        let place = |name: &str| test.dir().join(name).display().to_string();
        // No more open files and processes than a machine's administrator may allow root.
        let config = "[containers]\n\
             default_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n\
             apparmor_profile = \"\"\n\
             [engine]\n\
             events_logger = \"file\"\n\
             lock_type = \"file\"\n";
        fs::write(place("containers.conf"), config).unwrap();
        let policy = json!({ "default": [{ "type": "insecureAcceptAnything" }] });
        let containers = test.dir().join(".config/containers");
        fs::create_dir_all(&containers).unwrap();
        fs::write(containers.join("policy.json"), policy.to_string()).unwrap();
        let command = [
            "env",
            &format!("HOME={}", test.dir().display()),
            &format!("CONTAINERS_CONF={}", place("containers.conf")),
            "PODMAN_IGNORE_CGROUPSV1_WARNING=1",
            "podman",
            "--cgroup-manager=systemd",
            "--storage-driver=overlay",
            &format!("--root={}", place("podman")),
            &format!("--runroot={}", place("podman-run")),
            &format!("--tmpdir={}", place("podman-tmp")),
            &format!("--runtime={}", systemd.executable().display()),
        ];
        let engine = Self {
            systemd,
            command: command.map(str::to_owned).into(),
            chosen: &[],
            scope: "libpod",
            slice: "machine.slice",
        };
        engine.import(test);
        engine
    }

    /// Docker: containerd and dockerd as systemd's services.
    pub fn docker(test: &Test, systemd: &'s Systemd) -> Self {
        let place = |name: &str| test.dir().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\noom_score = 0\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            place("containerd"),
            place("containerd-state"),
            place("c.sock"),
            place("c.sock.ttrpc"),
        );
        fs::write(place("containerd.toml"), config).unwrap();
        let config = json!({
            "runtimes": { "under-test": { "path": systemd.executable() } },
            "exec-opts": ["native.cgroupdriver=systemd"],
            "storage-driver": "overlay2",
            "data-root": place("docker"),
            "exec-root": place("docker-exec"),
            "pidfile": place("docker.pid"),
            "hosts": [format!("unix://{}", place("d.sock"))],
            "containerd": place("c.sock"),
            "default-ulimits": { "nofile": { "Name": "nofile", "Soft": 4096, "Hard": 20000 } },
        });
        fs::write(place("daemon.json"), config.to_string()).unwrap();
        let config = place("containerd.toml");
        systemd.serve("tests-containerd", &["containerd", "--config", &config]);
        let config = place("daemon.json");
        systemd.serve("tests-docker", &["dockerd", "--config-file", &config]);
        let host = format!("--host=unix://{}", place("d.sock"));
        let engine = Self {
            systemd,
            command: vec!["docker".into(), host],
            chosen: &["--runtime=under-test"],
            scope: "docker",
            slice: "system.slice",
        };
        engine.import(test);
        engine
    }

    fn import(&self, test: &Test) {
        let archive = test.dir().join("box.tar");
        fs::write(&archive, rootfs::archive()).unwrap();
        let (path, archive) = ("ENV PATH=/bin:/sbin", archive.display().to_string());
        self.succeeds(&["import", "--change", path, &archive, IMAGE]);
    }

    /// `ENGINE ARGS…`.
    pub fn run(&self, args: &[&str]) -> Output {
        self.systemd.command(&self.command).args(args).output()
    }

    /// The same with success expected; what it writes.
    #[track_caller]
    pub fn succeeds(&self, args: &[&str]) -> String {
        let output = self.run(args);
        output.expect_code(0);
        output.text().to_owned()
    }

    /// `ENGINE run OPTIONS… IMAGE sh -c SCRIPT`, with the runtime under test and without a network; what
    /// it writes.
    #[track_caller]
    pub fn runs(&self, options: &[&str], script: &str) -> String {
        let run = [&["run", "--network=none"], self.chosen, options].concat();
        self.succeeds(&[&run[..], &[IMAGE, "sh", "-c", script]].concat())
    }
}
