//! Docker with a place of its own: containerd and dockerd, started by hand and ended again.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::driver::Driver;
use super::engines::Engines;
use super::ground::{self, Ground};
use super::inventory;
use super::invocation::{Invocation, Output};
use super::rootfs;
use super::running::Running;
use super::test::Test;
use super::wait;

/// The image that tests run: busybox, with `/bin/sh` as its command.
pub const IMAGE: &str = "box:v1";

/// The parent of the containers' control groups.
const GROUP: &str = "bulkhead-docker";

/// containerd and dockerd, with one image and all runtimes there are.
#[derive(Debug)]
pub struct Daemons {
    containerd: Mutex<Option<Running>>,
    dockerd: Mutex<Option<Running>>,
    group: String,
    ground: Ground,
    dir: TempDir,
}

impl Daemons {
    /// What has to be installed.
    pub const PROGRAMS: [&'static str; 4] = ["containerd", "dockerd", "docker", "runc"];

    /// The daemons of these engines that all tests share that run at this moment; the last one ends them.
    ///
    /// # Panics
    /// When they cannot be started.
    #[must_use]
    pub fn shared(engines: &Engines) -> Arc<Self> {
        static INSTALLED: Mutex<Weak<Daemons>> = Mutex::new(Weak::new());
        static NEWER: Mutex<Weak<Daemons>> = Mutex::new(Weak::new());
        let shared = match engines {
            Engines::Installed => &INSTALLED,
            Engines::Newer(_) => &NEWER,
        };
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let daemons = Arc::new(Self::start(engines, &[]));
            *shared = Arc::downgrade(&daemons);
            daemons
        })
    }

    /// Daemons of a test's own, with options of dockerd's.
    ///
    /// # Panics
    /// When they cannot be started.
    #[must_use]
    pub fn start(engines: &Engines, options: &[&str]) -> Self {
        Self::start_with(engines, options, &[])
    }

    /// The same with further runtimes: the name of each and what dockerd's configuration says of it.
    ///
    /// # Panics
    /// When they cannot be started.
    #[must_use]
    pub fn start_with(engines: &Engines, options: &[&str], further: &[(&str, Value)]) -> Self {
        let dir = tempfile::Builder::new().prefix("bh-").tempdir().unwrap();
        let ground = Ground::new(dir.path(), engines);
        let daemons = Self {
            containerd: Mutex::new(None),
            dockerd: Mutex::new(None),
            group: format!("{GROUP}-{}", dir.path().file_name().unwrap().display()),
            ground,
            dir,
        };
        daemons.start_containerd();
        let mut runtimes = daemons.runtimes();
        for (name, runtime) in further {
            runtimes.insert((*name).to_owned(), runtime.clone());
        }
        let config = json!({ "runtimes": runtimes });
        fs::write(daemons.place("daemon.json"), config.to_string()).unwrap();
        daemons.start_dockerd(options);
        let archive = daemons.dir.path().join("box.tar");
        fs::write(&archive, rootfs::archive()).unwrap();
        let import = daemons.docker(["import", "--change", "CMD [\"/bin/sh\"]"]);
        let import = import
            .args(["--change", "ENV PATH=/bin:/sbin"])
            .arg(&archive);
        import.arg(IMAGE).output().expect_code(0);
        daemons
    }

    fn place(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A daemon that has said that it is ready.
    fn daemon(&self, name: &str, options: &[&str]) -> Running {
        let socket = self.dir.path().join(format!("{name}-ready"));
        let ready = UnixDatagram::bind(&socket).unwrap();
        // It may write more than anybody reads.
        let script = format!("exec \"$@\" >>{} 2>&1", self.place(&format!("{name}.log")));
        let command = self.ground.command(name).args(options).in_shell(&script);
        let mut running = command.env("NOTIFY_SOCKET", &socket).spawn();
        let until = Instant::now() + wait::limit();
        let mut message = [0; 4096];
        loop {
            if !wait::readable(ready.as_fd(), until) || !running.is_running() {
                let log = fs::read_to_string(self.place(&format!("{name}.log")));
                panic!("{name} did not start: {}", log.unwrap_or_default());
            }
            let count = ready.recv(&mut message).unwrap();
            if String::from_utf8_lossy(&message[..count]).contains("READY=1") {
                break;
            }
        }
        fs::remove_file(socket).unwrap();
        running
    }

    /// Starts containerd, which does not run.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_containerd(&self) {
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\noom_score = 0\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            self.place("containerd"),
            self.place("containerd-state"),
            self.place("c.sock"),
            self.place("c.sock.ttrpc"),
        );
        let file = self.place("containerd.toml");
        fs::write(&file, config).unwrap();
        let running = self.daemon("containerd", &["--config", &file]);
        *self.containerd.lock().unwrap() = Some(running);
    }

    /// Starts dockerd, which does not run.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_dockerd(&self, options: &[&str]) {
        let own = [
            "--config-file".to_owned(),
            self.place("daemon.json"),
            format!("--data-root={}", self.place("docker")),
            format!("--exec-root={}", self.place("docker-exec")),
            format!("--pidfile={}", self.place("dockerd.pid")),
            format!("--host={}", self.host()),
            format!("--containerd={}", self.place("c.sock")),
            format!("--cgroup-parent=/{}", self.group),
            "--storage-driver=overlay2".to_owned(),
            "--exec-opt=native.cgroupdriver=cgroupfs".to_owned(),
            // No more open files than a machine's administrator may allow root.
            "--default-ulimit=nofile=4096:20000".to_owned(),
        ];
        let own = own.iter().map(String::as_str);
        let options: Vec<&str> = own.chain(options.iter().copied()).collect();
        let running = self.daemon("dockerd", &options);
        *self.dockerd.lock().unwrap() = Some(running);
    }

    /// Ends dockerd in order.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop_dockerd(&self) {
        end(&self.dockerd, Signal::TERM);
    }

    /// Kills dockerd and containerd.
    ///
    /// # Panics
    /// When they do not end.
    pub fn kill(&self) {
        end(&self.dockerd, Signal::KILL);
        end(&self.containerd, Signal::KILL);
    }

    /// Every runtime there is, by the name of its driver; runc is Docker's own.
    fn runtimes(&self) -> serde_json::Map<String, Value> {
        let mut runtimes = serde_json::Map::new();
        for name in ["uml", "qemu", "kvm", "peer"] {
            let Ok(driver) = Driver::named(name) else {
                continue;
            };
            let path = ground::runtime(&driver, self.dir.path(), None);
            if !path.ends_with("runc") {
                runtimes.insert(runtime_name(&driver), json!({ "path": path }));
            }
        }
        runtimes
    }

    /// Where dockerd listens, as `DOCKER_HOST` has it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.place("d.sock"))
    }

    /// `docker ARGS…`.
    #[must_use]
    pub fn docker<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        self.ground
            .command("docker")
            .env("DOCKER_HOST", self.host())
            .args(args)
    }

    /// `docker-compose ARGS…`.
    #[must_use]
    pub fn compose<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        self.ground
            .command("docker-compose")
            .env("DOCKER_HOST", self.host())
            .args(args)
    }

    /// The ground they stand on.
    #[must_use]
    pub fn ground(&self) -> &Ground {
        &self.ground
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        let all = self.docker(["ps", "--all", "--quiet"]).output();
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        if !all.trim().is_empty() {
            let remove = self.docker(["rm", "--force", "--volumes"]);
            let _ = remove.args(all.split_whitespace()).output();
        }
        self.stop_dockerd();
        end(&self.containerd, Signal::TERM);
        let left = inventory::control_groups(&self.group);
        inventory::kill_all_of(self.dir.path());
        inventory::remove_control_groups(&self.group);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "control groups are left: {left:?}");
        }
    }
}

/// Ends a daemon, if it runs.
fn end(daemon: &Mutex<Option<Running>>, signal: Signal) {
    let running = daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(running) = running {
        running.signal(signal);
        let _ = running.finish();
    }
}

/// What a driver's runtime is called in the configuration.
fn runtime_name(driver: &Driver) -> String {
    match driver {
        Driver::Peer(path) => path.file_name().unwrap().display().to_string(),
        own => format!("bulkhead-{own}"),
    }
}

/// Docker as a test has it: containers of its own on daemons it may share.
#[derive(Debug)]
pub struct Docker<'t> {
    /// The test it belongs to.
    pub test: &'t Test,
    /// Where they run.
    pub daemons: Arc<Daemons>,
    label: String,
}

impl<'t> Docker<'t> {
    /// A test's view of daemons.
    #[must_use]
    pub fn new(test: &'t Test, daemons: Arc<Daemons>) -> Self {
        let label = format!("test={}", test.new_id());
        Self {
            test,
            daemons,
            label,
        }
    }

    /// `docker ARGS…`, run to its end.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> Output {
        self.daemons.docker(args).output()
    }

    /// `docker ARGS…`.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        self.daemons.docker(args)
    }

    /// The name the runtime under test has in the daemon's configuration.
    #[must_use]
    pub fn runtime(&self) -> String {
        runtime_name(&self.test.driver)
    }

    /// `docker VERB --runtime RUNTIME OPTIONS…`, where the verb is `run` or `create`.
    #[must_use]
    pub fn made_by(&self, verb: &str, options: &[&str]) -> Invocation {
        self.command([verb, "--runtime"])
            .args([&runtime_name(&self.test.driver), "--label", &self.label])
            .args(options)
    }

    /// `docker run OPTIONS… IMAGE sh -c SCRIPT`, without a network unless the options say so.
    #[must_use]
    pub fn run(&self, options: &[&str], script: &str) -> Invocation {
        let network = ["--network=none"];
        let own = !options.iter().any(|option| option.starts_with("--network"));
        self.made_by("run", options)
            .args(own.then_some(network).into_iter().flatten())
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

    /// `docker inspect NAME`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn inspect(&self, name: &str) -> Value {
        self.docker(&["inspect", name]).json()[0].clone()
    }

    /// Removes the test's containers.
    ///
    /// # Panics
    /// When one cannot be removed.
    pub fn finish(self) {
        let filter = format!("label={}", self.label);
        let all = self.docker(&["ps", "--all", "--quiet", "--filter", &filter]);
        let names: Vec<&str> = all.text().split_whitespace().collect();
        if !names.is_empty() {
            let remove = self.command(["rm", "--force", "--volumes"]).args(names);
            remove.output().expect_code(0);
        }
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.docker(&["ps", "--all"]));
            let log = self.daemons.place("dockerd.log");
            let log = fs::read_to_string(log).unwrap_or_default();
            let errors = log.lines().filter(|line| line.contains("level=error"));
            let errors: Vec<&str> = errors.collect();
            let last = errors.len().saturating_sub(10);
            println!(
                "--- the last errors in dockerd.log\n{}",
                errors[last..].join("\n")
            );
        }
    }
}
