//! The journal: what exists for a sandbox and how it stands, written before it is made, read by
//! every verb and by whoever cleans up.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Hook;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::cgroup::Record;
use crate::failure::Failure;
use crate::paths::Paths;
use crate::timeline::Timeline;

/// By how much a journal may grow without taking more room on the disk, bytes.
const SPARE: usize = 8 << 10;

/// The states of the OCI runtime specification, and `paused` (runc).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The VM boots or the container is being set up.
    Creating,
    /// Set up; the program has not been started.
    Created,
    /// The program runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended, or its VM did.
    Stopped,
}

impl Status {
    /// The name the OCI specification gives it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// The PID on the host.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub start_ticks: u64,
}

impl ProcessRef {
    /// Refers to the running process `pid`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The command's name is in parentheses and may itself contain any character.
        let after = stat
            .rfind(')')
            .and_then(|end| stat.get(end.saturating_add(2)..));
        let ticks = after
            .and_then(|rest| rest.split(' ').nth(19))
            .and_then(|t| t.parse().ok());
        let start_ticks = ticks.ok_or_else(|| io::Error::other("unreadable /proc/<pid>/stat"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether that very process still exists and is not a zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        if Self::of(self.pid).is_ok_and(|now| now == *self) {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            let state = stat
                .rfind(')')
                .and_then(|end| stat.get(end.saturating_add(2)..));
            return !matches!(state.and_then(|s| s.chars().next()), None | Some('Z' | 'X'));
        }
        false
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: u32,
    /// Nanoseconds since the epoch.
    pub at_ns: u64,
    /// The memory limit killed a process of the container.
    #[serde(default)]
    pub oom_killed: bool,
    /// The signal that ended the process; 0 for none, or where it is not known.
    #[serde(default)]
    pub signal: u32,
}

/// Everything known about a sandbox, as stored in `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Version of the OCI runtime specification the container's configuration claims.
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// Where it stands.
    pub status: Status,
    /// Bundle directory.
    pub bundle: PathBuf,
    /// Root file system on the host.
    pub rootfs: PathBuf,
    /// Annotations of the bundle.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339, UTC.
    pub created: String,
    /// Name of the host user who asked for it.
    pub owner: String,
    /// The sandbox process; absent before it is started.
    pub sandbox: Option<ProcessRef>,
    /// The process on the host that stands in for the container's init process, where an engine asked
    /// for one.
    #[serde(default)]
    pub standin: Option<ProcessRef>,
    /// Processes the sandbox process spawned: device process, hypervisor.
    #[serde(default)]
    pub helpers: Vec<ProcessRef>,
    /// The network namespace the machine's cards are joined to.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Driver: `uml` or `qemu`.
    pub hypervisor: String,
    /// Isolation obtained: `hardware-vm`, `emulated-vm` or `user-mode-kernel`.
    pub isolation: String,
    /// Why that driver was taken.
    #[serde(default)]
    pub chosen_because: String,
    /// Name of the installed guest kernel.
    pub kernel: String,
    /// Release the guest's kernel reported, once it has called home.
    #[serde(default)]
    pub guest_release: String,
    /// Memory of the VM, bytes.
    pub memory_bytes: u64,
    /// Set once the container or its VM has ended.
    pub exit: Option<Exit>,
    /// Set when the end was not the container's own.
    pub failure: Option<Failure>,
    /// Remove everything once the container has ended.
    pub auto_remove: bool,
    /// Control groups of the host, noted before they are made.
    #[serde(default)]
    pub cgroup: Option<Record>,
    /// Hooks still to be run when the container is removed.
    #[serde(default)]
    pub poststop: Vec<Hook>,
    /// Steps of the start.
    #[serde(default)]
    pub timeline: Timeline,
}

/// Why a journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No such container.
    #[error("Container {id} does not exist: `bulkhead list` shows those that do")]
    NotFound {
        /// The name asked for.
        id: String,
    },
    /// It is there but not readable as one.
    #[error(
        "State of container {id} in {path} is damaged: `bulkhead delete --force {id}` ends it if it still \
         runs, and removes what is left of it"
    )]
    Damaged {
        /// The name asked for.
        id: String,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It could not be written.
    #[error("Failed to write the state of container {id} to {path}")]
    Write {
        /// The container.
        id: String,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl State {
    /// The PID an engine is told: of the stand-in, otherwise of the sandbox process; 0 after the end.
    #[must_use]
    pub fn engine_pid(&self) -> u32 {
        let process = self.standin.or(self.sandbox);
        process
            .filter(|_| self.exit.is_none())
            .map_or(0, |process| process.pid)
    }

    /// Reads the journal of a sandbox.
    ///
    /// # Errors
    /// [`StateError::NotFound`] without a directory, [`StateError::Damaged`] for anything else.
    pub fn load(paths: &Paths) -> Result<Self, StateError> {
        Self::read(paths, paths.state())
    }

    /// Reads the journal, or if that is damaged its other copy, which lacks the last change.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn load_any(paths: &Paths) -> Result<Self, StateError> {
        Self::load(paths)
            .or_else(|error| Self::read(paths, paths.state_before()).map_err(|_| error))
    }

    fn read(paths: &Paths, path: PathBuf) -> Result<Self, StateError> {
        let id = paths.id().to_string();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !paths.dir().exists() => {
                return Err(StateError::NotFound { id });
            }
            Err(source) => return Err(StateError::Damaged { id, path, source }),
        };
        serde_json::from_slice(&text).map_err(|error| StateError::Damaged {
            id,
            path,
            source: error.into(),
        })
    }

    /// Replaces the journal in one step, so that a reader sees the old or the new one.
    ///
    /// Only the first time takes room on the disk: from then on two files of one size change places. What
    /// happens to a container is thus written down on a full disk, too.
    ///
    /// # Errors
    /// [`StateError::Write`], for example on a full disk; the old journal is then intact.
    pub fn save(&self, paths: &Paths) -> Result<(), StateError> {
        let path = paths.state();
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(self)?;
            let other = paths.state_before();
            if !other.exists() {
                // The other copy says that there has been a journal, so it comes last.
                let first = paths.dir().join(".state.json.first");
                write_padded(&first, &text)?;
                fs::rename(&first, &path)?;
                return write_padded(&other, &text);
            }
            write_padded(&other, &text)?;
            match renameat_with(CWD, &other, CWD, &path, RenameFlags::EXCHANGE) {
                Ok(()) => Ok(()),
                // A file system that cannot, or somebody has removed it.
                Err(_) => {
                    fs::rename(&other, &path)?;
                    write_padded(&other, &text)
                }
            }
        };
        write().map_err(|source| StateError::Write {
            id: self.id.clone(),
            path,
            source,
        })
    }
}

/// Writes a document over a file's content; blanks, which mean nothing there, fill what is left of the
/// old one. A new file has room to spare.
fn write_padded(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let has = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let wanted = if has == 0 {
        text.len().saturating_add(SPARE)
    } else {
        has.max(text.len())
    };
    let mut padded = text.to_vec();
    padded.resize(wanted, b' ');
    file.write_all(&padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_ref_of_self_is_alive_and_a_wrong_start_time_is_not() {
        let me = ProcessRef::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(
            !ProcessRef {
                start_ticks: me.start_ticks + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn load_without_directory_is_not_found_and_garbage_is_damaged() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path(), &"a".parse().unwrap());
        assert!(matches!(
            State::load(&paths),
            Err(StateError::NotFound { .. })
        ));
        fs::create_dir(paths.dir()).unwrap();
        assert!(matches!(
            State::load(&paths),
            Err(StateError::Damaged { .. })
        ));
        fs::write(paths.state(), b"{").unwrap();
        assert!(matches!(
            State::load(&paths),
            Err(StateError::Damaged { .. })
        ));
    }
}
