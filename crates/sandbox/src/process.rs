//! A process of the container as the host sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_agent_api::messages;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::channel::Stream;
use crate::standin::{End, Life};
use crate::state::{Exit, Status};
use crate::stdio::Stdio;

/// The container's init process, or one started by exec.
#[derive(Debug)]
pub struct Process {
    /// Empty for the init process.
    pub exec_id: String,
    /// What the client wants its streams joined to.
    pub stdio: Stdio,
    /// The OCI process object of an exec, until it is created in the guest.
    pub spec: Vec<u8>,
    /// Set once, when the process has ended.
    pub exit: watch::Sender<Option<Exit>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: Status,
    before: Status,
    pid: u32,
    size: (u32, u32),
    streams: Vec<Stream>,
    standin: Option<(u32, Arc<Life>)>,
}

impl Process {
    /// A process that does not exist in the guest yet.
    #[must_use]
    pub fn new(exec_id: &str, stdio: Stdio, spec: Vec<u8>) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            stdio,
            spec,
            exit: watch::channel(None).0,
            inner: Mutex::new(Inner {
                status: Status::Creating,
                before: Status::Creating,
                pid: 0,
                size: (0, 0),
                streams: Vec::new(),
                standin: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        if self.exit.borrow().is_some() {
            Status::Stopped
        } else {
            self.lock().status
        }
    }

    /// Notes a change of state.
    pub fn set_status(&self, status: Status) {
        let mut inner = self.lock();
        inner.before = inner.status;
        inner.status = status;
    }

    /// Where it stood when it was paused.
    #[must_use]
    pub fn before_pause(&self) -> Status {
        self.lock().before
    }

    /// PID in the guest, 0 before it is created.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.lock().pid
    }

    /// Columns and rows its terminal is to be made with; 0 for unknown.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        self.lock().size
    }

    /// Notes the size of a terminal that is still to be made.
    pub fn set_size(&self, columns: u32, rows: u32) {
        self.lock().size = (columns, rows);
    }

    /// Notes that the guest has created it.
    pub fn created(&self, pid: u32, streams: Vec<Stream>) {
        let mut inner = self.lock();
        inner.pid = pid;
        inner.streams = streams;
        inner.status = Status::Created;
    }

    /// Hands out the streams, for waiting until they are over.
    #[must_use]
    pub fn take_streams(&self) -> Vec<Stream> {
        std::mem::take(&mut self.lock().streams)
    }

    /// Notes the end, unless one is known already.
    pub fn ended(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(exit);
            }
            first
        });
    }

    /// A process on the host stands in for it.
    pub fn set_standin(&self, pid: u32, life: Arc<Life>) {
        self.lock().standin = Some((pid, life));
    }

    /// PID of the stand-in, if there is one.
    #[must_use]
    pub fn standin(&self) -> Option<u32> {
        self.lock().standin.as_ref().map(|(pid, _)| *pid)
    }

    /// Lets the stand-in end as the process did. Call it when the output has been handed on: the
    /// engine takes the stand-in's end for the end of everything.
    pub fn release(&self) {
        let exit = self.exit.borrow().clone();
        let standin = self.lock().standin.take();
        if let (Some((pid, life)), Some(exit)) = (standin, exit) {
            match exit.signal {
                0 => life.end(End::Code(exit.code)),
                // The first process of a PID namespace cannot do that to itself.
                SIGKILL if kill(pid) => {}
                signal => life.end(End::Signal(signal)),
            }
        }
    }

    /// Waits until the process has ended.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let known = exit.wait_for(Option::is_some).await;
        match known.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            // We hold the sender; this arm exists for the type only.
            Ok(None) | Err(_) => Exit {
                code: 255,
                at_ns: 0,
                oom_killed: false,
                signal: 0,
            },
        }
    }
}

const SIGKILL: u32 = 9;

/// Kills a stand-in, which is there as long as it was not told its end.
fn kill(standin: u32) -> bool {
    let pid = i32::try_from(standin).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

/// Turns the agent's answer into ours.
#[must_use]
pub fn exit_of(response: &messages::ExitResponse) -> Exit {
    Exit {
        code: response.exit_code,
        signal: response.signal,
        at_ns: response.exited_at_ns,
        oom_killed: response.oom_killed,
    }
}
