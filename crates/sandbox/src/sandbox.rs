//! A sandbox's lifecycle: what each verb does, written once for every front end.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_agent_api::messages;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use ttrpc::context::Context;

use crate::channel::PortState;
use crate::clock::{epoch_ns, rfc3339_now};
use crate::error::SandboxError;
use crate::failure::{Failure, Record};
use crate::paths::Paths;
use crate::plan::{Plan, PlanError};
use crate::process::{Process, exit_of};
use crate::request::Request;
use crate::state::{Exit, State, Status};
use crate::stdio::{self, Stdio};
use crate::sweep;
use crate::timeline::{Actor, Timeline, now_ns};
use crate::vm::Vm;

/// What a client sees when the container's end is not its own.
const VM_DIED: u32 = 255;

/// 128 + SIGKILL: the container was ended with its machine, on request.
const KILLED: u32 = 137;

/// How long the agent may take to put a container away before the machine is killed.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the agent may take to deliver a signal before SIGKILL is carried out on the machine.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How far the machine is.
#[derive(Debug, Clone)]
pub enum Boot {
    /// Not decided yet.
    Pending,
    /// Spawned; its agent may still be on the way.
    Up(Arc<Vm>, Arc<Plan>),
    /// It will not come.
    Failed(Arc<SandboxError>),
}

/// One sandbox: a container and its machine.
#[derive(Debug)]
pub struct Sandbox {
    /// What was asked for.
    pub request: Request,
    /// Where its files are.
    pub paths: Paths,
    /// Told when the sandbox process should end.
    pub done: Notify,
    boot: watch::Sender<Boot>,
    state: Mutex<Option<State>>,
    timeline: Mutex<Timeline>,
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
    // Verbs that change the container's state, one at a time.
    verb: AsyncMutex<()>,
    torn_down: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    /// A sandbox whose machine has not been started.
    #[must_use]
    pub fn new(request: Request, timeline: Timeline) -> Self {
        let paths = Paths::new(&request.root, &request.id);
        Self {
            request,
            paths,
            done: Notify::new(),
            boot: watch::channel(Boot::Pending).0,
            state: Mutex::new(None),
            timeline: Mutex::new(timeline),
            processes: Mutex::new(BTreeMap::new()),
            verb: AsyncMutex::new(()),
            torn_down: watch::channel(false).0,
        }
    }

    /// Publishes that the machine was spawned and keeps an eye on it.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn booted(self: &Arc<Self>, vm: Vm, plan: Plan) -> Result<(), SandboxError> {
        self.update(|state| state.helpers = vm.helpers.clone())?;
        let vm = Arc::new(vm);
        self.boot.send_replace(Boot::Up(vm.clone(), Arc::new(plan)));
        let sandbox = self.clone();
        tokio::spawn(async move {
            let failure = vm.failure().await;
            sandbox.machine_ended(failure);
        });
        Ok(())
    }

    /// Publishes that there will be no machine.
    pub fn boot_failed(&self, error: SandboxError) {
        self.boot.send_replace(Boot::Failed(Arc::new(error)));
    }

    /// The journal's first entry, before anything is made.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&self, plan: &Plan) -> Result<(), SandboxError> {
        let spec = &plan.bundle.spec;
        let annotations = spec.annotations().iter().flatten();
        let state = State {
            oci_version: spec.version().clone(),
            id: self.request.id.to_string(),
            status: Status::Creating,
            bundle: plan.bundle.dir.clone(),
            rootfs: plan.rootfs().to_owned(),
            annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
            created: rfc3339_now(),
            owner: self.request.owner.clone(),
            sandbox: crate::state::ProcessRef::of(std::process::id()).ok(),
            helpers: Vec::new(),
            hypervisor: plan.choice.driver.kind().to_string(),
            isolation: plan.choice.driver.isolation().to_string(),
            chosen_because: plan.choice.reason.clone(),
            kernel: plan.kernel.manifest.name.clone(),
            guest_release: String::new(),
            memory_bytes: plan.memory_bytes,
            exit: None,
            failure: None,
            auto_remove: self.request.auto_remove,
            timeline: Timeline::default(),
        };
        state.save(&self.paths)?;
        *lock(&self.state) = Some(state);
        Ok(())
    }

    /// Records a step of the start.
    pub fn span(&self, actor: Actor, name: &str, start_ns: u64) {
        lock(&self.timeline).since(actor, name, start_ns);
    }

    /// The timeline, to be filled by the start.
    pub fn timeline(&self) -> MutexGuard<'_, Timeline> {
        lock(&self.timeline)
    }

    /// A copy of the journal, once there is one.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        lock(&self.state).clone()
    }

    fn update(&self, change: impl FnOnce(&mut State)) -> Result<(), SandboxError> {
        let mut guard = lock(&self.state);
        let Some(state) = guard.as_mut() else {
            return Ok(());
        };
        change(state);
        state.timeline = lock(&self.timeline).clone();
        state.save(&self.paths)?;
        Ok(())
    }

    fn update_or_log(&self, change: impl FnOnce(&mut State)) {
        if let Err(error) = self.update(change) {
            tracing::error!("{}", crate::error::chain(&error));
        }
    }

    fn check_id(&self, id: &str) -> Result<(), SandboxError> {
        if id == self.request.id.as_str() {
            return Ok(());
        }
        let holds = self.request.id.to_string();
        Err(SandboxError::WrongId {
            holds,
            asked: id.to_owned(),
        })
    }

    async fn machine(&self) -> Result<(Arc<Vm>, Arc<Plan>), SandboxError> {
        let mut boot = self.boot.subscribe();
        let boot = boot.wait_for(|boot| !matches!(boot, Boot::Pending)).await;
        match boot.as_deref() {
            Ok(Boot::Up(vm, plan)) => Ok((vm.clone(), plan.clone())),
            Ok(Boot::Failed(error)) => Err(SandboxError::Agent(as_status(error))),
            Ok(Boot::Pending) | Err(_) => Err(SandboxError::Unsupported {
                what: "This verb",
                why: "the sandbox is ending",
            }),
        }
    }

    /// Runs a request to the agent to its end, or to the machine's.
    async fn ask<T>(
        &self,
        vm: &Vm,
        step: &'static str,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, SandboxError> {
        tokio::select! {
            biased;
            answer = call => match answer {
                Ok(value) => Ok(value),
                Err(ttrpc::Error::RpcStatus(status)) => Err(SandboxError::Agent(status)),
                Err(source) => {
                    // The connection breaks a moment before the process is seen to have ended;
                    // its end is the better explanation.
                    let wait = tokio::time::timeout(KILL_TIMEOUT, vm.failure()).await;
                    Err(wait.map_or_else(
                        |_| SandboxError::Connection { step, source: Box::new(source) },
                        SandboxError::Ended,
                    ))
                }
            },
            failure = vm.failure() => Err(SandboxError::Ended(failure)),
        }
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, SandboxError> {
        self.check_id(id)?;
        lock(&self.processes)
            .get(exec_id)
            .cloned()
            .ok_or_else(|| SandboxError::NoProcess {
                id: id.to_owned(),
                exec_id: exec_id.to_owned(),
            })
    }

    fn wrong_state(&self, verb: &'static str, status: Status) -> SandboxError {
        SandboxError::WrongState {
            verb,
            id: self.request.id.to_string(),
            state: status.as_str(),
        }
    }

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
        let created = self.try_create(stdio).await;
        if let Err(error) = &created {
            self.start_failed(error).await;
        }
        created
    }

    async fn try_create(self: &Arc<Self>, stdio: Stdio) -> Result<u32, SandboxError> {
        let (vm, plan) = self.machine().await?;
        let process = Arc::new(Process::new("", stdio, Vec::new()));
        let (ports, streams) = stdio::attach(&process.stdio, &vm.channel)?;
        let began = now_ns();
        let request = messages::CreateContainerRequest {
            container_id: self.request.id.to_string(),
            spec_json: plan.guest.spec_json().map_err(PlanError::from)?,
            rootfs: plan.guest.rootfs_target.clone(),
            stdio: Some(ports).into(),
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
        let answer = self.ask(&vm, "create the container", call).await?;
        let response = answer.ok_or(SandboxError::Silent(plan.config.start_timeout_s))?;
        self.record_guest(&vm, &response.spans, began).await;
        process.created(response.pid, streams);
        lock(&self.processes).insert(String::new(), process);
        self.update(|state| state.status = Status::Created)?;
        Ok(std::process::id())
    }

    /// Puts the guest's own steps on the host's clock: both know the moment of the call home.
    async fn record_guest(&self, vm: &Vm, spans: &[messages::Span], asked_ns: u64) {
        let request = messages::InfoRequest::new();
        let info = vm.agent.info(Context::default(), &request);
        let Ok(Ok(info)) = tokio::time::timeout(KILL_TIMEOUT, info).await else {
            return;
        };
        let connected = match *vm.home.state.borrow() {
            PortState::Connected(at_ns) => at_ns,
            PortState::Expected | PortState::Closed => now_ns(),
        };
        let called = info.spans.last().map_or(0, |span| span.end_ns);
        let on_host = |guest_ns: u64| connected.saturating_sub(called.saturating_sub(guest_ns));
        let agent_began = info.spans.first().map_or(called, |span| span.start_ns);
        let mut timeline = lock(&self.timeline);
        timeline.add(Actor::Kernel, "boot", vm.launched_ns, on_host(agent_began));
        for span in info.spans.iter().chain(spans) {
            let shift = connected.saturating_sub(called);
            let (start, end) = (
                span.start_ns.saturating_add(shift),
                span.end_ns.saturating_add(shift),
            );
            timeline.add(Actor::Agent, &span.name, start, end);
        }
        timeline.add(Actor::Host, "wait for the container", asked_ns, now_ns());
        drop(timeline);
        if let Some(state) = lock(&self.state).as_mut() {
            state.guest_release = info.kernel_release.chars().take(120).collect();
        }
    }

    /// Lets a created process run. Returns the PID the engine sees.
    ///
    /// # Errors
    /// Among others the agent's, when the program cannot be executed.
    pub async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, SandboxError> {
        let process = self.process(id, exec_id)?;
        let _one_at_a_time = self.verb.lock().await;
        let (vm, _) = self.machine().await?;
        if !exec_id.is_empty() {
            self.create_exec(&vm, &process).await?;
        } else if process.status() != Status::Created {
            return Err(self.wrong_state("start", process.status()));
        }
        let began = now_ns();
        let request = self.process_request(exec_id);
        let call = vm.agent.start(Context::default(), &request);
        let started = self.ask(&vm, "start the process", call).await;
        let answer = match started {
            Ok(answer) => answer,
            Err(error) if exec_id.is_empty() => {
                self.start_failed(&error).await;
                return Err(error);
            }
            Err(error) => {
                // The agent forgets a process whose start failed.
                process.ended(Exit {
                    code: VM_DIED,
                    at_ns: 0,
                    oom_killed: false,
                });
                return Err(error);
            }
        };
        process.set_status(Status::Running);
        if exec_id.is_empty() {
            self.span(Actor::Host, "start the program", began);
            self.update(|state| state.status = Status::Running)?;
        }
        self.follow(vm, process);
        Ok(if exec_id.is_empty() {
            std::process::id()
        } else {
            answer.pid
        })
    }

    async fn create_exec(&self, vm: &Vm, process: &Process) -> Result<(), SandboxError> {
        if process.status() != Status::Creating {
            return Err(self.wrong_state("start", process.status()));
        }
        let (mut ports, streams) = stdio::attach(&process.stdio, &vm.channel)?;
        (ports.columns, ports.rows) = process.size();
        let request = messages::CreateExecRequest {
            container_id: self.request.id.to_string(),
            exec_id: process.exec_id.clone(),
            process_json: process.spec.clone(),
            stdio: Some(ports).into(),
            ..Default::default()
        };
        let call = vm.agent.create_exec(Context::default(), &request);
        match self.ask(vm, "create the process", call).await {
            Ok(response) => {
                process.created(response.pid, streams);
                Ok(())
            }
            Err(error) => {
                streams
                    .iter()
                    .for_each(|stream| vm.channel.cancel(stream.port));
                process.ended(Exit {
                    code: VM_DIED,
                    at_ns: 0,
                    oom_killed: false,
                });
                Err(error)
            }
        }
    }

    fn process_request(&self, exec_id: &str) -> messages::ProcessRequest {
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

    async fn process_ended(self: &Arc<Self>, vm: &Arc<Vm>, process: &Arc<Process>, exit: Exit) {
        if !process.exec_id.is_empty() {
            process.ended(exit);
            return;
        }
        self.update_or_log(|state| {
            state.status = Status::Stopped;
            state.exit = Some(exit.clone());
        });
        process.ended(exit);
        // Whoever reads the streams gets all of it before the machine goes.
        for mut stream in process.take_streams() {
            tokio::select! {
                () = stream.closed() => {}
                _ = vm.failure() => {}
            }
        }
        self.tear_down(vm).await;
    }

    /// Ends the machine in order: the agent syncs and puts the container away, then it is killed.
    async fn tear_down(&self, vm: &Arc<Vm>) {
        if !*self.torn_down.borrow() {
            let request = messages::ContainerRequest {
                container_id: self.request.id.to_string(),
                ..Default::default()
            };
            let destroy = vm.agent.destroy_container(Context::default(), &request);
            tokio::select! {
                _ = tokio::time::timeout(DESTROY_TIMEOUT, destroy) => {}
                _ = vm.failure() => {}
            }
        }
        self.torn_down.send_replace(true);
        vm.kill().await;
        self.update_or_log(|state| state.helpers.clear());
        if self.request.lifeline_fd.is_none() {
            if self.request.auto_remove {
                sweep::remove(&self.paths);
            }
            self.done.notify_one();
        }
    }

    /// The machine is gone. Before the container's end that is a failure, after it the usual way.
    fn machine_ended(self: &Arc<Self>, failure: Failure) {
        if *self.torn_down.borrow() {
            return;
        }
        self.torn_down.send_replace(true);
        let exit = Exit {
            code: VM_DIED,
            at_ns: epoch_ns(),
            oom_killed: false,
        };
        let started = self
            .state()
            .is_some_and(|state| state.status != Status::Creating);
        if let Boot::Up(vm, _) = &*self.boot.borrow() {
            // Only one of the two processes has ended.
            let vm = vm.clone();
            tokio::spawn(async move { vm.kill().await });
        }
        self.update_or_log(|state| {
            state.status = Status::Stopped;
            if state.exit.is_none() {
                state.exit = Some(exit.clone());
                state.failure = Some(failure.clone());
            }
            state.helpers.clear();
        });
        self.keep_record(&failure);
        let processes: Vec<_> = lock(&self.processes).values().cloned().collect();
        for process in processes {
            process.ended(exit.clone());
        }
        if started && self.request.lifeline_fd.is_none() {
            if self.request.auto_remove {
                sweep::remove(&self.paths);
            }
            self.done.notify_one();
        }
    }

    fn keep_record(&self, failure: &Failure) {
        let state = self.state();
        let record = Record {
            id: self.request.id.to_string(),
            failure: failure.clone(),
            hypervisor: state
                .as_ref()
                .map_or_else(String::new, |s| s.hypervisor.clone()),
            kernel: state.map_or_else(String::new, |s| s.kernel),
            timeline: lock(&self.timeline).clone(),
        };
        if let Err(error) = record.save(&self.paths) {
            tracing::warn!("Failed to keep the record of the failure: {error}");
        }
    }

    /// A start that failed leaves nothing but the record for `bulkhead why`.
    async fn start_failed(&self, error: &SandboxError) {
        let machine = match &*self.boot.borrow() {
            Boot::Up(vm, _) => Some(vm.clone()),
            Boot::Pending | Boot::Failed(_) => None,
        };
        let failure = match error {
            SandboxError::Ended(failure) => failure.clone(),
            error => Failure {
                cause: crate::error::chain(error),
                evidence: machine.as_ref().map_or_else(Vec::new, |vm| {
                    let text = vm.console.text();
                    crate::failure::tail(&text, 12)
                        .map(|line| format!("console: {line}"))
                        .collect()
                }),
                fix: "The message names what to change".into(),
            },
        };
        self.torn_down.send_replace(true);
        if let Some(vm) = machine {
            vm.kill().await;
        }
        self.keep_record(&failure);
        sweep::remove(&self.paths);
        self.done.notify_one();
    }

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
        if init.status() != Status::Running {
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
        &self,
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
            Ok(answer) => answer.map(|_| ()),
            Err(_elapsed) if signal == SIGKILL && exec_id.is_empty() => {
                vm.kill().await;
                Ok(())
            }
            Err(_elapsed) => Err(SandboxError::Silent(KILL_TIMEOUT.as_secs())),
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
    /// When it is not running (paused), or the agent refuses.
    pub async fn pause(&self, id: &str, thaw: bool) -> Result<(), SandboxError> {
        let init = self.process(id, "")?;
        let _one_at_a_time = self.verb.lock().await;
        let (verb, from, to) = if thaw {
            ("resume", Status::Paused, Status::Running)
        } else {
            ("pause", Status::Running, Status::Paused)
        };
        if init.status() != from {
            return Err(self.wrong_state(verb, init.status()));
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

    /// Forgets an ended exec process, or removes the ended container with everything of it.
    ///
    /// # Errors
    /// When the process has not ended.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<(u32, Exit), SandboxError> {
        let process = self.process(id, exec_id)?;
        let exit = process.exit.borrow().clone();
        let Some(exit) = exit else {
            return Err(self.wrong_state("delete", process.status()));
        };
        if !exec_id.is_empty() {
            lock(&self.processes).remove(exec_id);
            if let Boot::Up(vm, _) = &*self.boot.borrow() {
                let (agent, request) = (vm.agent.clone(), self.process_request(exec_id));
                tokio::spawn(async move { agent.delete_exec(Context::default(), &request).await });
            }
            return Ok((process.pid(), exit));
        }
        self.shutdown().await;
        sweep::remove(&self.paths);
        Ok((std::process::id(), exit))
    }

    /// Ends the machine whatever state the container is in, and then this process. The journal
    /// stays unless the container is to be removed with its end.
    pub async fn shutdown(&self) {
        if let Ok((vm, _)) = self.machine().await {
            self.tear_down(&vm).await;
        }
        let killed = Exit {
            code: KILLED,
            at_ns: epoch_ns(),
            oom_killed: false,
        };
        self.update_or_log(|state| {
            state.status = Status::Stopped;
            state.exit.get_or_insert(killed.clone());
        });
        let processes: Vec<_> = lock(&self.processes).values().cloned().collect();
        processes
            .iter()
            .for_each(|process| process.ended(killed.clone()));
        if self.request.auto_remove {
            sweep::remove(&self.paths);
        }
        self.done.notify_one();
    }

    /// The attached command is gone. If it died, nothing of the container may outlive it; a container
    /// that had ended in its own time stays in the list unless it was to be removed.
    pub async fn abandoned(&self) {
        let machine = match &*self.boot.borrow() {
            Boot::Up(vm, _) => Some(vm.clone()),
            Boot::Pending | Boot::Failed(_) => None,
        };
        self.torn_down.send_replace(true);
        if let Some(vm) = machine {
            vm.kill().await;
        }
        let ended = self
            .state()
            .is_some_and(|state| state.status == Status::Stopped);
        if ended && !self.request.auto_remove {
            self.update_or_log(|state| state.helpers.clear());
        } else {
            sweep::remove(&self.paths);
        }
        self.done.notify_one();
    }
}

fn as_status(error: &SandboxError) -> ttrpc::Status {
    match error.to_rpc() {
        ttrpc::Error::RpcStatus(status) => status,
        other => ttrpc::get_status(ttrpc::Code::INTERNAL, other.to_string()),
    }
}
