//! Making containers in tests.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::symlink,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid, fork},
};
use oci_spec::runtime::{Process, Spec};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::container::{Child, Container, ContainerError, Failure, Io, Reports};

/// Runs `body` in a forked process, which is single-threaded whatever the test
/// runner is, and brings back what it returns. A panic there is one here.
pub fn isolated<T: Serialize + DeserializeOwned>(body: impl FnOnce() -> T) -> T {
    assert!(
        nix::unistd::geteuid().is_root(),
        "creating containers needs root"
    );
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    // SAFETY: the child runs single-threaded code and ends in `_exit`; the C library keeps
    // its allocator usable over a fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(read);
            let result = catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                    .unwrap_or_else(|| "panic".to_owned())
            });
            kill_children();
            let _ = File::from(write).write_all(&serde_json::to_vec(&result).unwrap());
            // SAFETY: nothing of the test runner's may run in this process.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut bytes = Vec::new();
            File::from(read).read_to_end(&mut bytes).unwrap();
            waitpid(child, None).unwrap();
            let result: Result<T, String> =
                serde_json::from_slice(&bytes).expect("the forked process died");
            result.unwrap_or_else(|panic| panic!("{panic}"))
        }
    }
}

/// What a failed test leaves running must not outlive it.
fn kill_children() {
    let this = rustix::thread::gettid().as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/self/task/{this}/children"));
    for pid in children
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
    {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    // In whichever order: the first of a PID namespace goes after all others.
    while waitpid(None, None).is_ok() {}
}

/// A root file system with busybox and two accounts.
pub fn rootfs() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    set_mode(root, 0o755);
    install("/bin/busybox", &root.join("bin/busybox"));
    for name in [
        "sh",
        "cat",
        "id",
        "ls",
        "stat",
        "true",
        "sleep",
        "mount",
        "hostname",
        "readlink",
        "tty",
        "grep",
        "touch",
        "kill",
        "dd",
        "head",
        "chmod",
        "mkdir",
        "mknod",
        "chown",
        "stty",
        "ps",
        "dnsdomainname",
        "rmdir",
        "uname",
        "nice",
        "unshare",
        "umount",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv/app:\n",
    )
    .unwrap();
    dir
}

/// Copies a program. By another process: a descriptor of this one that is open
/// for writing could live on in a fork of another test and make the program
/// "busy".
pub fn install(program: impl AsRef<Path>, to: &Path) {
    let status = Command::new("cp").arg(program.as_ref()).arg(to).status();
    assert!(
        status.unwrap().success(),
        "{} cannot be copied",
        program.as_ref().display()
    );
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What `runc spec` writes, less what no test can see, running `args`.
pub fn spec(args: &[&str]) -> Value {
    let caps = [
        "CAP_AUDIT_WRITE",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_CHOWN",
        "CAP_MKNOD",
    ];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
                "/proc/acpi", "/proc/not-there", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                "/proc/sysrq-trigger", "/proc/not-there"],
        },
    })
}

/// A shell script as the container's program.
pub fn shell(script: &str) -> Value {
    spec(&["/bin/sh", "-c", script])
}

/// Puts `value` at a JSON pointer whose parent exists.
pub fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match spec.pointer_mut(parent).unwrap() {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        other => panic!("nothing can be put into {other} at {pointer}"),
    }
    spec
}

/// How a process ended and what it said.
#[derive(Debug, Default, Serialize, serde::Deserialize)]
pub struct Outcome {
    /// Exit code, or minus the signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// Why there was no process, in words.
    pub error: Option<String>,
    /// 126 or 127, if the program was the reason.
    pub program_code: Option<u8>,
    /// The failure came after the gate.
    pub started: bool,
}

impl Outcome {
    /// What a successful process printed.
    #[track_caller]
    pub fn output(&self) -> &str {
        assert_eq!((self.code, self.error.as_deref()), (0, None), "{self:?}");
        &self.stdout
    }

    #[track_caller]
    pub fn failure(&self) -> &str {
        self.error
            .as_deref()
            .unwrap_or_else(|| panic!("it did not fail: {self:?}"))
    }
}

/// Where cgroup v2 is mounted here: somewhere else on a host with both versions.
pub fn cgroup_root() -> &'static Path {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.join("cgroup.procs").exists() {
        hybrid
    } else {
        Path::new("/sys/fs/cgroup")
    }
}

/// A name that no other test of this or another run has.
pub fn unique_id() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "t{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The test's ends of three pipes.
pub struct Ends {
    pub stdin: File,
    pub stdout: File,
    pub stderr: File,
}

pub fn pipes() -> (Io, Ends) {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
    let ((stdin, feed), (out, stdout), (err, stderr)) = (pipe(), pipe(), pipe());
    let ends = Ends {
        stdin: feed.into(),
        stdout: out.into(),
        stderr: err.into(),
    };
    (
        Io::Pipes {
            stdin,
            stdout,
            stderr,
        },
        ends,
    )
}

pub fn parse(spec: Value) -> Spec {
    serde_json::from_value(spec).expect("the test's specification is well-formed")
}

pub fn create(spec: Value, rootfs: &Path, io: Io) -> Result<(Container, Child), ContainerError> {
    let bundle = Path::new("/bundle");
    Container::create_below(
        cgroup_root(),
        &unique_id(),
        &parse(spec),
        rootfs,
        bundle,
        &io,
    )
}

/// Reads the status pipe up to ready or to its end.
///
/// A process without a gate is ready as soon as it is there.
pub fn wait_ready(child: &Child) -> Result<Reports, Option<Failure>> {
    let mut reports = Reports::default();
    if child.gate.is_none() {
        return Ok(reports);
    }
    let mut buffer = [0; 4096];
    loop {
        let len = rustix::io::read(&child.status, &mut buffer).unwrap();
        if len == 0 {
            return Err(reports.end());
        }
        if reports.push(&buffer[..len]) {
            return Ok(reports);
        }
    }
}

/// Opens the gate; returns the failure of `execve`, if there was one.
pub fn start(child: Child, mut reports: Reports) -> Option<Failure> {
    if let Some(gate) = &child.gate {
        rustix::io::write(gate, b"g").unwrap();
    }
    let mut rest = Vec::new();
    File::from(child.status).read_to_end(&mut rest).unwrap();
    reports.push(&rest);
    reports.end()
}

/// Waits for a child of this process: exit code, or minus the signal.
pub fn reap(pid: Pid) -> i32 {
    match waitpid(pid, None).unwrap() {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => -(signal as i32),
        status => panic!("{status:?}"),
    }
}

/// Takes a created process through its life with empty input.
pub fn finish(child: Child, ends: Ends) -> Outcome {
    let pid = child.pid;
    let Ends {
        stdin,
        mut stdout,
        mut stderr,
    } = ends;
    drop(stdin);
    let mut outcome = Outcome::default();
    let failure = match wait_ready(&child) {
        Ok(reports) => {
            outcome.started = true;
            start(child, reports)
        }
        Err(failure) => Some(failure.expect("the child died without a word")),
    };
    stdout.read_to_string(&mut outcome.stdout).unwrap();
    stderr.read_to_string(&mut outcome.stderr).unwrap();
    outcome.code = reap(pid);
    if let Some(error) = failure.map(ContainerError::from) {
        outcome.program_code = error.exit_code();
        outcome.error = Some(error.to_string());
    }
    outcome
}

/// A whole container: created, started, waited for, destroyed.
pub fn run_in(rootfs: &Path, spec: Value) -> Outcome {
    let (io, ends) = pipes();
    match create(spec, rootfs, io) {
        Ok((container, child)) => {
            let outcome = finish(child, ends);
            container.destroy().unwrap();
            outcome
        }
        Err(error) => Outcome {
            error: Some(error.to_string()),
            program_code: error.exit_code(),
            ..Outcome::default()
        },
    }
}

/// [`run_in`] a new root file system, in a process of its own.
pub fn run(spec: Value) -> Outcome {
    let rootfs = rootfs();
    isolated(|| run_in(rootfs.path(), spec))
}

/// A container whose init process sleeps, for tests of what can be done to it.
pub struct Sleeper {
    pub container: Container,
    pub pid: Pid,
    ends: Ends,
    _status: OwnedFd,
}

impl Sleeper {
    pub fn start(rootfs: &Path, spec: Value) -> Self {
        let (io, ends) = pipes();
        let (container, child) = create(spec, rootfs, io).unwrap();
        let pid = child.pid;
        let reports = wait_ready(&child).unwrap();
        let status = child.status.try_clone().unwrap();
        assert_eq!(start(child, reports), None);
        Self {
            container,
            pid,
            ends,
            _status: status,
        }
    }

    /// [`Self::start`], and waits until the process has printed something.
    pub fn start_and_wait(rootfs: &Path, spec: Value) -> Self {
        let sleeper = Self::start(rootfs, spec);
        wait_readable(&sleeper.ends.stdout);
        sleeper
    }

    /// Runs a further process and waits for it.
    pub fn exec(&self, process: Value) -> Outcome {
        let (io, ends) = pipes();
        let process: Process = serde_json::from_value(process).unwrap();
        match self.container.exec(&process, io) {
            Ok(child) => finish(child, ends),
            Err(error) => Outcome {
                error: Some(error.to_string()),
                ..Outcome::default()
            },
        }
    }

    /// Readable when the init process is dead.
    pub fn pidfd(&self) -> impl AsFd {
        self.container.pidfd.as_fd()
    }

    pub fn kill(self) -> i32 {
        self.container
            .signal_all(nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        let code = reap(self.pid);
        self.container.destroy().unwrap();
        code
    }
}

/// Sleeps for longer than any test takes.
pub fn sleeping() -> Value {
    spec(&["sleep", "1000"])
}

/// Waits until `fd` can be read; panics if that takes too long to be meant.
pub fn wait_readable(fd: impl AsFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(
        poll(&mut fds, Some(&limit)).unwrap(),
        1,
        "nothing to read in 20 s"
    );
}

/// The path of a fresh directory outside any root file system.
pub fn outside() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o755);
    let path = dir.path().to_owned();
    (dir, path)
}
