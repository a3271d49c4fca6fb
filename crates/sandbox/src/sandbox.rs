//! A sandbox's lifecycle: what each verb does, written once for every front end.

mod attached;
mod create;
mod devices;
mod end;
mod host;
mod limits;
mod network;
mod start;
mod verbs;

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_agent_api::messages;
use oci_spec::runtime::LinuxResources;
use tokio::sync::{Mutex as AsyncMutex, watch};
use ttrpc::context::Context;

use crate::cgroup::Group;
use crate::channel::PortState;
use crate::clock::{epoch_ns, rfc3339_now};
use crate::error::SandboxError;
use crate::failure::{Failure, Record};
use crate::hooks::Kind;
use crate::paths::Paths;
use crate::plan::{Plan, PlanError};
use crate::pod::Pod;
use crate::process::{Process, exit_of};
use crate::request::Request;
use crate::standin::Attachment;
use crate::state::{Exit, ProcessRef, State, Status};
use crate::stdio::{self, Stdio, StdioError};
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
    pod: Arc<Pod>,
    boot: watch::Sender<Boot>,
    state: Mutex<Option<State>>,
    timeline: Mutex<Timeline>,
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
    // Verbs that change the container's state, one at a time.
    verb: AsyncMutex<()>,
    torn_down: watch::Sender<bool>,
    // Whether a command is still attached, whose death would be the container's.
    held: AtomicBool,
    // Handed over and not yet asked for, by process.
    attachments: Mutex<BTreeMap<String, Attachment>>,
    // The control group on the host, if there is one.
    group: Mutex<Option<Group>>,
    // Limits of the container, once they were changed.
    limits: Mutex<Option<LinuxResources>>,
    // Held while the container is put away: this process must not end before.
    removal: AsyncMutex<()>,
    // The machine has ended and the host is left; what remains are files.
    over: AtomicBool,
    // The start is not wanted any more.
    called_off: watch::Sender<bool>,
    // The lock of the container's directory.
    ownership: Mutex<Option<OwnedFd>>,
    // Why the machine is ended before its container, where nobody asked for it.
    ending: Mutex<Option<Failure>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    /// A sandbox whose machine has not been started.
    #[must_use]
    pub fn new(request: Request, timeline: Timeline, pod: Arc<Pod>) -> Self {
        let paths = Paths::new(&request.root, &request.id);
        let held = AtomicBool::new(request.lifeline_fd.is_some());
        Self {
            request,
            paths,
            pod,
            boot: watch::channel(Boot::Pending).0,
            state: Mutex::new(None),
            timeline: Mutex::new(timeline),
            processes: Mutex::new(BTreeMap::new()),
            verb: AsyncMutex::new(()),
            torn_down: watch::channel(false).0,
            held,
            attachments: Mutex::new(BTreeMap::new()),
            group: Mutex::new(None),
            limits: Mutex::new(None),
            removal: AsyncMutex::new(()),
            over: AtomicBool::new(false),
            called_off: watch::channel(false).0,
            ownership: Mutex::new(None),
            ending: Mutex::new(None),
        }
    }

    /// Publishes that the machine was spawned and keeps an eye on it.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn booted(self: &Arc<Self>, vm: Vm, plan: Plan) -> Result<(), SandboxError> {
        self.settled_in(Arc::new(vm), plan)
    }

    /// Publishes that the container has its machine, and keeps an eye on that.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn settled_in(self: &Arc<Self>, vm: Arc<Vm>, plan: Plan) -> Result<(), SandboxError> {
        self.update(|state| state.helpers = vm.helpers.clone())?;
        self.boot.send_replace(Boot::Up(vm.clone(), Arc::new(plan)));
        let sandbox = self.clone();
        tokio::spawn(async move {
            let failure = vm.failure().await;
            sandbox.machine_ended(failure);
        });
        Ok(())
    }

    /// What one of the containers of this machine is to a further one: the machine and its plan.
    ///
    /// # Errors
    /// When there is no machine.
    pub async fn home(&self) -> Result<(Arc<Vm>, Arc<Plan>), SandboxError> {
        self.machine().await
    }

    /// Whether the container has its machine.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(&*self.boot.borrow(), Boot::Up(..))
    }

    /// The lock of the container's directory, to be held as long as it is ours.
    pub fn own(&self, lock_fd: OwnedFd) {
        *lock(&self.ownership) = Some(lock_fd);
    }

    /// The process in the guest a process on the host stands in for, if that is the container's first.
    #[must_use]
    pub fn guest_pid_of(&self, standin: u32) -> Option<u32> {
        let init = lock(&self.processes).get("").cloned()?;
        (init.standin() == Some(standin)).then(|| init.pid())
    }

    /// The container's first process in the guest, if `source` is what the host has for its `/dev/shm`.
    #[must_use]
    pub fn guest_pid_with_shm(&self, source: &Path) -> Option<u32> {
        let Boot::Up(_, plan) = &*self.boot.borrow() else {
            return None;
        };
        let own = bulkhead_oci::plan::shared_memory_source(&plan.bundle.spec)?;
        let init = lock(&self.processes).get("").cloned()?;
        (own == source && init.exit.borrow().is_none()).then(|| init.pid())
    }

    /// The container's first process in the guest, if the container is apart from the machine's network
    /// in the namespace `netns`.
    #[must_use]
    pub fn guest_pid_apart(&self, netns: &Path) -> Option<u32> {
        let Boot::Up(_, plan) = &*self.boot.borrow() else {
            return None;
        };
        let apart = plan.apart.as_deref()?;
        let init = lock(&self.processes).get("").cloned()?;
        let same = bulkhead_network::is_same(apart, netns);
        (same && init.exit.borrow().is_none()).then(|| init.pid())
    }

    /// Waits until the start is not wanted any more, and says why.
    pub async fn called_off(&self) -> SandboxError {
        // We hold the sender, so this cannot fail.
        let _ = self.called_off.subscribe().wait_for(|off| *off).await;
        let ending = lock(&self.ending).clone();
        ending.map_or(SandboxError::CalledOff, SandboxError::Ended)
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
            sandbox: ProcessRef::of(std::process::id()).ok(),
            standin: self
                .request
                .standin
                .and_then(|pid| ProcessRef::of(pid).ok()),
            helpers: Vec::new(),
            netns: plan.netns.clone(),
            hypervisor: plan.choice.driver.kind().to_string(),
            isolation: plan.choice.driver.isolation().to_string(),
            chosen_because: plan.choice.reason.clone(),
            kernel: plan.kernel.manifest.name.clone(),
            guest_release: String::new(),
            memory_bytes: plan.memory_bytes,
            exit: None,
            failure: None,
            auto_remove: self.request.auto_remove,
            cgroup: None,
            poststop: Kind::Poststop.of(spec).to_vec(),
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
                        |failure| self.ended(failure),
                    ))
                }
            },
            failure = vm.failure() => Err(self.ended(failure)),
        }
    }

    /// The end of the machine, if that is behind an error: a pipe to one of its processes breaks a moment
    /// before the process is seen to have ended.
    async fn or_end(&self, vm: &Vm, error: SandboxError) -> SandboxError {
        if !matches!(error, SandboxError::Stdio(StdioError::Announce(_))) {
            return error;
        }
        let wait = tokio::time::timeout(KILL_TIMEOUT, vm.failure()).await;
        wait.map_or(error, |failure| self.ended(failure))
    }

    /// The end of the machine: by itself, or because we ended it for another reason.
    fn ended(&self, failure: Failure) -> SandboxError {
        SandboxError::Ended(lock(&self.ending).clone().unwrap_or(failure))
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
}

fn as_status(error: &SandboxError) -> ttrpc::Status {
    match error.to_rpc() {
        ttrpc::Error::RpcStatus(status) => status,
        other => ttrpc::get_status(ttrpc::Code::INTERNAL, other.to_string()),
    }
}
