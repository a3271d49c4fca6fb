//! `DestroyContainer` and `Shutdown`.

use bulkhead_agent_api::messages::{ContainerRequest, Empty};
use nix::sys::signal::Signal;

use super::Service;
use super::error::RpcError;
use crate::end;

/// Kills what is left of a container and removes what was made for it.
pub async fn container(service: &Service, request: &ContainerRequest) -> Result<Empty, RpcError> {
    let id = &request.container_id;
    // It may still be under way.
    service.registry.process(id, "").await?;
    let container = service.registry.take_container(id)?;
    let killed = container.signal_all(Signal::SIGKILL);
    // A PID namespace ends only when all its processes were reaped, and some are children of this
    // very process: they are waited for here, where the event loop reaps on.
    if killed.is_ok() {
        for (_, process) in service.registry.processes(id) {
            process.exited().await;
        }
    }
    service.registry.forget_processes(id);
    container.destroy()?;
    Ok(Empty::new())
}

/// Writes everything back and powers the guest off; the caller sees the connection end.
pub fn guest() -> ! {
    rustix::fs::sync();
    end::power_off()
}
