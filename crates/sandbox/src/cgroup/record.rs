//! What the journal keeps of a control group, and its removal by whoever comes last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use super::systemd::Scope;

/// Marks a directory as made by us, so that the last container in it knows that it may go: the journal
/// of the container that made it may be gone by then.
const MARK: &str = "trusted.bulkhead.made";

/// One directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dir {
    /// Where it is.
    pub path: PathBuf,
    /// It was not there before: it is ours to remove.
    pub made: bool,
}

/// The directories of one container's group, noted before the first of them is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// For each hierarchy the group's directory and those above it, down to but not including the
    /// root of the hierarchy, innermost first.
    pub hierarchies: Vec<Vec<Dir>>,
    /// The scope, where systemd made it.
    #[serde(default)]
    pub scope: Option<Scope>,
}

impl Record {
    /// Looks which of the directories of `group`, below `mount`, exist.
    pub(super) fn of(groups: &[(PathBuf, PathBuf)]) -> Self {
        let chain = |mount: &Path, group: &Path| {
            group
                .ancestors()
                .take_while(|dir| *dir != mount && dir.starts_with(mount))
                .map(|dir| Dir {
                    path: dir.to_owned(),
                    made: !dir.exists(),
                })
                .collect()
        };
        Self {
            hierarchies: groups
                .iter()
                .map(|(mount, dir)| chain(mount, dir))
                .collect(),
            scope: None,
        }
    }

    /// As a record of a group that systemd makes: the slices above it are systemd's.
    pub(super) fn with_scope(mut self, scope: &Scope) -> Self {
        self.hierarchies
            .iter_mut()
            .for_each(|dirs| dirs.truncate(1));
        self.scope = Some(scope.clone());
        self
    }

    /// Removes what was made: the group, groups somebody made in it, and those above it that are
    /// empty then. What is in use by others stays, to be removed by the last of them.
    ///
    /// Processes in the group are not looked for: they keep it.
    pub fn remove(&self) {
        if let Some(Err(error)) = self.scope.as_ref().map(Scope::stop) {
            tracing::warn!("{}", crate::error::chain(&error));
        }
        for dirs in &self.hierarchies {
            for (depth, dir) in dirs.iter().enumerate() {
                if !(dir.made || is_marked(&dir.path)) {
                    break;
                }
                let removed = if depth == 0 {
                    remove_tree(&dir.path)
                } else {
                    fs::remove_dir(&dir.path)
                };
                match removed {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        if depth == 0 {
                            let dir = dir.path.display();
                            tracing::warn!("Failed to remove the control group {dir}: {error}");
                        }
                        break;
                    }
                }
            }
        }
    }
}

/// Makes a directory with those above it, and marks those it made.
///
/// # Errors
/// That of the system call that failed.
pub(super) fn make(
    mount: &Path,
    group: &Path,
    prepare: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut chain: Vec<&Path> = group
        .ancestors()
        .take_while(|dir| *dir != mount && dir.starts_with(mount))
        .collect();
    chain.reverse();
    // The last container of a parent may remove it while we are on our way into it.
    for _ in 0..8 {
        match make_chain(&chain, &prepare) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            made => return made,
        }
    }
    make_chain(&chain, &prepare)
}

fn make_chain(chain: &[&Path], prepare: &impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    for dir in chain {
        match fs::create_dir(dir) {
            Ok(()) => {
                // Without the mark a parent that others still use when we end is left to them.
                let _ = rustix::fs::setxattr(*dir, MARK, b"1", XattrFlags::CREATE);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        prepare(dir)?;
    }
    Ok(())
}

fn is_marked(dir: &Path) -> bool {
    let mut value = [0_u8; 8];
    rustix::fs::getxattr(dir, MARK, &mut value).is_ok()
}

/// Waits for processes that have ended but not yet left, where the kernel tells of it (version 2).
fn wait_until_empty(dir: &Path) {
    let Ok(events) = fs::File::open(dir.join("cgroup.events")) else {
        return;
    };
    let limit = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    loop {
        let mut text = [0; 128];
        let Ok(length) = rustix::io::pread(&events, &mut text, 0) else {
            return;
        };
        let text = text.get(..length).unwrap_or_default();
        if text
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"populated 0")
        {
            return;
        }
        let mut changed = [PollFd::new(&events, PollFlags::PRI)];
        match poll(&mut changed, Some(&limit)) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Groups are removed directory by directory; their files go with them.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        // In use, or with groups in it.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => wait_until_empty(dir),
        done => return done,
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}
