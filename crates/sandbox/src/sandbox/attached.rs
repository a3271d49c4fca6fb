//! Processes somebody stands in for on the host.

use super::*;
use crate::channel::Stream;
use crate::standin::{Life, Report};

/// How long an exec'd process's streams may stay open after its end, because of children it left
/// behind, before its stand-in ends without them.
const LATE_OUTPUT: Duration = Duration::from_secs(1);

impl Sandbox {
    /// Keeps the stand-in and the streams of a process that is about to be asked for.
    pub fn attach(&self, exec_id: String, attachment: Attachment) {
        lock(&self.attachments).insert(exec_id, attachment);
    }

    /// Lets a stand-in go that nobody has asked a process for: its command was killed before.
    pub fn forget_attachment(&self, exec_id: &str) {
        lock(&self.attachments).remove(exec_id);
    }

    /// Ends the container, whose stand-in has ended, unless it has ended before.
    pub async fn standin_ended(&self, pid: u32) {
        let init = lock(&self.processes).get("").cloned();
        let ended = init.is_some_and(|process| process.exit.borrow().is_some());
        if ended || *self.torn_down.borrow() {
            return;
        }
        let failure = Failure {
            cause: format!("The container's stand-in on the host, process {pid}, was killed"),
            evidence: Vec::new(),
            fix: "`bulkhead kill` signals the container; if nobody killed the process: `dmesg` tells of \
                  the host's out-of-memory killer"
                .into(),
        };
        *lock(&self.ending) = Some(failure.clone());
        self.update_or_log(|state| state.failure = Some(failure.clone()));
        self.keep_record(&failure);
        self.shutdown().await;
    }

    /// The PID an engine is told for the container.
    pub(super) fn engine_pid(&self) -> u32 {
        let init = lock(&self.processes).get("").cloned();
        init.and_then(|process| process.standin())
            .or(self.request.standin)
            .unwrap_or_else(std::process::id)
    }

    /// The processes on the host an engine takes for the container's: the stand-ins, the init process's
    /// first; without any the sandbox process.
    #[must_use]
    pub fn host_pids(&self) -> Vec<u32> {
        let mut pids = vec![self.engine_pid()];
        let processes = lock(&self.processes);
        let others = processes
            .values()
            .filter(|process| !process.exec_id.is_empty());
        pids.extend(others.filter_map(|process| process.standin()));
        pids
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
            // That of the init process is watched from the very beginning.
            if exec_id.is_empty() || process.exit.borrow().is_some() {
                return;
            }
            const SIGKILL: u32 = 9;
            if let Err(error) = sandbox.kill(&id, &exec_id, SIGKILL, false).await {
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
        self.forget_exec(process);
    }

    /// Ends the stand-in of an exec'd process that has ended, and keeps nothing of it: whoever wants to
    /// know how it ended asks the stand-in's parent.
    pub(super) fn forget_exec(&self, process: &Process) {
        if process.standin().is_none() {
            return;
        }
        process.release();
        lock(&self.processes).remove(&process.exec_id);
        if let Some(vm) = self.machine_if_up() {
            let request = self.process_request(&process.exec_id);
            // Unless it was never created, or the machine has ended.
            tokio::spawn(async move { vm.agent.delete_exec(Context::default(), &request).await });
        }
    }
}
