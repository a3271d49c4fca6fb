//! Hooks that run on the host: programs of the engine or the administrator, each told the
//! container's state on its standard input (OCI runtime specification, "POSIX-platform Hooks").
//!
//! `startContainer` is not among them: it runs in the guest.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::json;

use crate::state::{State, Status};
use crate::timeline::printable;
use crate::watched;

/// How much of a failed hook's last words is told.
const LAST_WORDS: u64 = 512;

/// The moments of a container's life at which hooks run on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// During `create`, before the machine is started; the old name of `createRuntime`.
    Prestart,
    /// Likewise, after those.
    CreateRuntime,
    /// Likewise, after those, in the namespaces of the stand-in.
    CreateContainer,
    /// After the program was started.
    Poststart,
    /// When the container is deleted.
    Poststop,
}

impl Kind {
    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The hooks of this moment.
    #[must_use]
    pub fn of(self, spec: &Spec) -> &[Hook] {
        let Some(hooks) = spec.hooks() else {
            return &[];
        };
        #[allow(deprecated, reason = "engines still write prestart hooks")]
        let list = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

/// Why a hook did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be started.
    #[error("Failed to start the hook hooks.{kind}[{index}] ({path})")]
    Start {
        /// The list it is in.
        kind: &'static str,
        /// Its place in the list.
        index: usize,
        /// The program.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("The hook hooks.{kind}[{index}] ({path}) {how}{words}")]
    Failed {
        /// The list it is in.
        kind: &'static str,
        /// Its place in the list.
        index: usize,
        /// The program.
        path: PathBuf,
        /// How it ended.
        how: String,
        /// What it wrote last, beginning with `: `, or nothing.
        words: String,
    },
}

/// What hooks are run with.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The container's state, as JSON.
    pub state: Vec<u8>,
    /// Directory they start in: the bundle, as for runc.
    pub dir: PathBuf,
    /// Namespaces to enter before the program is executed.
    pub namespaces: Vec<OwnedFd>,
    /// Control groups to enter: see [`crate::cgroup::Group::way_out`].
    pub groups: Vec<fs::File>,
}

/// The container's state as hooks are told it.
#[must_use]
pub fn state_json(state: &State, status: Status, pid: Option<u32>) -> Vec<u8> {
    let mut told = json!({
        "ociVersion": state.oci_version,
        "id": state.id,
        "status": status.as_str(),
        "bundle": state.bundle,
        "annotations": state.annotations,
    });
    if let (Some(pid), Some(told)) = (pid, told.as_object_mut()) {
        told.insert("pid".into(), pid.into());
    }
    told.to_string().into_bytes()
}

/// Runs hooks one after the other, up to the first that fails. Whoever drops the future kills the one
/// that runs.
///
/// Must be called within a Tokio runtime, on a thread that lives as long as the process: a hook gets
/// SIGKILL when the thread that started it ends.
///
/// # Errors
/// That of the first hook that cannot be started, fails or takes longer than it may.
pub async fn run(kind: Kind, hooks: &[Hook], surroundings: &Surroundings) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(kind, index, hook, surroundings).await?;
    }
    Ok(())
}

/// Runs all `poststop` hooks; one that fails is told in the log, and the rest goes on.
///
/// As for [`run`] a runtime is needed, and a thread that stays.
pub async fn run_last(hooks: &[Hook], surroundings: &Surroundings) {
    for (index, hook) in hooks.iter().enumerate() {
        let run = run_one(Kind::Poststop, index, hook, surroundings);
        warn_of(run.await);
    }
}

/// As [`run_last`], without a runtime; blocks until the last hook has ended.
pub fn run_last_blocking(hooks: &[Hook], surroundings: &Surroundings) {
    for (index, hook) in hooks.iter().enumerate() {
        warn_of(run_one_blocking(Kind::Poststop, index, hook, surroundings));
    }
}

fn warn_of(result: Result<(), HookError>) {
    if let Err(error) = result {
        tracing::warn!("{}", crate::error::chain(&error));
    }
}

async fn run_one(
    kind: Kind,
    index: usize,
    hook: &Hook,
    surroundings: &Surroundings,
) -> Result<(), HookError> {
    let mut running = Running::start(kind, index, hook, surroundings)?;
    let watched = watched::watch(running.pidfd.clone());
    let ended = watched.map_err(|source| running.lost(source))?;
    let in_time = match running.limit {
        Some(limit) => tokio::time::timeout(limit, ended.readable()).await.is_ok(),
        None => {
            let _ = ended.readable().await;
            true
        }
    };
    running.finish(in_time)
}

fn run_one_blocking(
    kind: Kind,
    index: usize,
    hook: &Hook,
    surroundings: &Surroundings,
) -> Result<(), HookError> {
    let mut running = Running::start(kind, index, hook, surroundings)?;
    let in_time = running.wait_blocking();
    running.finish(in_time)
}

/// A hook that was started. Dropping it kills it with what it started.
struct Running {
    kind: Kind,
    index: usize,
    path: PathBuf,
    child: Child,
    pidfd: Arc<OwnedFd>,
    output: fs::File,
    limit: Option<Duration>,
    done: bool,
}

impl Running {
    fn start(
        kind: Kind,
        index: usize,
        hook: &Hook,
        surroundings: &Surroundings,
    ) -> Result<Self, HookError> {
        let failed = |source: io::Error| HookError::Start {
            kind: kind.name(),
            index,
            path: hook.path().clone(),
            source,
        };
        // Files, not pipes: a hook that does not read is not blocked, and one that leaves a child
        // behind with its streams does not keep us.
        let mut state = memory("state").map_err(failed)?;
        state
            .write_all(&surroundings.state)
            .and_then(|()| state.rewind())
            .map_err(failed)?;
        let output = memory("output").map_err(failed)?;
        let mut command = command(hook, &surroundings.dir);
        command
            .stdin(state)
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output.try_clone().map_err(failed)?);
        prepare(&mut command, surroundings).map_err(failed)?;
        let mut child = command.spawn().map_err(failed)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = match pidfd {
            Some(Ok(pidfd)) => pidfd,
            other => {
                // Without it the end cannot be waited for in time.
                let _ = child.kill();
                let _ = child.wait();
                let reason = other.and_then(Result::err).map_or_else(
                    || io::Error::other("the process has no number"),
                    io::Error::from,
                );
                return Err(failed(reason));
            }
        };
        Ok(Self {
            kind,
            index,
            path: hook.path().clone(),
            child,
            pidfd: Arc::new(pidfd),
            output,
            // Checked when the bundle was loaded: above 0.
            limit: hook
                .timeout()
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map(Duration::from_secs),
            done: false,
        })
    }

    fn lost(&self, source: io::Error) -> HookError {
        HookError::Start {
            kind: self.kind.name(),
            index: self.index,
            path: self.path.clone(),
            source,
        }
    }

    fn wait_blocking(&self) -> bool {
        let limit = self.limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        // A signal to the command ends it, and the hook with it.
        loop {
            match poll(&mut fds, limit.as_ref()) {
                Ok(0) => return false,
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => return true,
            }
        }
    }

    /// Takes note of the end; kills what is over its time.
    fn finish(&mut self, in_time: bool) -> Result<(), HookError> {
        if !in_time {
            self.kill();
        }
        let status = self.child.wait().map_err(|source| self.lost(source))?;
        self.done = true;
        if in_time && status.success() {
            return Ok(());
        }
        let how = match self.limit {
            Some(limit) if !in_time => {
                format!("did not end within {} s and was killed", limit.as_secs())
            }
            _ => describe(status),
        };
        Err(HookError::Failed {
            kind: self.kind.name(),
            index: self.index,
            path: self.path.clone(),
            how,
            words: self.last_words(),
        })
    }

    /// Kills it and what it started, unless that has left its process group.
    fn kill(&self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Its number is not used again before it was waited for.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn last_words(&mut self) -> String {
        let mut read = || -> io::Result<String> {
            let end = self.output.seek(SeekFrom::End(0))?;
            self.output
                .seek(SeekFrom::Start(end.saturating_sub(LAST_WORDS)))?;
            let mut bytes = Vec::new();
            Read::by_ref(&mut self.output)
                .take(LAST_WORDS)
                .read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        // There is a better reason to tell than that this could not be read.
        let text = read().unwrap_or_default();
        let words: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if words.is_empty() {
            String::new()
        } else {
            format!(": {}", printable(&words.join("; ")))
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "failed".into(),
    }
}

fn memory(name: &str) -> io::Result<fs::File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

fn command(hook: &Hook, dir: &Path) -> Command {
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear();
    for entry in hook.env().iter().flatten() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        command.env(name, value);
    }
    // The bundle may be gone when the container is deleted.
    let dir = if dir.is_dir() { dir } else { Path::new("/") };
    command.current_dir(dir).process_group(0);
    command
}

/// What is left to be done between fork and exec.
fn prepare(command: &mut Command, surroundings: &Surroundings) -> io::Result<()> {
    let copy = |fd: &OwnedFd| fd.try_clone();
    let namespaces: io::Result<Vec<OwnedFd>> = surroundings.namespaces.iter().map(copy).collect();
    let groups: io::Result<Vec<fs::File>> = surroundings
        .groups
        .iter()
        .map(fs::File::try_clone)
        .collect();
    let (namespaces, mut groups) = (namespaces?, groups?);
    let parent = std::process::id();
    let between = move || {
        // SAFETY: a system call on an integer.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let ours = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        if ours != Some(parent) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        for group in &mut groups {
            group.write_all(b"0")?;
        }
        for namespace in &namespaces {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
        }
        // Whatever this process inherited is not the hook's, the lock of the container least of all.
        // SAFETY: a system call on integers; descriptors are closed only by the exec.
        let closed = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if closed < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing is allocated, no lock taken.
    unsafe { command.pre_exec(between) };
    Ok(())
}

/// The namespaces of a stand-in that differ from ours, among those a `createContainer` hook enters.
///
/// Not the mount namespace: what is to be seen there is the container's, and its programs must not
/// be executed on the host.
///
/// # Errors
/// When the process is gone.
pub fn namespaces_of(pid: u32) -> io::Result<Vec<OwnedFd>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for name in ["net", "ipc", "uts"] {
        let theirs = fs::File::open(format!("/proc/{pid}/ns/{name}"))?;
        let ours = fs::metadata(format!("/proc/self/ns/{name}"))?;
        if theirs.metadata()?.ino() != ours.ino() {
            found.push(theirs.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(value: serde_json::Value) -> Hook {
        serde_json::from_value(value).unwrap()
    }

    fn sh(script: &str) -> Hook {
        hook(
            json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }),
        )
    }

    fn surroundings(dir: &Path) -> Surroundings {
        Surroundings {
            state: b"{\"id\":\"x\"}".to_vec(),
            dir: dir.to_owned(),
            ..Surroundings::default()
        }
    }

    fn both(hooks: &[Hook], surroundings: &Surroundings) -> [Result<(), HookError>; 2] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let kind = Kind::CreateRuntime;
        let mut hooks_blocking = hooks.iter().enumerate();
        [
            runtime.block_on(run(kind, hooks, surroundings)),
            hooks_blocking
                .try_for_each(|(index, hook)| run_one_blocking(kind, index, hook, surroundings)),
        ]
    }

    #[test]
    fn hooks_told_the_state_and_run_in_order_in_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = [
            sh("cat > state"),
            hook(json!({
                "path": "/bin/sh", "args": ["name", "-c", "echo $0 $A; echo \"$$ ${HOME-none}\" >&2; echo $0 $A >> state"],
                "env": ["A=b=c"],
            })),
        ];

        for result in both(&hooks, &surroundings(dir.path())) {
            result.unwrap();
            let told = fs::read_to_string(dir.path().join("state")).unwrap();
            assert_eq!(told, "{\"id\":\"x\"}name b=c\n");
        }
    }

    #[test]
    fn hook_that_fails_ends_the_list_and_is_told_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = [sh("echo no such network >&2; exit 3"), sh("touch second")];

        for result in both(&hooks, &surroundings(dir.path())) {
            let text = result.unwrap_err().to_string();
            assert_eq!(
                text,
                "The hook hooks.createRuntime[0] (/bin/sh) failed with exit code 3: no such network"
            );
        }
        assert!(!dir.path().join("second").exists());
    }

    #[test]
    fn hook_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = [sh("true"), hook(json!({ "path": "/no/such" }))];

        for result in both(&hooks, &surroundings(dir.path())) {
            let text = crate::error::chain(&result.unwrap_err());
            assert!(text.contains("hooks.createRuntime[1] (/no/such)"), "{text}");
            assert!(text.contains("No such file"), "{text}");
        }
    }

    #[test]
    fn hook_over_its_time_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mut slow = sh("sleep 1000 & echo $! > child; wait");
        slow.set_timeout(Some(1));

        for result in both(&[slow], &surroundings(dir.path())) {
            let text = result.unwrap_err().to_string();
            assert!(text.contains("did not end within 1 s"), "{text}");
            let child = fs::read_to_string(dir.path().join("child")).unwrap();
            assert_gone(child.trim());
        }
    }

    #[test]
    fn hook_of_a_dropped_future_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("ready"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let hooks = [sh("echo $$ > pid; echo > ready; exec sleep 1000")];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let surroundings = surroundings(dir.path());
        runtime.block_on(async {
            let ready = tokio::task::spawn_blocking({
                let fifo = dir.path().join("ready");
                move || fs::read(fifo)
            });
            tokio::select! {
                _ = run(Kind::Poststart, &hooks, &surroundings) => panic!("it ended"),
                _ = ready => {}
            }
        });
        let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
        assert_gone(pid.trim());
    }

    /// Waits for the end of a process that was killed.
    fn assert_gone(pid: &str) {
        let Some(pid) = Pid::from_raw(pid.parse().unwrap()) else {
            return;
        };
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "still there");
    }

    #[test]
    fn state_told_to_hooks_has_the_fields_of_the_specification() {
        let state: State = serde_json::from_value(json!({
            "oci_version": "1.2.0", "id": "c", "status": "creating", "bundle": "/b", "rootfs": "/r",
            "annotations": { "k": "v" }, "created": "", "owner": "root", "sandbox": null, "hypervisor": "",
            "isolation": "", "kernel": "", "memory_bytes": 0, "exit": null, "failure": null,
            "auto_remove": false,
        }))
        .unwrap();

        let told = |status, pid| -> serde_json::Value {
            serde_json::from_slice(&state_json(&state, status, pid)).unwrap()
        };
        assert_eq!(
            told(Status::Creating, Some(7)),
            json!({ "ociVersion": "1.2.0", "id": "c", "status": "creating", "pid": 7, "bundle": "/b",
                "annotations": { "k": "v" } })
        );
        assert_eq!(told(Status::Stopped, None).get("pid"), None);
    }
}
