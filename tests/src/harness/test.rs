//! One test's own place: its state directory, its files, its containers.

use std::cell::{Cell, OnceCell};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::bundle::{self, Bundle};
use super::driver::Driver;
use super::inventory;
use super::invocation::Invocation;
use super::product::product;
use super::rootfs;
use super::run::Run;

/// Where a test runs and what it has. Tests do not share anything, so they may run side by side.
#[derive(Debug)]
pub struct Test {
    /// What its containers run on.
    pub driver: Driver,
    /// Its name, for messages.
    pub name: String,
    dir: TempDir,
    rootfs: OnceCell<PathBuf>,
    directories: Cell<u32>,
}

impl Test {
    /// An own place for a test.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(driver: Driver, name: &str) -> Self {
        static SUBREAPER: Once = Once::new();
        // What a killed process leaves behind becomes our child, so that it can be found.
        SUBREAPER.call_once(|| {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        });
        // Short: it becomes part of socket addresses.
        let dir = tempfile::Builder::new().prefix("bh-").tempdir().unwrap();
        // As /run is: the state directory decides itself who may look into it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let settings = driver.settings();
        if !settings.is_empty() {
            fs::write(dir.path().join("etc/config.toml"), settings).unwrap();
        }
        Self {
            driver,
            name: name.to_owned(),
            dir,
            rootfs: OnceCell::new(),
            directories: Cell::new(0),
        }
    }

    /// A directory of the test's own, for whatever it needs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The state directory (`--root`); it does not exist before the first container.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir().join("r")
    }

    /// The directory of `config.toml`: empty, so that the machine's own does not matter.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.dir().join("etc")
    }

    /// A new directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new_dir(&self) -> PathBuf {
        let number = self.directories.get() + 1;
        self.directories.set(number);
        let dir = self.dir().join(format!("d{number}"));
        fs::create_dir(&dir).unwrap();
        dir
    }

    /// The root file system of the test's containers, its own copy.
    #[must_use]
    pub fn rootfs(&self) -> &Path {
        self.rootfs.get_or_init(|| self.new_rootfs())
    }

    /// A further root file system.
    #[must_use]
    pub fn new_rootfs(&self) -> PathBuf {
        let dir = self.new_dir();
        rootfs::make(&dir);
        dir
    }

    /// A name no container on this machine has.
    #[must_use]
    pub fn new_id(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("t{}-{number}", std::process::id())
    }

    /// `bulkhead --root ROOT ARGS…`, or the peer's same command.
    #[must_use]
    pub fn verb<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        let program = match &self.driver {
            Driver::Peer(path) => path.clone(),
            Driver::Uml | Driver::Qemu | Driver::Kvm(_) => product().bin.clone(),
        };
        let mut invocation = Invocation::new(program);
        if !self.driver.is_peer() {
            invocation = invocation
                .env("BULKHEAD_LIB", self.driver.lib())
                .env("BULKHEAD_CONFIG_DIR", self.config_dir());
        }
        invocation.arg("--root").arg(self.root()).args(args)
    }

    /// `bulkhead run --rm --rootfs ROOTFS -- COMMAND…` on the test's hypervisor; see [`Run`] for what
    /// can be changed of it.
    #[must_use]
    pub fn run<A: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = A>) -> Run<'_> {
        Run::new(self, command)
    }

    /// The same with a shell script as command.
    #[must_use]
    pub fn sh(&self, script: &str) -> Run<'_> {
        self.run(["/bin/sh", "-c", script])
    }

    /// A bundle whose `config.json` is the default one after `change`.
    #[must_use]
    pub fn bundle(&self, change: impl FnOnce(&mut Value)) -> Bundle<'_> {
        let mut config = bundle::default_config();
        change(&mut config);
        Bundle::new(self, &config)
    }

    /// The same with a shell script as process.
    #[must_use]
    pub fn bundle_sh(&self, script: &str, change: impl FnOnce(&mut Value)) -> Bundle<'_> {
        self.bundle(|config| {
            config["process"]["args"] = serde_json::json!(["/bin/sh", "-c", script]);
            change(config);
        })
    }

    /// The names of the test's containers; none for a peer, whose `run` leaves none.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root()) else {
            return Vec::new();
        };
        let names = entries.flatten().filter(|entry| entry.path().is_dir());
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect()
    }

    /// Prints what is known of the test's containers, for whoever reads a failure.
    pub fn tell(&self) {
        if self.driver.is_peer() {
            return;
        }
        for id in self.containers() {
            for args in [["why", &id], ["logs", &id]] {
                println!("{}", self.verb(args).output());
            }
            let log = fs::read_to_string(self.root().join(&id).join("sandbox.log"));
            println!("--- sandbox.log of {id}\n{}", log.unwrap_or_default());
        }
        let records = fs::read_dir(self.root().join(".failures"));
        for record in records.into_iter().flatten().flatten() {
            let text = fs::read_to_string(record.path()).unwrap_or_default();
            println!("--- {}\n{text}", record.path().display());
        }
    }

    /// Removes the containers the test left.
    fn remove_containers(&self) {
        for id in self.containers() {
            // What it could not do shows in the inventory.
            let _ = self.verb(["delete", "--force", &id]).output();
        }
    }

    /// Ends a test that passed: removes its containers and makes sure that nothing is left of them.
    ///
    /// # Panics
    /// When something is.
    pub fn finish(self) {
        self.remove_containers();
        let left = inventory::traces_of(&self);
        assert!(left.is_empty(), "left by {}: {left:#?}", self.name);
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return inventory::kill_all_of(self.dir());
        }
        self.remove_containers();
        inventory::kill_all_of(self.dir());
    }
}
