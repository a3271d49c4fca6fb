//! `create`: from a booting machine to a container whose program has not been started.

use bulkhead_agent_api::StartFailure;

use super::*;
use crate::network;

impl Sandbox {
    /// Creates the container's init process, up to its exec.
    ///
    /// # Errors
    /// Whatever kept the machine or the container from being made; the sandbox then removes
    /// everything and ends.
    pub async fn create(self: &Arc<Self>, id: &str, stdio: Stdio) -> Result<u32, SandboxError> {
        self.check_id(id)?;
        let _one_at_a_time = self.verb.lock().await;
        if let Some(process) = lock(&self.processes).get("") {
            return Err(self.wrong_state("create", process.status()));
        }
        let process = Arc::new(Process::new("", stdio, Vec::new()));
        let created = self.try_create(&process).await;
        if let Err(error) = &created {
            self.start_failed(error).await;
            process.ended(Exit {
                code: VM_DIED,
                at_ns: epoch_ns(),
                oom_killed: false,
                signal: 0,
            });
            // This process may live on for other containers, its stand-in must not.
            process.release();
        }
        created
    }

    async fn try_create(self: &Arc<Self>, process: &Arc<Process>) -> Result<u32, SandboxError> {
        let (vm, plan) = self.machine().await?;
        let (ports, streams) = self.attach_streams(&vm, process)?;
        let began = now_ns();
        // The network is that of the container that brought the machine.
        let changes = plan.netns.as_ref().map(|_| vm.network_changes());
        let changes = changes.unwrap_or_default();
        let interfaces = changes.iter().map(network::message).collect();
        let request = messages::CreateContainerRequest {
            container_id: self.request.id.to_string(),
            spec_json: plan.guest.spec_json().map_err(PlanError::from)?,
            rootfs: plan.guest.rootfs_target.clone(),
            bundle: plan.bundle.dir.display().to_string(),
            stdio: Some(ports).into(),
            interfaces,
            disks: crate::disks::messages(&plan.disks, &plan.disk_numbers),
            ..Default::default()
        };
        let limit = Duration::from_secs(plan.config.start_timeout_s);
        let call = async {
            let context = Context::default();
            let call = vm.agent.create_container(context, &request);
            tokio::time::timeout(limit, call).await
        };
        let call = async {
            match call.await {
                Ok(answer) => answer.map(Some),
                Err(_elapsed) => Ok(None),
            }
        };
        let answer = match self.ask(&vm, "create the container", call).await {
            Err(error @ SandboxError::Agent(_)) => {
                self.ask_about_guest(&vm, began).await;
                return Err(error);
            }
            answer => answer?,
        };
        let response = answer.ok_or(SandboxError::Silent(plan.config.start_timeout_s))?;
        self.record_guest(&vm, &response, began);
        process.created(response.pid, streams);
        lock(&self.processes).insert(String::new(), process.clone());
        self.update(|state| state.status = Status::Created)?;
        Ok(self.engine_pid())
    }

    /// The guest's steps of a start that failed in the guest.
    async fn ask_about_guest(&self, vm: &Vm, asked_ns: u64) {
        let request = messages::InfoRequest::new();
        let info = vm.agent.info(Context::default(), &request);
        if let Ok(Ok(info)) = tokio::time::timeout(KILL_TIMEOUT, info).await {
            let known = messages::ProcessResponse {
                boot_spans: info.spans,
                kernel_release: info.kernel_release,
                ..Default::default()
            };
            self.record_guest(vm, &known, asked_ns);
        }
    }

    /// Puts the guest's own steps on the host's clock: both know the moment of the call home.
    fn record_guest(&self, vm: &Vm, response: &messages::ProcessResponse, asked_ns: u64) {
        let boot = &response.boot_spans;
        let connected = match *vm.home.state.borrow() {
            PortState::Connected(at_ns) => at_ns,
            PortState::Expected | PortState::Closed => now_ns(),
        };
        let called = boot.last().map_or(0, |span| span.end_ns);
        // The guest may have been kept from looking at its clock for long after the call; its clock
        // began with the machine in any case, never before it.
        let shift = connected.saturating_sub(called).max(vm.launched_ns);
        let on_host = |guest_ns: u64| guest_ns.saturating_add(shift);
        let agent_began = boot.first().map_or(called, |span| span.start_ns);
        let mut timeline = lock(&self.timeline);
        timeline.add(Actor::Kernel, "boot", vm.launched_ns, on_host(agent_began));
        for span in boot.iter().chain(&response.spans) {
            let (start, end) = (on_host(span.start_ns), on_host(span.end_ns));
            timeline.add(Actor::Agent, &span.name, start, end);
        }
        timeline.add(Actor::Host, "wait for the container", asked_ns, now_ns());
        timeline.cost = vm.meter.at_home();
        drop(timeline);
        if let Some(state) = lock(&self.state).as_mut() {
            state.guest_release = response.kernel_release.chars().take(120).collect();
        }
    }

    /// A start that failed leaves nothing but the record for `bulkhead why`.
    pub(super) async fn start_failed(&self, error: &SandboxError) {
        let machine = match &*self.boot.borrow() {
            Boot::Up(vm, _) => Some(vm.clone()),
            Boot::Pending | Boot::Failed(_) => None,
        };
        let failure = match error {
            SandboxError::Ended(failure) => failure.clone(),
            error => {
                let mut failure = explain(error, machine.as_deref());
                if let (SandboxError::Silent(_), Some(vm)) = (error, &machine) {
                    let counts = vm.meter.now().await;
                    let counts = counts.map(|counts| format!("until then: {counts}"));
                    let mut watched = vm.meter.registers().await;
                    watched.extend(counts);
                    failure.evidence.splice(0..0, watched);
                }
                failure
            }
        };
        self.torn_down.send_replace(true);
        if let Some(vm) = machine {
            self.evict(&vm).await;
            if !self.pod.has_others(self.request.id.as_str()) {
                // A start that failed is in no hurry, and leaves nothing.
                vm.gone().await;
            }
        }
        self.keep_record(&failure);
        self.put_away().await;
        self.finished();
    }
}

/// What `bulkhead why` says of an error that is not the machine's end.
fn explain(error: &SandboxError, machine: Option<&Vm>) -> Failure {
    let text = crate::error::chain(error);
    let (kind, cause) = StartFailure::parse(&text);
    let fix = match (kind, error) {
        (StartFailure::NotFound, _) => {
            "Check the command's spelling and PATH; `bulkhead run … -- ls` shows what is there"
        }
        (StartFailure::NotExecutable, _) => {
            "Check its permissions, and that it is made for this architecture"
        }
        (StartFailure::Other, SandboxError::Plan(_)) => {
            "Nothing was started; change what the cause names"
        }
        (StartFailure::Other, SandboxError::Silent(_)) => {
            "See the console lines for how far the guest came"
        }
        (StartFailure::Other, _) => {
            "Change what the cause names; `bulkhead doctor` checks the host"
        }
    };
    let console = machine.map(|vm| vm.console.text()).unwrap_or_default();
    Failure {
        cause: cause.to_owned(),
        evidence: crate::failure::tail(&console, 12)
            .map(|line| format!("console: {line}"))
            .collect(),
        fix: fix.into(),
    }
}
