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
