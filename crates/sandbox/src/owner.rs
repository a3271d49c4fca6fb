//! Whose machine a container lives in, where its files do not tell: found by what processes hold open.
//!
//! A sandbox process holds the locked directory of each of its containers ([`crate::claim`]) and a pidfd of
//! each stand-in, a stand-in holds the directory of its container. The kernel keeps all of this, whatever
//! becomes of the directory's name and content.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::claim;
use crate::paths::Paths;
use crate::state::ProcessRef;

/// The sandbox process of a container.
#[derive(Debug)]
pub struct Owner {
    /// It. Other containers may live in its machine: see [`residents`].
    pub process: ProcessRef,
    /// The process on the host that stands in for the container's, if there is one: the container ends
    /// with it, and nothing else does.
    pub standin: Option<ProcessRef>,
    directory: File,
}

impl Owner {
    /// Waits until the sandbox process has nothing to do with the container any more. False if it still
    /// has after `limit`.
    #[must_use]
    pub fn wait_until_free(&self, limit: Duration) -> bool {
        claim::wait_for(&self.directory, limit)
    }
}

/// The sandbox process that owns a container's directory, which may be damaged, removed or replaced.
#[must_use]
pub fn find(paths: &Paths) -> Option<Owner> {
    let entries = fs::read_dir("/proc").ok()?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let there = fs::metadata(paths.dir()).ok().filter(fs::Metadata::is_dir);
    let there = there.map(|dir| (dir.dev(), dir.ino()));
    let place = Place::of(paths.root());
    let mut removed = None;
    for process in pids.filter_map(sandbox) {
        for held in directories(&process) {
            if held.is(there) {
                return owner(process, &held);
            }
            // Of several of that name that were removed, one is as good as another.
            if place.resident(&held).as_deref() == Some(paths.id().as_str()) {
                removed = Some((process, held));
            }
        }
    }
    removed.and_then(|(process, held)| owner(process, &held))
}

/// Names of the containers below `root` that a sandbox process serves, in no order.
#[must_use]
pub fn residents(process: &ProcessRef, root: &Path) -> Vec<String> {
    let place = Place::of(root);
    let held = directories(process);
    held.iter()
        .filter_map(|held| place.resident(held))
        .collect()
}

fn owner(process: ProcessRef, held: &Held) -> Option<Owner> {
    // The link leads to the directory also when that has no name any more.
    let directory = File::open(&held.link).ok()?;
    let opened = directory.metadata().ok()?;
    let standin = standin(&process, held);
    // If it has ended meanwhile, the link may have been somebody else's.
    let same = held.is(Some((opened.dev(), opened.ino()))) && process.is_alive();
    same.then_some(Owner {
        process,
        standin,
        directory,
    })
}

/// A process, if it is one of our sandbox processes.
fn sandbox(pid: u32) -> Option<ProcessRef> {
    // First, so that it is that process whose command line is read.
    let process = ProcessRef::of(pid).ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let hat = line.split(|byte| *byte == 0).nth(1);
    (hat == Some(b"sandbox") && process.is_alive()).then_some(process)
}

/// Of the processes a sandbox process watches, the one that holds a container's directory and is none the
/// sandbox process has started.
fn standin(sandbox: &ProcessRef, directory: &Held) -> Option<ProcessRef> {
    let entries = fs::read_dir(format!("/proc/{}/fdinfo", sandbox.pid)).ok()?;
    let mut watched = entries.flatten().filter_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        let process = ProcessRef::of(number(&text, "Pid:")?).ok()?;
        process.is_alive().then_some(process)
    });
    watched.find(|process| {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid));
        let parent = status.ok().and_then(|text| number(&text, "PPid:"));
        parent.is_some_and(|parent| parent != sandbox.pid)
            && directories(process)
                .iter()
                .any(|held| held.is(Some(directory.identity)))
    })
}

/// The number behind `key` in a file of `/proc`; none if it is none or negative.
fn number(text: &str, key: &str) -> Option<u32> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

/// A directory that a process holds open.
#[derive(Debug)]
struct Held {
    /// Its name in `/proc`, which leads to it.
    link: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Held {
    fn is(&self, other: Option<(u64, u64)>) -> bool {
        other == Some(self.identity)
    }
}

fn directories(process: &ProcessRef) -> Vec<Held> {
    let entries = fs::read_dir(format!("/proc/{}/fd", process.pid));
    let links = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let held = links.filter_map(|link| {
        let found = fs::metadata(&link).ok().filter(fs::Metadata::is_dir)?;
        let identity = (found.dev(), found.ino());
        Some(Held { link, identity })
    });
    held.collect()
}

/// The directory of all containers, as links in `/proc` name it.
#[derive(Debug)]
struct Place(PathBuf);

impl Place {
    fn of(root: &Path) -> Self {
        // Of a root that was removed, what was said of it has to do.
        let path = fs::canonicalize(root).or_else(|_| std::path::absolute(root));
        Self(path.unwrap_or_else(|_| root.to_owned()))
    }

    /// The name of the container whose directory a link leads to.
    fn resident(&self, held: &Held) -> Option<String> {
        let named = fs::read_link(&held.link).ok()?;
        let name = named.strip_prefix(&self.0).ok()?.to_str()?;
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        // Neither the root itself nor what is deeper.
        (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us() -> ProcessRef {
        ProcessRef::of(std::process::id()).unwrap()
    }

    #[test]
    fn residents_directory_removed_while_held_still_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("root");
        fs::create_dir_all(root.join("a/deeper")).unwrap();
        fs::create_dir(root.join("b")).unwrap();
        let _held = ["", "a", "a/deeper", "b"].map(|dir| File::open(root.join(dir)).unwrap());
        fs::remove_dir_all(root.join("a")).unwrap();

        let mut found = residents(&us(), &root);
        found.sort();
        assert_eq!(found, ["a", "b"]);
        fs::remove_dir_all(&root).unwrap();
        let mut found = residents(&us(), &root);
        found.sort();
        // Removed along with the root, which is named as it was.
        assert_eq!(found, ["a", "b"]);
        assert!(residents(&us(), Path::new("/")).is_empty());
    }

    #[test]
    fn find_process_of_another_hat_is_none() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path(), &"a".parse().unwrap());
        let _lock = claim::claim(&paths).unwrap();

        assert!(find(&paths).is_none());
    }

    #[test]
    fn number_of_an_unknown_or_ended_process_is_none() {
        assert_eq!(number("pos:\t0\nPid:\t12\nNSpid:\t12\n", "Pid:"), Some(12));
        assert_eq!(number("Pid:\t-1\n", "Pid:"), None);
        assert_eq!(number("pos:\t0\n", "Pid:"), None);
    }
}
