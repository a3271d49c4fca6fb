//! What is on the machine: processes, mounts, files, cgroups, network interfaces and namespaces,
//! sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::test::Test;
use super::wait;

/// What is on the machine at one moment, as far as containers of ours could have put it there.
///
/// Processes are those that descend from the test process, which inherits orphans: so nothing that
/// a container left can hide. For the same reason no other test may run beside one that takes
/// inventories: see `alone` of [`crate::suite!`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    things: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Inventory {
    /// Takes it.
    #[must_use]
    pub fn take(test: &Test) -> Self {
        let us = std::process::id();
        let ours: Vec<u32> = tree(us).into_iter().filter(|pid| *pid != us).collect();
        let mut files = BTreeSet::new();
        for dir in ["/run/bulkhead", "/var/lib/bulkhead/layers"] {
            walk(Path::new(dir), &mut files, usize::MAX);
        }
        walk(&test.root(), &mut files, usize::MAX);
        for dir in ["/tmp", "/dev/shm", "/run"] {
            files.extend(list(Path::new(dir)).into_iter().filter(|path| {
                let ours = ["bulkhead", "uml", "vm_file", "qemu"];
                // The list of skipped tests is kept there, also by other runs.
                ours.iter().any(|word| path.contains(word)) && !path.contains("bulkhead-skips")
            }));
        }
        let mut cgroups = BTreeSet::new();
        walk(Path::new("/sys/fs/cgroup"), &mut cgroups, 4);
        // Other test processes have some, too.
        let id = format!("t{us}-");
        cgroups.retain(|path| path.contains(&id) && Path::new(path).is_dir());
        let things = BTreeMap::from([
            ("process", ours.iter().map(|pid| describe(*pid)).collect()),
            ("mount", mounts()),
            ("file", files),
            ("cgroup", cgroups),
            ("interface", list(Path::new("/sys/class/net"))),
            ("network namespace", namespaces(&ours)),
            ("socket", sockets(test)),
        ]);
        Self { things }
    }

    /// What a later inventory has more (`+`) or less (`-`).
    #[must_use]
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let mut differences = Vec::new();
        for (kind, before) in &self.things {
            let after = later.things.get(kind).unwrap_or(&none);
            let more = after.difference(before);
            differences.extend(more.map(|thing| format!("+ {kind} {thing}")));
            let less = before.difference(after);
            differences.extend(less.map(|thing| format!("- {kind} {thing}")));
        }
        differences
    }

    /// Asserts that the machine is now as it was; but for `except`, parts of the names of what may
    /// differ.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_unchanged(&self, test: &Test, except: &[&str]) {
        let mut differences = self.differences(&Self::take(test));
        differences.retain(|line| !except.iter().any(|part| line.contains(part)));
        assert!(
            differences.is_empty(),
            "something is left, or lost: {differences:#?}"
        );
    }
}

/// A process and all its descendants, without those that have ended and were not waited for.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for pid in processes() {
        if let Some((state, parent)) = stat(pid)
            && state != 'Z'
        {
            parents.insert(pid, parent);
        }
    }
    let belongs = |pid: &u32| {
        let mut at = *pid;
        // A process has fewer ancestors than there are processes.
        for _ in 0..=parents.len() {
            if at == root {
                return true;
            }
            match parents.get(&at) {
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(|pid| belongs(pid)).collect()
}

/// What is left of a test's containers: processes, mounts, layers.
#[must_use]
pub fn traces_of(test: &Test) -> Vec<String> {
    let dir = test.dir().display().to_string();
    let mut traces: Vec<String> = processes_of(test.dir())
        .into_iter()
        .map(|pid| format!("process {}", describe(pid)))
        .collect();
    traces.extend(mounts().into_iter().filter(|line| line.contains(&dir)));
    let layer = dir.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let layers = list(Path::new("/var/lib/bulkhead/layers"));
    traces.extend(layers.into_iter().filter(|path| path.contains(&layer)));
    if !test.driver.is_peer() {
        traces.extend(
            test.containers()
                .into_iter()
                .map(|id| format!("container {id}")),
        );
    }
    traces
}

/// Processes with a test's directory in their arguments.
#[must_use]
pub fn processes_of(dir: &Path) -> Vec<u32> {
    let needle = format!("{}/", dir.display());
    let us = std::process::id();
    processes()
        .into_iter()
        .filter(|pid| *pid != us && command_line(*pid).contains(&needle))
        .collect()
}

/// Kills what a failed test left, together with its descendants.
pub fn kill_all_of(dir: &Path) {
    for found in processes_of(dir) {
        for pid in tree(found) {
            let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            let fd = wait::pidfd(pid);
            // It may have ended by itself.
            if kill_process(number, Signal::KILL).is_ok() && fd.is_some() {
                wait::gone(pid);
            }
        }
    }
}

/// The control groups below a parent of this name, in every hierarchy; an empty parent is removed.
///
/// # Panics
/// When an empty parent cannot be removed.
#[must_use]
pub fn control_groups(parent: &str) -> Vec<String> {
    let mut left = BTreeSet::new();
    let hierarchies = list(Path::new("/sys/fs/cgroup"));
    for dir in hierarchies.iter().map(|root| Path::new(root).join(parent)) {
        if !dir.is_dir() {
            continue;
        }
        let before = left.len();
        // Podman leaves this one behind when it was the last.
        let _ = fs::remove_dir(dir.join("conmon"));
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        let groups = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(groups.map(|entry| entry.path().display().to_string()));
        if left.len() == before {
            fs::remove_dir(&dir).unwrap();
        }
    }
    left.into_iter().collect()
}

/// Removes a parent of this name in every hierarchy with all groups below it, as far as no process is in
/// them: what a failed test left.
pub fn remove_control_groups(parent: &str) {
    fn remove(dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        // One with processes stays, as do those above it.
        let _ = fs::remove_dir(dir);
    }
    for root in list(Path::new("/sys/fs/cgroup")) {
        remove(&Path::new(&root).join(parent));
    }
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .filter(|pid| !is_exiting(*pid))
        .collect()
}

/// Whether a process has ended and the kernel only gives its memory back, which takes a machine's some
/// milliseconds.
fn is_exiting(pid: u32) -> bool {
    const PF_EXITING: u64 = 4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat
        .rsplit_once(") ")
        .and_then(|(_, fields)| fields.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// A process in one line.
#[must_use]
pub fn describe(pid: u32) -> String {
    let line: String = command_line(pid).chars().take(120).collect();
    format!("{pid} [{}] {line}", wait::command_name(pid))
}

/// The mounts of our own namespace: place, type and source of each.
fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let describe = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let place = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        Some(format!("{place} {} {}", right.next()?, right.next()?))
    };
    text.lines().filter_map(describe).collect()
}

fn namespaces(pids: &[u32]) -> BTreeSet<String> {
    let of = |pid: &u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let links = pids.iter().filter_map(of);
    let mut all: BTreeSet<String> = links.map(|link| link.display().to_string()).collect();
    all.extend(list(Path::new("/run/netns")));
    all
}

/// Named sockets of ours.
fn sockets(test: &Test) -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let dir = test.dir().display().to_string();
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    names
        .filter(|name| name.contains(&dir) || name.contains("bulkhead"))
        .map(str::to_owned)
        .collect()
}

fn list(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().display().to_string())
        .collect()
}

fn walk(dir: &Path, found: &mut BTreeSet<String>, depth: usize) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.insert(entry.path().display().to_string());
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found, depth - 1);
        }
    }
}
