//! PID 1 reaps: its own children, whose ends others wait for, and orphans, whose ends nobody does.
//!
//! Nothing is reaped outside of [`Reaper::run`], and that runs only when the event loop does. A
//! child is therefore still there, at worst as a zombie, as long as the code that made it has not
//! waited for something: register first, then wait.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::sync::watch;

use crate::clock;
use crate::watched;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Exit code, or 128 + signal.
    pub code: u32,
    /// The signal that ended it, 0 for none.
    pub signal: u32,
    /// Guest `CLOCK_REALTIME`, nanoseconds.
    pub at_ns: u64,
    /// Guest `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
}

/// The processes somebody waits for.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: Mutex<BTreeMap<i32, watch::Sender<Option<Exited>>>>,
}

/// The end of the children as a file descriptor.
#[derive(Debug)]
pub struct ChildSignals(OwnedFd);

impl ChildSignals {
    /// Blocks `SIGCHLD` for this process and turns it into something to wait on.
    ///
    /// Children inherit the blocked signal and have to unblock it.
    pub fn subscribe() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&set, flags)?.into()))
    }
}

impl Reaper {
    /// Asks to be told how `pid`, a child of this process that nobody has reaped, ends.
    ///
    /// To be called before the first wait after the child was made. The value is set at the moment
    /// at which the number `pid` becomes free for another process.
    pub fn register(&self, pid: i32) -> watch::Receiver<Option<Exited>> {
        let (sender, receiver) = watch::channel(None);
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, sender);
        receiver
    }

    /// Reaps for ever.
    ///
    /// # Errors
    /// Returns only if the kernel breaks its word on a signalfd or on `wait4`.
    pub async fn run(&self, signals: ChildSignals) -> io::Result<()> {
        let signals = watched::readable(signals.0)?;
        let mut pending = [0_u8; size_of::<libc::signalfd_siginfo>()];
        loop {
            let mut ready = signals.readable().await?;
            // One read takes the pending signal off; what came meanwhile makes a new event.
            match rustix::io::read(signals.get_ref(), &mut pending) {
                Ok(_) | Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
            self.reap_all()?;
        }
    }

    /// Reaps everything that is dead now.
    fn reap_all(&self) -> io::Result<()> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.tell(pid.as_raw_nonzero().get(), status),
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn tell(&self, pid: i32, status: WaitStatus) {
        let waiting = self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pid);
        if let Some(sender) = waiting {
            sender.send_replace(Some(exited(status)));
        }
    }
}

fn exited(status: WaitStatus) -> Exited {
    let number = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
    let signal = number(status.terminating_signal()).unwrap_or(0);
    let code = match signal {
        0 => number(status.exit_status()).unwrap_or(0),
        signal => signal.saturating_add(128),
    };
    Exited {
        code,
        signal,
        at_ns: clock::realtime_ns(),
        monotonic_ns: clock::monotonic_ns(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;

    /// Set in the process that runs one test alone.
    const ALONE: &str = "BULKHEAD_TEST_ALONE";

    /// The reaper takes every child of its process, also those of other tests: such tests run alone
    /// in a process of their own, which is this test binary once more. All its threads have
    /// `SIGCHLD` blocked, as the agent's only one has.
    fn alone(name: &str, test: impl AsyncFnOnce(Arc<Reaper>)) {
        if std::env::var_os(ALONE).is_some() {
            return run(test);
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([&format!("reaper::tests::{name}"), "--exact"])
            .env(ALONE, "1");
        let block = || {
            let mut set = SigSet::empty();
            set.add(Signal::SIGCHLD);
            Ok(set.thread_block()?)
        };
        // SAFETY: changing the signal mask is allowed between fork and exec.
        let output = unsafe { command.pre_exec(block) }.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    /// Forks a child that runs `child` and leaves with the code it returns.
    fn fork(child: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child makes system calls only and leaves without returning.
        match unsafe { libc::fork() } {
            0 => {
                let code = child();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(code) }
            }
            pid => pid,
        }
    }

    fn run(test: impl AsyncFnOnce(Arc<Reaper>)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            let reaper = Arc::new(Reaper::default());
            let signals = ChildSignals::subscribe().unwrap();
            let reaping = Arc::clone(&reaper);
            tokio::spawn(async move { reaping.run(signals).await });
            test(reaper).await;
        });
    }

    async fn end(mut exit: watch::Receiver<Option<Exited>>) -> Exited {
        exit.wait_for(Option::is_some).await.unwrap().unwrap()
    }

    /// Returns when `pid` is dead, without reaping it.
    fn wait_until_dead(pid: i32) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
    }

    #[test]
    fn child_that_exits_is_reported_with_its_code() {
        alone(
            "child_that_exits_is_reported_with_its_code",
            async |reaper| {
                let exited = end(reaper.register(fork(|| 42))).await;
                assert_eq!((exited.code, exited.signal), (42, 0));
                assert!(exited.at_ns > 0 && exited.monotonic_ns > 0);
            },
        );
    }

    #[test]
    fn child_that_is_killed_is_reported_with_its_signal() {
        alone(
            "child_that_is_killed_is_reported_with_its_signal",
            async |reaper| {
                // SAFETY: waits for a signal.
                let pid = fork(|| unsafe { libc::pause() });
                let exit = reaper.register(pid);
                crate::process::send_signal(pid, libc::SIGKILL).unwrap();
                let exited = end(exit).await;
                assert_eq!((exited.code, exited.signal), (137, 9));
            },
        );
    }

    #[test]
    fn child_dead_before_registration_is_not_lost() {
        alone(
            "child_dead_before_registration_is_not_lost",
            async |reaper| {
                // Let the reaper reach its first wait.
                tokio::task::yield_now().await;
                let pid = fork(|| 7);
                wait_until_dead(pid);
                assert_eq!(end(reaper.register(pid)).await.code, 7);
            },
        );
    }

    #[test]
    fn orphan_nobody_asked_for_is_reaped() {
        alone("orphan_nobody_asked_for_is_reaped", async |reaper| {
            let me = rustix::process::getpid();
            rustix::process::set_child_subreaper(Some(me)).unwrap();
            let (read, write) = rustix::pipe::pipe().unwrap();
            // The orphan tells its number and leaves.
            let parent = fork(|| {
                fork(|| {
                    // SAFETY: asks for a number.
                    let pid = unsafe { libc::getpid() };
                    rustix::io::write(&write, &pid.to_ne_bytes()).map_or(1, |_| 0)
                });
                0
            });
            drop(write);
            end(reaper.register(parent)).await;
            let mut bytes = [0; 4];
            rustix::io::read(&read, &mut bytes).unwrap();
            let orphan = i32::from_ne_bytes(bytes);
            // Each further child makes a round of reaping, in one of which the orphan goes.
            while crate::process::send_signal(orphan, 0).is_ok() {
                end(reaper.register(fork(|| 0))).await;
            }
        });
    }

    #[test]
    fn many_children_ending_at_once_are_all_reported() {
        alone(
            "many_children_ending_at_once_are_all_reported",
            async |reaper| {
                let exits: Vec<_> = (0..100)
                    .map(|code| reaper.register(fork(|| code)))
                    .collect();
                for (code, exit) in (0..).zip(exits) {
                    assert_eq!(end(exit).await.code, code);
                }
                assert!(reaper.waiting.lock().unwrap().is_empty());
            },
        );
    }
}
