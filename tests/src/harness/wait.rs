//! Waiting for events, each with a limit that only a hang reaches.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Set as soon as a test of this process runs where guest kernels are interpreted.
static SLOW: AtomicBool = AtomicBool::new(false);

/// How long anything may take. Emulated machines on two busy cores are slow; nothing here measures.
#[must_use]
pub fn limit() -> Duration {
    Duration::from_secs(if SLOW.load(Ordering::Relaxed) {
        400
    } else {
        90
    })
}

/// Makes [`limit`] longer, for all tests of this process.
pub fn be_patient() {
    SLOW.store(true, Ordering::Relaxed);
}

/// Waits until `fd` has something to read, or ended. False when `until` passed first.
///
/// # Panics
/// When it cannot be waited for.
#[must_use]
pub fn readable(fd: BorrowedFd<'_>, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// A descriptor that becomes readable when process `pid` has ended; `None` when there is none.
///
/// # Panics
/// On a number no process can have.
#[must_use]
pub fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits until process `pid` has ended.
///
/// # Panics
/// When it has not after [`limit`].
pub fn gone(pid: u32) {
    let Some(fd) = pidfd(pid) else { return };
    assert!(
        readable(fd.as_fd(), Instant::now() + limit()),
        "process {pid} did not end"
    );
}

/// Waits until a file exists, in a directory that does.
///
/// # Panics
/// When it does not after [`limit`].
pub fn exists(path: &Path) {
    until_changed(path.parent().unwrap(), || path.exists());
}

/// Waits until something is true that becomes true by a change below directory `dir` (not in
/// directories of it): looks again after each change.
///
/// # Panics
/// When it is not after [`limit`].
pub fn until_changed(dir: &Path, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + limit();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let events = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&watch, dir, events).unwrap();
    let mut buffer = [0_u8; 4096];
    while !reached() {
        assert!(
            readable(watch.as_fd(), end),
            "nothing more happened in {}",
            dir.display()
        );
        match rustix::io::read(&watch, &mut buffer) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("inotify: {}", io::Error::from(error)),
        }
    }
}

/// The name of a process, from `/proc`; empty when there is none.
#[must_use]
pub fn command_name(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// The version of the running host kernel.
#[must_use]
pub fn host_kernel() -> String {
    let uname = rustix::system::uname();
    let release: &CStr = uname.release();
    release.to_string_lossy().into_owned()
}
