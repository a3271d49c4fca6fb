//! Clean-up after a sandbox, whoever does it: the sandbox process itself in the usual case, the next
//! verb after it was killed.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::claim;
use crate::failure::{Failure, Record};
use crate::hooks::{self, Surroundings};
use crate::id::Id;
use crate::paths::Paths;
use crate::state::{Exit, ProcessRef, State, StateError, Status};
use crate::vm::pidfd;

/// How a container ended whose process on the host was killed; nobody knows when.
const KILLED: Exit = Exit {
    code: 137,
    at_ns: 0,
    oom_killed: false,
    signal: 0,
};

/// Removes every file of a sandbox, after what the host still holds for it: its control group, and the
/// hooks that are to be run with its removal. Its processes must have ended.
///
/// Blocks while hooks run. What cannot be removed is logged and left to the next verb.
pub fn remove(paths: &Paths) {
    if let Ok(state) = State::load_any(paths) {
        leave_host(paths, state);
    }
    for dir in [paths.layer(), paths.dir()] {
        let removed = match fs::symlink_metadata(&dir) {
            // Somebody has put it in the directory's place.
            Ok(found) if !found.is_dir() => fs::remove_file(&dir),
            _ => fs::remove_dir_all(&dir),
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("Failed to remove {}: {error}", dir.display());
        }
    }
}

/// Removes the control group and runs the hooks of the end, unless that was done.
fn leave_host(paths: &Paths, mut state: State) {
    if let Some(group) = state.cgroup.take() {
        group.remove();
    }
    // The hooks are run by whoever has the directory: somebody else who removes it at this moment, or
    // us. If they were run by the sandbox process, which holds it, there are none left.
    let owner = claim::take_over(paths);
    if state.poststop.is_empty() || !matches!(owner, Ok(Some(_))) {
        return;
    }
    let hooks = std::mem::take(&mut state.poststop);
    if let Err(error) = state.save(paths) {
        tracing::warn!("{}", crate::error::chain(&error));
    }
    let surroundings = Surroundings {
        state: hooks::state_json(&state, Status::Stopped, None),
        dir: state.bundle,
        ..Surroundings::default()
    };
    hooks::run_last_blocking(&hooks, &surroundings);
}

/// What a look at one sandbox found.
#[derive(Debug)]
pub enum Found {
    /// Its journal, true to the moment.
    State(Box<State>),
    /// Being made: no journal yet.
    Starting,
    /// A left-over of a killed command; it was removed.
    Removed,
    /// The journal is unreadable, or its directory is none. A sandbox process may run nevertheless: see
    /// [`crate::owner`].
    Damaged(StateError),
}

/// Looks at a sandbox and sets right what a killed process left.
///
/// # Errors
/// [`StateError::NotFound`] when there is no such sandbox.
pub fn inspect(paths: &Paths) -> Result<Found, StateError> {
    if !paths.dir().exists() {
        return Err(StateError::NotFound {
            id: paths.id().to_string(),
        });
    }
    let owner = claim::take_over(paths);
    let (owned, free) = (matches!(owner, Ok(None)), matches!(owner, Ok(Some(_))));
    drop(owner);
    let begun = paths.state_before().exists();
    match State::load(paths) {
        Ok(mut state) if owned => {
            // The sandbox process is about to notice it. An engine has, and asks.
            if state.exit.is_none() && state.standin.is_some_and(|standin| !standin.is_alive()) {
                state.status = Status::Stopped;
                state.exit = Some(KILLED);
            }
            Ok(Found::State(Box::new(state)))
        }
        Ok(state) => Ok(bury(paths, state)),
        Err(StateError::Damaged { source, .. })
            if source.kind() == io::ErrorKind::NotFound && !begun && (owned || free) =>
        {
            if owned {
                return Ok(Found::Starting);
            }
            // The command was killed before it wrote a first entry: nothing else exists.
            remove(paths);
            Ok(Found::Removed)
        }
        Err(error) => Ok(Found::Damaged(error)),
    }
}

/// Sets the journal of a sandbox right whose process is gone.
fn bury(paths: &Paths, mut state: State) -> Found {
    // All of them end by themselves now, but a control group can go only after them.
    for process in state
        .helpers
        .iter()
        .chain(&state.standin)
        .chain(&state.sandbox)
    {
        end(process);
    }
    if let Some(netns) = &state.netns {
        bulkhead_network::clean(netns);
    }
    let cards = (0..).map(|number| paths.net_socket(number));
    let disks = (0..).map(|number| paths.disk_socket(number));
    // Numbered without a gap.
    let removed = |path| fs::remove_file(path).is_ok();
    let (mut cards, mut disks) = (cards.map(removed), disks.map(removed));
    while cards.next() == Some(true) {}
    while disks.next() == Some(true) {}
    for file in [
        paths.socket(),
        paths.attach_socket(),
        paths.fs_socket(),
        paths.vsock_socket(),
        paths.entropy_socket(),
        paths.balloon_socket(),
    ] {
        // Absent is what is wanted.
        let _ = fs::remove_file(file);
    }
    let _ = fs::remove_dir_all(paths.io());
    if state.status != Status::Stopped {
        state.status = Status::Stopped;
        state.exit = Some(KILLED);
        state.failure = Some(Failure {
            cause: "The sandbox process was killed".into(),
            evidence: Vec::new(),
            fix: "If nobody did it on purpose: `dmesg` tells of the host's out-of-memory killer"
                .into(),
        });
        keep_record(paths, &state);
        if state.auto_remove {
            remove(paths);
            return Found::Removed;
        }
    } else if state.helpers.is_empty() && state.cgroup.is_none() {
        return Found::State(Box::new(state));
    }
    state.helpers.clear();
    if let Some(group) = state.cgroup.take() {
        group.remove();
    }
    if let Err(error) = state.save(paths) {
        tracing::warn!("{}", crate::error::chain(&error));
    }
    Found::State(Box::new(state))
}

/// Lets `bulkhead why` tell of it even when the container itself is removed.
fn keep_record(paths: &Paths, state: &State) {
    let Some(failure) = state.failure.clone() else {
        return;
    };
    let record = Record {
        id: state.id.clone(),
        failure,
        hypervisor: state.hypervisor.clone(),
        kernel: state.kernel.clone(),
        timeline: state.timeline.clone(),
    };
    if let Err(error) = record.save(paths) {
        tracing::warn!("Failed to keep the record of the failure: {error}");
    }
}

/// Kills a process of a dead sandbox, if it is still that one, and waits until it is gone.
pub fn end(process: &ProcessRef) {
    let Some(fd) = pidfd(process) else { return };
    // It may end on its own in between.
    let _ = pidfd_send_signal(&fd, Signal::KILL);
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 2,
        tv_nsec: 0,
    };
    let _ = poll(&mut fds, Some(&limit));
}

/// Names of all sandboxes below a root, sorted.
///
/// # Errors
/// When the root exists but cannot be read.
pub fn names(root: &Path) -> io::Result<Vec<Id>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names: Vec<Id> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    Ok(names)
}
