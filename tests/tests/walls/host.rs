//! Processes of the host as `/proc` shows them.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_tests::Container;
use bulkhead_tests::harness::inventory;

/// The host's processes of one container.
#[derive(Debug)]
pub struct Machine {
    /// The sandbox process.
    pub sandbox: u32,
    /// The device process.
    pub device: u32,
    /// The first process of the hypervisor.
    pub hypervisor: u32,
}

/// What a jailed process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs the guest.
    Hypervisor,
    /// Serves its devices.
    Device,
}

impl Machine {
    /// The machine of a running container.
    pub fn of(container: &Container<'_>) -> Self {
        let sandbox = container.state()["pid"].as_u64().expect("a pid");
        let sandbox = u32::try_from(sandbox).unwrap();
        let all = inventory::tree(sandbox);
        let children: Vec<u32> = all
            .iter()
            .copied()
            .filter(|pid| parent(*pid) == sandbox)
            .collect();
        let (devices, hypervisors): (Vec<u32>, Vec<u32>) =
            children.iter().partition(|pid| is_device(**pid));
        let ([device], [hypervisor]) = (devices.as_slice(), hypervisors.as_slice()) else {
            panic!("not one device process {devices:?} and one hypervisor {hypervisors:?}");
        };
        Self {
            sandbox,
            device: *device,
            hypervisor: *hypervisor,
        }
    }

    /// The hypervisor with all its descendants.
    pub fn hypervisor_tree(&self) -> Vec<u32> {
        inventory::tree(self.hypervisor)
    }

    /// All jailed processes.
    pub fn jailed(&self) -> Vec<(Role, u32)> {
        let mut all: Vec<_> = self
            .hypervisor_tree()
            .into_iter()
            .map(|pid| (Role::Hypervisor, pid))
            .collect();
        all.extend(
            inventory::tree(self.device)
                .into_iter()
                .map(|pid| (Role::Device, pid)),
        );
        all
    }
}

fn is_device(pid: u32) -> bool {
    read(pid, "cmdline").split('\0').nth(1) == Some("device")
}

fn parent(pid: u32) -> u32 {
    let parent = field(&format!("/proc/{pid}/status"), "PPid");
    parent.map_or(0, |pid| pid.parse().unwrap())
}

/// A field of a file of `/proc`; `None` if the process has ended.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let prefix = format!("{name}:");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    Some(
        line.unwrap_or_else(|| panic!("no {name} in {file}"))
            .trim()
            .to_owned(),
    )
}

/// One thread.
pub struct Task {
    dir: String,
}

impl Task {
    /// A field of its `status`; `None` if it has ended.
    ///
    /// The processes of guest programs come and go: a test looks at those it meets.
    pub fn status(&self, name: &str) -> Option<String> {
        field(&format!("{}/status", self.dir), name)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.dir, self.status("Name"))
    }
}

/// The threads of a process.
pub fn tasks(pid: u32) -> Vec<Task> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let names = entries
        .flatten()
        .map(|entry| entry.path().display().to_string());
    names.map(|dir| Task { dir }).collect()
}

/// The identity of a process's namespace; `None` if it has ended.
pub fn namespace(pid: u32, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()
}

/// A file of a process's directory in `/proc` as text; empty if it has ended.
pub fn read(pid: u32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            let ended = inventory::tree(std::process::id())
                .iter()
                .all(|other| *other != pid);
            assert!(ended, "{path}: {error}");
            String::new()
        }
    }
}

/// A file's identity as `/proc/PID/maps` has it: device and inode.
pub type File = (String, u64);

/// All files a process has mapped.
pub fn maps(pid: u32) -> BTreeSet<File> {
    mappings(pid)
        .into_iter()
        .map(|mapping| mapping.file)
        .collect()
}

/// Files of which at least `least` bytes are mapped shared.
pub fn shared_mappings(pid: u32, least: u64) -> BTreeSet<File> {
    let mut sizes = std::collections::BTreeMap::new();
    for mapping in mappings(pid).into_iter().filter(|mapping| mapping.shared) {
        *sizes.entry(mapping.file).or_insert(0) += mapping.size;
    }
    sizes.retain(|_, size| *size >= least);
    sizes.into_keys().collect()
}

struct Mapping {
    file: File,
    size: u64,
    shared: bool,
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let text = read(pid, "maps");
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let rights = fields.next()?;
        let device = fields.nth(1)?.to_owned();
        let inode: u64 = fields.next()?.parse().ok()?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        (inode != 0).then_some(Mapping {
            file: (device, inode),
            size: hex(end)? - hex(start)?,
            shared: rights.ends_with('s'),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// An open descriptor of a process.
#[derive(Debug)]
pub struct Descriptor {
    /// What it is, as `/proc` shows it.
    pub target: PathBuf,
    /// Which file.
    pub file: File,
    /// Whether the mount it was opened on is one of the process's own.
    pub inside: bool,
}

/// The open descriptors of a process.
pub fn descriptors(pid: u32) -> Vec<Descriptor> {
    let mounts = read(pid, "mountinfo");
    let mounts: BTreeSet<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| {
            let number = entry.file_name().into_string().unwrap();
            let id = field(&format!("/proc/{pid}/fdinfo/{number}"), "mnt_id")?;
            let data = fs::metadata(entry.path());
            Some(Descriptor {
                target: fs::read_link(entry.path()).ok()?,
                file: data.map(|data| identity(&data)).unwrap_or_default(),
                inside: mounts.contains(id.as_str()),
            })
        })
        .collect()
}

fn identity(data: &fs::Metadata) -> File {
    use std::os::unix::fs::MetadataExt;
    let device = data.dev();
    let name = format!(
        "{:02x}:{:02x}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    (name, data.ino())
}

impl Descriptor {
    /// Whether a jailed process of container `id` may have it: no way to a file outside of its jail
    /// but the log it writes to.
    pub fn is_harmless(&self, id: &str, root: &Path) -> bool {
        let target = self.target.display().to_string();
        let anonymous = [
            "socket:[",
            "pipe:[",
            "anon_inode:[eventfd]",
            "anon_inode:[eventpoll]",
            "anon_inode:[timerfd]",
            "anon_inode:[signalfd]",
            "anon_inode:kvm-",
            "/memfd:",
        ];
        let streams = root.join(id).join("io");
        self.inside
            || anonymous.iter().any(|kind| target.starts_with(kind))
            || target == "/dev/null"
            || self.target == root.join(id).join("sandbox.log")
            || self.target.starts_with(&streams)
            // Its own descriptors, in a procfs of its own process namespace, as a mount by itself.
            || (target == "/" && self.file.1 != 0 && self.is_procfs())
    }

    fn is_procfs(&self) -> bool {
        // Process file systems have no device; the host's own is another one than the jail's.
        let host = fs::metadata("/proc")
            .map(|data| identity(&data))
            .unwrap_or_default();
        self.file.0.starts_with("00:") && self.file.0 != host.0
    }
}
