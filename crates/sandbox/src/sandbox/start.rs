//! `start`: a created process runs, and is followed to its end.

use bulkhead_network::Watch;

use super::*;

impl Sandbox {
    /// Lets a created process run. Returns the PID the engine sees.
    ///
    /// # Errors
    /// Among others the agent's, when the program cannot be executed.
    pub async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, SandboxError> {
        let process = self.process(id, exec_id)?;
        let one_at_a_time = self.verb.lock().await;
        let (vm, plan) = self.machine().await?;
        if !exec_id.is_empty() {
            let pid = self.exec_in_guest(&vm, &process).await?;
            process.set_status(Status::Running);
            self.follow(vm, process.clone());
            return Ok(process.standin().unwrap_or(pid));
        }
        if process.status() != Status::Created {
            return Err(self.wrong_state("start", process.status()));
        }
        let began = now_ns();
        let changes = match self.start_in_guest(&vm, &plan).await {
            Ok(changes) => changes,
            Err(error) => {
                self.start_failed(&error).await;
                process.ended(Exit {
                    code: VM_DIED,
                    at_ns: 0,
                    oom_killed: false,
                    signal: 0,
                });
                return Err(error);
            }
        };
        process.set_status(Status::Running);
        self.span(Actor::Host, "start the program", began);
        self.update(|state| state.status = Status::Running)?;
        if let Some(changes) = changes {
            self.follow_network(&vm, &plan, &process, changes);
        }
        self.follow(vm, process);
        // A hook may call for a verb of its own.
        drop(one_at_a_time);
        if let Err(error) = self.hooks_of_start(&plan).await {
            const SIGKILL: u32 = 9;
            // Unless it has ended already.
            let _ = self.kill(id, "", SIGKILL, false).await;
            return Err(error);
        }
        Ok(self.engine_pid())
    }

    /// Returns what is told of changes of the container's network from now on.
    async fn start_in_guest(&self, vm: &Vm, plan: &Plan) -> Result<Option<Watch>, SandboxError> {
        let changes = self.complete_network(vm, plan).await?;
        let request = self.process_request("");
        let call = vm.agent.start(Context::default(), &request);
        self.ask(vm, "start the process", call).await?;
        Ok(changes)
    }

    /// Starts a further process; returns its PID in the guest.
    async fn exec_in_guest(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        process: &Arc<Process>,
    ) -> Result<u32, SandboxError> {
        if process.status() != Status::Creating {
            return Err(self.wrong_state("start", process.status()));
        }
        let attached = self.attach_streams(vm, process);
        let (mut ports, streams) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                process.ended(Exit {
                    code: VM_DIED,
                    at_ns: 0,
                    oom_killed: false,
                    signal: 0,
                });
                self.forget_exec(process);
                return Err(self.or_end(vm, error).await);
            }
        };
        (ports.columns, ports.rows) = process.size();
        let request = messages::ExecRequest {
            container_id: self.request.id.to_string(),
            exec_id: process.exec_id.clone(),
            process_json: process.spec.clone(),
            stdio: Some(ports).into(),
            ..Default::default()
        };
        let call = vm.agent.exec(Context::default(), &request);
        match self.ask(vm, "start the process", call).await {
            Ok(response) => {
                process.created(response.pid, streams);
                Ok(response.pid)
            }
            Err(error) => {
                streams
                    .iter()
                    .for_each(|stream| vm.channel.cancel(stream.port));
                process.ended(Exit {
                    code: VM_DIED,
                    at_ns: 0,
                    oom_killed: false,
                    signal: 0,
                });
                self.forget_exec(process);
                Err(error)
            }
        }
    }

    pub(super) fn process_request(&self, exec_id: &str) -> messages::ProcessRequest {
        messages::ProcessRequest {
            container_id: self.request.id.to_string(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        }
    }

    /// Waits in the background for the end of a running process.
    fn follow(self: &Arc<Self>, vm: Arc<Vm>, process: Arc<Process>) {
        let sandbox = self.clone();
        tokio::spawn(async move {
            let request = sandbox.process_request(&process.exec_id);
            let call = vm.agent.wait(Context::default(), &request);
            match sandbox.ask(&vm, "wait for the process", call).await {
                Ok(response) => {
                    sandbox
                        .process_ended(&vm, &process, exit_of(&response))
                        .await
                }
                Err(SandboxError::Ended(failure)) => sandbox.machine_ended(failure),
                Err(error) => sandbox.machine_ended(Failure {
                    cause: crate::error::chain(&error),
                    evidence: Vec::new(),
                    fix: "See `bulkhead logs`".into(),
                }),
            }
        });
    }

    /// Waits in the background for the end of a container whose program was never started, which was
    /// sent a signal.
    pub(super) fn follow_created(self: &Arc<Self>, vm: Arc<Vm>, process: Arc<Process>) {
        let sandbox = self.clone();
        tokio::spawn(async move {
            let request = sandbox.process_request(&process.exec_id);
            let call = vm.agent.wait(Context::default(), &request);
            // The machine's end is seen elsewhere.
            let Ok(response) = sandbox.ask(&vm, "wait for the process", call).await else {
                return;
            };
            let one_at_a_time = sandbox.verb.lock().await;
            // If it was started in the meantime, it is followed already.
            let ended = process.status() == Status::Created;
            drop(one_at_a_time);
            if ended {
                sandbox
                    .process_ended(&vm, &process, exit_of(&response))
                    .await;
            }
        });
    }

    async fn process_ended(self: &Arc<Self>, vm: &Arc<Vm>, process: &Arc<Process>, exit: Exit) {
        if !process.exec_id.is_empty() {
            process.ended(exit);
            self.release_exec(process).await;
            return;
        }
        self.update_or_log(|state| {
            state.status = Status::Stopped;
            state.exit.get_or_insert(exit.clone());
        });
        if exit.oom_killed && process.standin().is_some() {
            self.tell_podman_of_oom();
        }
        process.ended(exit);
        // Whoever reads the streams gets all of it before the machine goes.
        for mut stream in process.take_streams() {
            tokio::select! {
                () = stream.closed() => {}
                _ = vm.failure() => {}
            }
        }
        self.release_init(process);
        self.tear_down(vm).await;
        self.finish_unless_held().await;
    }

    /// conmon watches the container's control group on the host, which does not run out of memory, and then
    /// leaves a file with this name in the bundle, where Podman looks for it once the container has ended.
    fn tell_podman_of_oom(&self) {
        let file = self.request.bundle.join("oom");
        if let Err(error) = std::fs::File::create(&file) {
            tracing::warn!("Failed to make {}: {error}", file.display());
        }
    }
}
