//! A process the host asked for: from creation over its gate to its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bulkhead_agent_api::messages::Span;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::watch;

use crate::container::{Child, Failure, FailureKind, Reports};
use crate::reaper::Exited;
use crate::watched::{self, Watched};

/// The end of a process, complete with its output.
#[derive(Clone, Debug)]
pub struct End {
    /// How it ended.
    pub exited: Exited,
    /// Whether the memory controller killed a process of its container.
    pub oom_killed: bool,
    /// What happened around the end.
    pub spans: Vec<Span>,
}

/// What can go wrong with a process as such.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It was started before.
    #[error("The process was started already")]
    Started,
    /// It has ended.
    #[error("The process has ended")]
    Ended,
    /// It was made without one.
    #[error("The process has no terminal")]
    NoTerminal,
    /// The kernel refused.
    #[error("Cannot {what} process {pid}")]
    System {
        /// A verb.
        what: &'static str,
        /// In the guest's root PID namespace.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// How far a process is on the way to its program.
#[derive(Debug)]
enum Stage {
    /// Set up, waiting at its gate.
    Created(Way),
    /// Its program was or is being executed, or failed to be.
    Started,
}

/// The agent's ends of the pipes to a process on its way.
#[derive(Debug)]
pub struct Way {
    status: Watched,
    /// None of a further process, which does not wait.
    gate: Option<OwnedFd>,
    reports: Reports,
}

/// A process the host asked for.
#[derive(Debug)]
pub struct Process {
    /// In the guest's root PID namespace.
    pub pid: i32,
    stage: Mutex<Stage>,
    terminal: Weak<Watched>,
    exited: watch::Receiver<Option<Exited>>,
    end: watch::Receiver<Option<End>>,
}

impl Way {
    /// Takes the pipes out of a child.
    ///
    /// # Errors
    /// When the event loop cannot watch one more descriptor.
    pub fn new(child: Child) -> io::Result<Self> {
        let status = watched::readable(child.status)?;
        Ok(Self {
            status,
            gate: child.gate,
            reports: Reports::default(),
        })
    }

    /// Waits until the process stands at its gate.
    ///
    /// # Errors
    /// What the process says went wrong, or that it ended without a word.
    pub async fn ready(mut self) -> Result<Self, Failure> {
        loop {
            match self.next().await {
                Some(true) => return Ok(self),
                Some(false) => {}
                None => {
                    return Err(self.reports.end().unwrap_or_else(|| Failure {
                        kind: FailureKind::SetUp,
                        step: "set the process up: it was killed on its way".to_owned(),
                        errno: 0,
                        field: None,
                    }));
                }
            }
        }
    }

    /// Opens the gate, if there is one, and waits until the program runs or the process is no more.
    ///
    /// # Errors
    /// What the process says went wrong.
    pub async fn go(mut self) -> Result<(), Failure> {
        if let Some(gate) = &self.gate
            && let Err(error) = rustix::io::write(gate, &[1])
        {
            return Err(Failure {
                kind: FailureKind::SetUp,
                step: "start the process: it is no longer there".to_owned(),
                errno: error.raw_os_error(),
                field: None,
            });
        }
        while self.next().await.is_some() {}
        self.reports.end().map_or(Ok(()), Err)
    }

    /// Takes what the process says next; whether it said that it is ready. `None` at the end.
    async fn next(&mut self) -> Option<bool> {
        let mut buffer = [0_u8; 512];
        loop {
            let mut ready = self.status.readable().await.ok()?;
            let count = match rustix::io::read(self.status.get_ref(), &mut buffer) {
                Ok(0) => return None,
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return None,
            };
            // The pipe blocks: without a further event there is nothing to read.
            ready.clear_ready();
            return Some(self.reports.push(buffer.get(..count).unwrap_or_default()));
        }
    }
}

impl Process {
    /// A process that stands at its gate, or one that is past it.
    pub fn new(
        pid: i32,
        way: Option<Way>,
        terminal: Option<&Arc<Watched>>,
        exited: watch::Receiver<Option<Exited>>,
        end: watch::Receiver<Option<End>>,
    ) -> Self {
        let terminal = terminal.map(Arc::downgrade).unwrap_or_default();
        Self {
            pid,
            stage: Mutex::new(way.map_or(Stage::Started, Stage::Created)),
            terminal,
            exited,
            end,
        }
    }

    /// Lets the process run its program; returns when that succeeded or failed.
    ///
    /// # Errors
    /// [`ProcessError::Started`] the second time; inside, why the program does not run.
    pub async fn start(&self) -> Result<Result<(), Failure>, ProcessError> {
        let stage = std::mem::replace(
            &mut *self.stage.lock().unwrap_or_else(PoisonError::into_inner),
            Stage::Started,
        );
        match stage {
            Stage::Created(way) => Ok(way.go().await),
            Stage::Started => Err(ProcessError::Started),
        }
    }

    /// Waits for the end of the process and of its output.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] if its supervision ended without one, as at the guest's end.
    pub async fn wait(&self) -> Result<End, ProcessError> {
        let mut end = self.end.clone();
        let end = end
            .wait_for(Option::is_some)
            .await
            .map_err(|_| ProcessError::Ended)?;
        end.clone().ok_or(ProcessError::Ended)
    }

    /// Waits for the end of the process alone, whatever becomes of its output.
    pub async fn exited(&self) {
        // The sender goes with the reaper, that is, with the guest.
        let _ = self.exited.clone().wait_for(Option::is_some).await;
    }

    /// Whether it has ended and its output was handed over.
    pub fn ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Sends a signal by number, 0 to test.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] once it is gone, [`ProcessError::System`] otherwise.
    pub fn signal(&self, number: i32) -> Result<(), ProcessError> {
        if self.exited.borrow().is_some() {
            return Err(ProcessError::Ended);
        }
        send_signal(self.pid, number).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => ProcessError::Ended,
            _ => self.system("signal", error),
        })
    }

    /// Gives the terminal a new size; its foreground processes get `SIGWINCH`.
    ///
    /// # Errors
    /// [`ProcessError::NoTerminal`], also when it is closed already.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), ProcessError> {
        let terminal = self.terminal.upgrade().ok_or(ProcessError::NoTerminal)?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal.as_fd(), size)
            .map_err(|error| self.system("resize the terminal of", error.into()))
    }

    fn system(&self, what: &'static str, source: io::Error) -> ProcessError {
        ProcessError::System {
            what,
            pid: self.pid,
            source,
        }
    }
}

/// Sends signal `number`, also a real-time one, to a process.
///
/// # Errors
/// The kernel's, `ESRCH` if there is no such process.
pub fn send_signal(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: `kill` takes two numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, number) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
