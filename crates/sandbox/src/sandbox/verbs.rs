//! The verbs on a container that exists.

use super::*;

impl Sandbox {
    /// Announces a further process; [`Self::start`] creates it.
    ///
    /// # Errors
    /// A name in use, or a container that does not run.
    pub fn exec(
        &self,
        id: &str,
        exec_id: &str,
        spec: Vec<u8>,
        stdio: Stdio,
    ) -> Result<(), SandboxError> {
        let init = self.process(id, "")?;
        // As runc: the container is there as soon as it is created.
        if !matches!(init.status(), Status::Created | Status::Running) {
            return Err(self.wrong_state("exec in", init.status()));
        }
        let mut processes = lock(&self.processes);
        if exec_id.is_empty() || processes.contains_key(exec_id) {
            let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
            return Err(SandboxError::ProcessExists { id, exec_id });
        }
        let process = Process::new(exec_id, stdio, spec);
        processes.insert(exec_id.to_owned(), Arc::new(process));
        Ok(())
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// When there is no such process.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<Exit, SandboxError> {
        Ok(self.process(id, exec_id)?.wait().await)
    }

    /// Delivers a signal. SIGKILL to the init process ends the machine if the guest does not react.
    ///
    /// # Errors
    /// When the process has ended or the agent cannot deliver it.
    pub async fn kill(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), SandboxError> {
        const SIGKILL: u32 = 9;
        let process = self.process(id, exec_id)?;
        if process.status() == Status::Stopped {
            return Err(self.wrong_state("kill", Status::Stopped));
        }
        let (vm, _) = self.machine().await?;
        let request = messages::SignalRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        let call = vm.agent.signal(Context::default(), &request);
        let call = self.ask(&vm, "signal the process", call);
        match tokio::time::timeout(KILL_TIMEOUT, call).await {
            Ok(answer) => {
                answer?;
                if exec_id.is_empty() && process.status() == Status::Created {
                    self.follow_created(vm, process);
                }
                Ok(())
            }
            Err(_elapsed) if signal == SIGKILL && exec_id.is_empty() => {
                vm.kill().await;
                Ok(())
            }
            Err(_elapsed) => Err(SandboxError::Unanswered {
                step: "deliver the signal",
                seconds: KILL_TIMEOUT.as_secs(),
            }),
        }
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// When there is no such process or the agent refuses.
    pub async fn resize(
        &self,
        id: &str,
        exec_id: &str,
        columns: u32,
        rows: u32,
    ) -> Result<(), SandboxError> {
        let process = self.process(id, exec_id)?;
        if process.status() == Status::Creating {
            // Its terminal will be made with that size.
            process.set_size(columns, rows);
            return Ok(());
        }
        let (vm, _) = self.machine().await?;
        let request = messages::ResizeRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            columns,
            rows,
            ..Default::default()
        };
        let call = vm.agent.resize_terminal(Context::default(), &request);
        self.ask(&vm, "resize the terminal", call).await.map(|_| ())
    }

    /// Freezes (or thaws) the container.
    ///
    /// # Errors
    /// When it is in no state for it, or the agent refuses.
    pub async fn pause(&self, id: &str, thaw: bool) -> Result<(), SandboxError> {
        let init = self.process(id, "")?;
        let _one_at_a_time = self.verb.lock().await;
        let now = init.status();
        let (verb, possible) = if thaw {
            ("resume", now == Status::Paused)
        } else {
            ("pause", matches!(now, Status::Created | Status::Running))
        };
        if !possible {
            return Err(self.wrong_state(verb, now));
        }
        let (vm, _) = self.machine().await?;
        let request = messages::ContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let context = Context::default();
        if thaw {
            self.ask(&vm, verb, vm.agent.resume(context, &request))
                .await?;
        } else {
            self.ask(&vm, verb, vm.agent.pause(context, &request))
                .await?;
        }
        let to = if thaw {
            init.before_pause()
        } else {
            Status::Paused
        };
        init.set_status(to);
        self.update(|state| state.status = to)
    }

    /// The container's processes as the guest sees them.
    ///
    /// # Errors
    /// When the container has ended or the agent does not answer.
    pub async fn processes(&self, id: &str) -> Result<Vec<messages::Process>, SandboxError> {
        let init = self.process(id, "")?;
        if init.status() == Status::Stopped {
            return Err(self.wrong_state("list the processes of", Status::Stopped));
        }
        let (vm, _) = self.machine().await?;
        let request = messages::ContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = vm.agent.processes(Context::default(), &request);
        Ok(self.ask(&vm, "list the processes", call).await?.processes)
    }

    /// A process and its state, for `state`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn look_up(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, SandboxError> {
        self.process(id, exec_id)
    }
}
