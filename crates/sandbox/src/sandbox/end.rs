//! How a sandbox ends: in order, with its machine, on request, or because its command died.

use bulkhead_devices::vsock::control::Slot;

use super::*;

impl Sandbox {
    /// Ends the machine in order: the agent syncs and puts the container away, then it is killed.
    pub(super) async fn tear_down(&self, vm: &Arc<Vm>) {
        // Before there is a container there is nothing to put away, nor may the guest be up to it.
        let created = lock(&self.processes).contains_key("");
        let wanted = created || self.pod.has_others(self.request.id.as_str());
        if wanted && !*self.torn_down.borrow() {
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
        self.move_out(vm).await;
        self.update_or_log(|state| state.helpers.clear());
        self.leave_group().await;
        self.over.store(true, Ordering::Relaxed);
    }

    /// The container does not need the machine any more: the last one ends it, one before that takes
    /// its files along.
    pub(super) async fn move_out(&self, vm: &Vm) {
        if self.pod.move_out(self.request.id.as_str()) {
            vm.kill().await;
        } else {
            let plan = match &*self.boot.borrow() {
                Boot::Up(_, plan) => plan.clone(),
                Boot::Pending | Boot::Failed(_) => return,
            };
            vm.unshare(&plan);
            let disks = plan.disk_numbers.iter().map(|number| Slot::Block(*number));
            self.unplug(vm, disks.collect()).await;
        }
    }

    /// Takes a container that did not end in order out of a machine in which others live on.
    pub(super) async fn evict(&self, vm: &Vm) {
        if self.pod.has_others(self.request.id.as_str()) {
            let request = messages::ContainerRequest {
                container_id: self.request.id.to_string(),
                ..Default::default()
            };
            let destroy = vm.agent.destroy_container(Context::default(), &request);
            // It may not have been made.
            let _ = tokio::time::timeout(DESTROY_TIMEOUT, destroy).await;
        }
        self.move_out(vm).await;
    }

    /// Nothing is left to do for the container; what is left of it are files.
    pub(super) fn finished(&self) {
        if self.pod.has_others(self.request.id.as_str()) && self.paths.dir().exists() {
            // The process lives on for others, and is not this container's any more.
            self.update_or_log(|state| state.sandbox = None);
        }
        // Stand-ins nobody asked for end with this.
        lock(&self.attachments).clear();
        let ownership = lock(&self.ownership).take();
        drop(ownership);
        self.pod.forget(self.request.id.as_str());
    }

    /// Without a command that would do it, the end of the machine is that of this process.
    pub(super) async fn finish_unless_held(&self) {
        if self.is_held() {
            return;
        }
        if self.request.auto_remove {
            self.put_away().await;
        }
        self.finished();
    }

    /// The machine is gone. Before the container's end that is a failure, after it the usual way.
    pub(super) fn machine_ended(self: &Arc<Self>, failure: Failure) {
        if *self.torn_down.borrow() {
            return;
        }
        self.torn_down.send_replace(true);
        let exit = Exit {
            code: VM_DIED,
            at_ns: epoch_ns(),
            oom_killed: false,
            signal: 0,
        };
        let started = self
            .state()
            .is_some_and(|state| state.status != Status::Creating);
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
            self.release_init(&process);
        }
        let sandbox = self.clone();
        tokio::spawn(async move {
            if let Some(vm) = sandbox.machine_if_up() {
                // Only one of the two processes has ended.
                vm.kill().await;
            }
            if started {
                sandbox.leave_group().await;
                sandbox.over.store(true, Ordering::Relaxed);
                sandbox.finish_unless_held().await;
            }
        });
    }

    /// The command that was attached leaves the container to itself.
    pub async fn detached(&self) {
        self.held.store(false, Ordering::Relaxed);
        // It ended in the meantime, and its end was left to the command to clean up after.
        if self.over.load(Ordering::Relaxed) {
            self.finish_unless_held().await;
        }
    }

    pub(super) fn machine_if_up(&self) -> Option<Arc<Vm>> {
        match &*self.boot.borrow() {
            Boot::Up(vm, _) => Some(vm.clone()),
            Boot::Pending | Boot::Failed(_) => None,
        }
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn keep_record(&self, failure: &Failure) {
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
        self.end_machine().await;
        self.put_away().await;
        self.finished();
        Ok((std::process::id(), exit))
    }

    /// Ends the machine whatever state the container is in, and then this process. The journal
    /// stays unless the container is to be removed with its end.
    pub async fn shutdown(&self) {
        self.end_machine().await;
        if self.request.auto_remove {
            self.put_away().await;
        }
        self.finished();
    }

    async fn end_machine(&self) {
        self.called_off.send_replace(true);
        // Before the machine goes: what still runs was killed, however it takes it.
        let killed = Exit {
            code: KILLED,
            at_ns: epoch_ns(),
            oom_killed: false,
            signal: 9,
        };
        self.update_or_log(|state| {
            state.status = Status::Stopped;
            state.exit.get_or_insert(killed.clone());
        });
        let processes: Vec<_> = lock(&self.processes).values().cloned().collect();
        for process in &processes {
            process.ended(killed.clone());
            self.release_init(process);
        }
        if let Ok((vm, _)) = self.machine().await {
            self.tear_down(&vm).await;
        }
    }

    /// The attached command is gone. If it died, nothing of the container may outlive it; a container
    /// that had ended in its own time stays in the list unless it was to be removed.
    pub async fn abandoned(&self) {
        self.called_off.send_replace(true);
        let machine = self.machine_if_up();
        self.torn_down.send_replace(true);
        if let Some(vm) = machine {
            self.evict(&vm).await;
        }
        let ended = self
            .state()
            .is_some_and(|state| state.status == Status::Stopped);
        if ended && !self.request.auto_remove {
            self.update_or_log(|state| state.helpers.clear());
            self.leave_group().await;
        } else {
            self.put_away().await;
        }
        self.finished();
    }
}
