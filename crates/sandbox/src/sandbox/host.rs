//! What the host does for a container beside its machine: the control group engines look at, and the
//! hooks.

use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::*;
use crate::cgroup::limit::{self, Bounds};
use crate::cgroup::{Group, Place};
use crate::hooks::{self, Kind, Surroundings};
use crate::vm::pidfd;
use crate::watched;

/// How long a stand-in that was told to end may take.
const STANDIN_END: Duration = Duration::from_secs(2);

impl Sandbox {
    /// Makes the container's control group and runs the hooks that come before the container. The
    /// machine is to be started afterwards.
    ///
    /// # Errors
    /// What could not be made, or the hook that failed. Clean-up is the caller's, by
    /// [`Self::put_away`].
    pub async fn prepare_host(&self, plan: &Plan) -> Result<(), SandboxError> {
        self.make_group(plan)?;
        self.hooks_of_create(plan).await?;
        // The machine's processes are in the group of the container that brought them.
        if self.pod.has_others(self.request.id.as_str()) {
            return Ok(());
        }
        if let Some(group) = lock(&self.group).as_ref() {
            let began = now_ns();
            // Not before the hooks: they are the engine's, and not the container's to pay for.
            group.enter()?;
            self.span(Actor::Host, "enter control group", began);
        }
        Ok(())
    }

    fn make_group(&self, plan: &Plan) -> Result<(), SandboxError> {
        let linux = plan.bundle.spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let began = now_ns();
        let place = match path {
            // As with runc, it has a scope also where the configuration names none.
            path if self.request.systemd_cgroup => {
                let path = path.map_or(Path::new(""), |path| path);
                Place::of_scope(path, self.request.id.as_str())?
            }
            Some(path) => Place::find(path)?,
            None => return Ok(()),
        };
        let record = place.record();
        // The journal knows of it before it is there.
        self.update(|state| state.cgroup = Some(record.clone()))?;
        let limits = linux
            .and_then(|linux| linux.resources().as_ref())
            .map(|resources| limit::of(resources, bounds(plan)))
            .unwrap_or_default();
        let first = self.request.standin.unwrap_or_else(std::process::id);
        let group = place.make(record, first, &limits).inspect_err(|_| {
            // A scope of that name may be somebody else's.
            self.update_or_log(|state| state.cgroup = None);
        })?;
        let made = group.set(&limits).and_then(|()| {
            let standin = self.request.standin.map(|pid| group.add(pid));
            standin.unwrap_or(Ok(()))
        });
        // Kept in any case, to be removed with all the rest.
        *lock(&self.group) = Some(group);
        self.span(Actor::Host, "make control group", began);
        Ok(made?)
    }

    async fn hooks_of_create(&self, plan: &Plan) -> Result<(), SandboxError> {
        let spec = &plan.bundle.spec;
        for kind in [Kind::Prestart, Kind::CreateRuntime, Kind::CreateContainer] {
            let list = kind.of(spec);
            if list.is_empty() {
                continue;
            }
            let began = now_ns();
            let mut surroundings = self.surroundings(Status::Creating)?;
            if let (Kind::CreateContainer, Some(pid)) = (kind, self.request.standin) {
                surroundings.namespaces =
                    hooks::namespaces_of(pid).map_err(SandboxError::Namespaces)?;
            }
            hooks::run(kind, list, &surroundings).await?;
            self.span(Actor::Host, &format!("{} hooks", kind.name()), began);
        }
        Ok(())
    }

    /// Runs the hooks that come after the start of the program.
    pub(super) async fn hooks_of_start(&self, plan: &Plan) -> Result<(), SandboxError> {
        let list = Kind::Poststart.of(&plan.bundle.spec);
        if list.is_empty() {
            return Ok(());
        }
        let surroundings = self.surroundings(Status::Running)?;
        Ok(hooks::run(Kind::Poststart, list, &surroundings).await?)
    }

    /// Runs the hooks that come with the container's removal, once. One that fails is told in the log
    /// and the rest goes on.
    async fn hooks_of_removal(&self) {
        let mut hooks = Vec::new();
        let told = {
            let mut state = lock(&self.state);
            let Some(state) = state.as_mut().filter(|state| !state.poststop.is_empty()) else {
                return;
            };
            std::mem::swap(&mut state.poststop, &mut hooks);
            // Nobody else runs them from here on.
            if let Err(error) = state.save(&self.paths) {
                tracing::warn!("{}", crate::error::chain(&error));
            }
            hooks::state_json(state, Status::Stopped, None)
        };
        let surroundings = Surroundings {
            state: told,
            dir: self.request.bundle.clone(),
            ..Surroundings::default()
        };
        hooks::run_last(&hooks, &surroundings).await;
    }

    fn surroundings(&self, status: Status) -> Result<Surroundings, SandboxError> {
        let pid = self.request.standin.unwrap_or_else(std::process::id);
        let told = self
            .state()
            .map(|state| hooks::state_json(&state, status, Some(pid)));
        // Once we are in the container's group ourselves, hooks have to be led out of it.
        let group = lock(&self.group);
        let groups = match group.as_ref() {
            Some(group) if group.has(std::process::id()) => {
                group.way_out().map_err(SandboxError::Namespaces)?
            }
            _ => Vec::new(),
        };
        Ok(Surroundings {
            state: told.unwrap_or_default(),
            dir: self.request.bundle.clone(),
            namespaces: Vec::new(),
            groups,
        })
    }

    /// Lets the init process's stand-in end, outside of the control group, which it would keep while it
    /// gives back its namespaces.
    pub(super) fn release_init(&self, process: &Process) {
        if let (Some(group), Some(pid)) = (lock(&self.group).as_ref(), process.standin()) {
            group.let_go(pid);
        }
        process.release();
    }

    /// Leaves the control group and removes it. The machine must have ended or be about to.
    pub(super) async fn leave_group(&self) {
        let Some(group) = lock(&self.group).take() else {
            return;
        };
        if self.pod.has_others(self.request.id.as_str()) {
            for pid in self.request.standin.as_slice() {
                group.let_go(*pid);
            }
            self.bequeath(&group);
        } else {
            if let Some(vm) = self.machine_if_up() {
                vm.gone().await;
            }
            group.leave(self.request.standin.as_slice());
        }
        // A process that is about to end cannot be moved any more.
        let standin = self.state().and_then(|state| state.standin);
        if let Some(standin) = standin.filter(|standin| group.has(standin.pid))
            && let Some(fd) = pidfd(&standin)
            && let Ok(fd) = watched::watch(fd)
        {
            let _ = tokio::time::timeout(STANDIN_END, fd.readable()).await;
        }
        group.remove();
        self.update_or_log(|state| state.cgroup = None);
    }

    /// What is left in the group is the machine's: it goes to another container that lives in it.
    fn bequeath(&self, group: &Group) {
        let others = self.pod.others(self.request.id.as_str());
        let heir = others.iter().find(|other| lock(&other.group).is_some());
        let theirs = heir.map(|heir| lock(&heir.group));
        group.hand_over(theirs.as_deref().and_then(Option::as_ref));
    }

    /// Puts everything away that the host holds for the container, its name last. The machine must have
    /// ended or be about to.
    pub(super) async fn put_away(&self) {
        let _one_at_a_time = self.removal.lock().await;
        self.leave_group().await;
        self.hooks_of_removal().await;
        sweep::remove(&self.paths);
    }

    /// Waits until nothing is being put away.
    pub async fn settled(&self) {
        drop(self.removal.lock().await);
    }

    /// Sets limits of the machine as a whole.
    pub(super) fn set_host_limits(
        &self,
        plan: &Plan,
        resources: &LinuxResources,
    ) -> Result<(), SandboxError> {
        let group: MutexGuard<'_, Option<Group>> = lock(&self.group);
        match group.as_ref() {
            Some(group) => Ok(group.change(&limit::of(resources, bounds(plan)))?),
            None => Ok(()),
        }
    }

    /// Whether the machine is in that group: it is in that of the container that brought it, and in a
    /// remaining one's once that is gone.
    pub(super) fn group_has_machine(&self) -> bool {
        let group = lock(&self.group);
        group
            .as_ref()
            .is_some_and(|group| group.has(std::process::id()))
    }

    /// Whether the container has a control group on the host.
    pub(super) fn has_group(&self) -> bool {
        lock(&self.group).is_some()
    }
}

fn bounds(plan: &Plan) -> Bounds {
    Bounds {
        memory_bytes: plan.host_memory_bytes,
    }
}
