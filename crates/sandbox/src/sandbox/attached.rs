//! Processes somebody stands in for on the host.

use super::*;
use crate::channel::Stream;
use crate::standin::{Life, Report};
use crate::stdio::StdioError;

/// How long an exec'd process's streams may stay open after its end, because of children it left
/// behind, before its stand-in ends without them.
const LATE_OUTPUT: Duration = Duration::from_secs(1);

impl Sandbox {
    /// Keeps the stand-in and the streams of a process that is about to be asked for.
    pub fn attach(&self, exec_id: String, attachment: Attachment) {
        lock(&self.attachments).insert(exec_id, attachment);
    }

    /// The PID an engine is told for the container.
    pub(super) fn engine_pid(&self) -> u32 {
        let init = lock(&self.processes).get("").cloned();
        init.and_then(|process| process.standin())
            .or(self.request.standin)
            .unwrap_or_else(std::process::id)
    }

    /// The PID an engine is told for a process in the guest; 0 if nothing stands in for it on the host
    /// although the container is an engine's.
    pub(crate) fn host_pid(&self, process: &messages::Process) -> u32 {
        if self.request.standin.is_none() {
            return process.pid;
        }
        let processes = lock(&self.processes);
        // Only the first process of the container was not made by an exec and is known by its PID.
        let known = processes
            .get(&process.exec_id)
            .filter(|known| known.pid() == process.pid);
        known.and_then(|known| known.standin()).unwrap_or(0)
    }

    /// Announces the streams of a process to the device process: FIFOs a client made, or what came
    /// with its stand-in, which is followed from here on.
    pub(super) fn attach_streams(
        self: &Arc<Self>,
        vm: &Vm,
        process: &Arc<Process>,
    ) -> Result<(messages::Stdio, Vec<Stream>), SandboxError> {
        let terminal = process.stdio.terminal;
        if !process.stdio.is_attached() {
            let streams = process.stdio.open()?;
            return Ok(stdio::announce(streams, terminal, &vm.channel)?);
        }
        let attachment = lock(&self.attachments)
            .remove(&process.exec_id)
            .ok_or(StdioError::NothingAttached)?;
        let life = Arc::new(Life::new(attachment.life).map_err(StdioError::Announce)?);
        process.set_standin(attachment.pid, life.clone());
        self.follow_standin(process.clone(), life);
        Ok(stdio::announce(attachment.streams, terminal, &vm.channel)?)
    }

    /// What is done to the stand-in is done to the process.
    fn follow_standin(self: &Arc<Self>, process: Arc<Process>, life: Arc<Life>) {
        let sandbox = self.clone();
        tokio::spawn(async move {
            let (id, exec_id) = (sandbox.request.id.to_string(), process.exec_id.clone());
            while let Some(report) = life.report().await {
                let done = match report {
                    Report::Signal(number) => sandbox.kill(&id, &exec_id, number, false).await,
                    Report::Resize { columns, rows } => {
                        sandbox.resize(&id, &exec_id, columns, rows).await
                    }
                };
                if let Err(error) = done {
                    // Most likely the process has just ended.
                    tracing::debug!("{}", crate::error::chain(&error));
                }
            }
            if process.exit.borrow().is_some() {
                return;
            }
            const SIGKILL: u32 = 9;
            if exec_id.is_empty() {
                sandbox.shutdown().await;
            } else if let Err(error) = sandbox.kill(&id, &exec_id, SIGKILL, false).await {
                tracing::debug!("{}", crate::error::chain(&error));
            }
        });
    }

    /// Lets the stand-in of an exec'd process end once its output is out.
    pub(super) async fn release_exec(&self, process: &Process) {
        if process.standin().is_none() {
            return;
        }
        let streams = process.take_streams();
        let closed = async {
            for mut stream in streams {
                stream.closed().await;
            }
        };
        // Children of the process may keep its streams for ever.
        let _ = tokio::time::timeout(LATE_OUTPUT, closed).await;
        process.release();
    }
}
