//! `DestroyContainer` and `Shutdown`.

use bulkhead_agent_api::messages::Empty;
use nix::sys::signal::Signal;

use super::Service;
use super::error::RpcError;
use crate::container::Container;
use crate::end;

/// Kills what is left of a container and removes what was made for it.
pub async fn container(service: &Service, id: &str) -> Result<Empty, RpcError> {
    // It may still be under way.
    service.registry.process(id, "").await?;
    let container = service.registry.take_container(id)?;
    kill(service, &container, id).await;
    service.registry.forget_processes(id);
    container.destroy()?;
    Ok(Empty::new())
}

/// Kills every container and powers the guest off; the caller sees the connection end.
///
/// Nothing has to be written back: what a program writes to the shared file system goes to the host
/// before the call returns, and what it has mapped when the last process that maps it ends.
/// Everything else the guest has is in its memory.
pub async fn guest(service: &Service) -> ! {
    for id in service.registry.containers() {
        if let Ok(container) = service.registry.take_container(&id) {
            kill(service, &container, &id).await;
        }
    }
    end::power_off()
}

/// Kills every process of a container and waits until those the host knows are gone.
///
/// A PID namespace ends only when all its processes were reaped, and some are children of this very
/// process: they are waited for here, where the event loop reaps on.
async fn kill(service: &Service, container: &Container, id: &str) {
    // Destroying the container kills as well, and says what is wrong.
    if container.signal_all(Signal::SIGKILL).is_ok() {
        for (_, process) in service.registry.processes(id) {
            process.exited().await;
        }
    }
}
