//! `update` and `stats`: limits that are changed, and what is used of them.

use bulkhead_oci::{check_resources, strip_host_limits};
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::*;
use crate::cost::MachineUse;
use crate::limits;
use crate::plan;

impl Sandbox {
    /// Changes limits of the container in its guest, and of the machine on the host; what `change` does
    /// not name stays. Device rules are not changed, as with runc.
    ///
    /// # Errors
    /// Among others when the machine is too small for the memory asked for. Nothing is changed then.
    pub async fn update_limits(
        &self,
        id: &str,
        change: &LinuxResources,
    ) -> Result<(), SandboxError> {
        let init = self.process(id, "")?;
        let _one_at_a_time = self.verb.lock().await;
        if matches!(init.status(), Status::Creating | Status::Stopped) {
            return Err(self.wrong_state("update", init.status()));
        }
        check_resources(change).map_err(PlanError::from)?;
        let (vm, plan) = self.machine().await?;
        let now = self.limits_now(&plan);
        let wanted = limits::merge(&now, change);
        // Values that are right by themselves may not fit together.
        check_resources(&wanted).map_err(PlanError::from)?;
        check_memory(&plan, &wanted)?;
        if limits::names_the_hosts(change) {
            if !self.has_group() {
                return Err(SandboxError::NoGroup);
            }
            if !self.group_has_machine() {
                return Err(PlanError::HostLimitForPod.into());
            }
        }
        let changed = async {
            self.set_host_limits(&plan, &wanted)?;
            self.set_guest_limits(&vm, &wanted).await
        };
        if let Err(error) = changed.await {
            // The guest has changed nothing, and the host had those limits before.
            if let Err(error) = self.set_host_limits(&plan, &now) {
                tracing::warn!("{}", crate::error::chain(&error));
            }
            return Err(error);
        }
        self.fit_machine(&vm, &plan, &wanted).await;
        *lock(&self.limits) = Some(wanted);
        Ok(())
    }

    /// Asks the guest for the memory that its only container may not use any more, or lets it have that
    /// again. What a machine without a balloon has been given it keeps, which no limit forbids.
    async fn fit_machine(&self, vm: &Vm, plan: &Plan, wanted: &LinuxResources) {
        // What one container of a pod may not use, another one may.
        let Some(limit) =
            memory_limit(wanted).filter(|_| !self.pod.has_others(self.request.id.as_str()))
        else {
            return;
        };
        let bytes = plan::machine_for(limit, &plan.config).min(plan.memory_bytes);
        if let Err(error) = vm.set_memory(bytes).await {
            tracing::warn!("{}", crate::error::chain(&error));
        }
    }

    async fn set_guest_limits(&self, vm: &Vm, wanted: &LinuxResources) -> Result<(), SandboxError> {
        let mut resources = wanted.clone();
        strip_host_limits(&mut resources);
        resources.set_devices(None);
        let json = serde_json::to_vec(&resources);
        let json = json.map_err(SandboxError::Describe)?;
        let request = messages::UpdateContainerRequest {
            container_id: self.request.id.to_string(),
            resources_json: json,
            ..Default::default()
        };
        let call = vm.agent.update_container(Context::default(), &request);
        self.ask(vm, "change the limits", call).await.map(|_| ())
    }

    fn limits_now(&self, plan: &Plan) -> LinuxResources {
        let changed = lock(&self.limits).clone();
        changed.unwrap_or_else(|| of_bundle(plan).cloned().unwrap_or_default())
    }

    /// What the container uses and may use, as the guest counts it.
    ///
    /// # Errors
    /// When the container has ended or the agent does not answer.
    pub async fn stats(&self, id: &str) -> Result<messages::StatsResponse, SandboxError> {
        let init = self.process(id, "")?;
        if init.status() == Status::Stopped {
            return Err(self.wrong_state("count what is used by", Status::Stopped));
        }
        let (vm, _) = self.machine().await?;
        let request = messages::ContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = vm.agent.stats(Context::default(), &request);
        self.ask(&vm, "count what is used", call).await
    }

    /// What the container's machine uses, which it may share with others.
    ///
    /// # Errors
    /// When the container has ended.
    pub async fn machine_use(&self, id: &str) -> Result<MachineUse, SandboxError> {
        let init = self.process(id, "")?;
        if init.status() == Status::Stopped {
            return Err(self.wrong_state("count what is used by", Status::Stopped));
        }
        let (vm, _) = self.machine().await?;
        Ok(vm.meter.machine_use(&vm.channel).await)
    }
}

fn of_bundle(plan: &Plan) -> Option<&LinuxResources> {
    plan.bundle.spec.linux().as_ref()?.resources().as_ref()
}

fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let limit = resources.memory().as_ref().and_then(LinuxMemory::limit)?;
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

/// A machine keeps the memory it was started with.
fn check_memory(plan: &Plan, wanted: &LinuxResources) -> Result<(), SandboxError> {
    const MIB: u64 = 1 << 20;
    let Some(limit) = memory_limit(wanted) else {
        return Ok(());
    };
    // An annotation may have made the machine smaller than its container's limit asks for.
    let at_start = of_bundle(plan).and_then(memory_limit).unwrap_or(0);
    if limit <= at_start || plan::machine_for(limit, &plan.config) <= plan.memory_bytes {
        return Ok(());
    }
    let overhead = plan.config.overhead_mib.saturating_mul(MIB);
    let most = plan.memory_bytes.saturating_sub(overhead) / 65 * 64;
    Err(SandboxError::TooMuchMemory {
        asked_mib: limit / MIB,
        machine_mib: plan.memory_bytes / MIB,
        most_mib: most.max(at_start) / MIB,
    })
}
