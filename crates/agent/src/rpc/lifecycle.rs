//! `Start`, `Wait`, `Signal`, `ResizeTerminal`, `DeleteExec`, `UpdateContainer`, `Pause`, `Resume`.

use bulkhead_agent_api::messages::{
    ContainerRequest, Empty, ExitResponse, ProcessRequest, ProcessResponse, ResizeRequest,
    SignalRequest, UpdateContainerRequest,
};
use nix::sys::signal::Signal;

use super::Service;
use super::error::RpcError;
use crate::clock::Timeline;
use crate::container::Container;
use crate::process::send_signal;
use crate::streams;

/// The highest signal number there is.
const LAST_SIGNAL: i32 = 64;

/// Opens the process' gate.
pub async fn start(
    service: &Service,
    request: ProcessRequest,
) -> Result<ProcessResponse, RpcError> {
    let mut timeline = Timeline::start();
    let process = service
        .registry
        .process(&request.container_id, &request.exec_id)
        .await?;
    process.start().await?.map_err(RpcError::Start)?;
    timeline.lap("agent: start program");
    let mut response = ProcessResponse::new();
    response.pid = u32::try_from(process.pid).unwrap_or(0);
    response.spans = timeline.into_spans();
    Ok(response)
}

/// Blocks until the process ended and its output was handed over.
pub async fn wait(service: &Service, request: ProcessRequest) -> Result<ExitResponse, RpcError> {
    let process = service
        .registry
        .process(&request.container_id, &request.exec_id)
        .await?;
    let end = process.wait().await?;
    let mut response = ExitResponse::new();
    response.exit_code = end.exited.code;
    response.signal = end.exited.signal;
    response.oom_killed = end.oom_killed;
    response.exited_at_ns = end.exited.at_ns;
    response.spans = end.spans;
    Ok(response)
}

/// Signals one process, or every process of the container.
pub async fn signal(service: &Service, request: SignalRequest) -> Result<Empty, RpcError> {
    let number = i32::try_from(request.signal)
        .ok()
        .filter(|number| (0..=LAST_SIGNAL).contains(number))
        .ok_or(RpcError::Request {
            field: "signal",
            reason: "signals go from 0 to 64",
        })?;
    let process = service
        .registry
        .process(&request.container_id, &request.exec_id)
        .await?;
    if !request.all {
        process.signal(number)?;
        return Ok(Empty::new());
    }
    service
        .registry
        .with_container(&request.container_id, |container| {
            signal_all(container, number)
        })??;
    Ok(Empty::new())
}

fn signal_all(container: &Container, number: i32) -> Result<(), RpcError> {
    if let Ok(signal) = Signal::try_from(number) {
        return Ok(container.signal_all(signal)?);
    }
    // Real-time signals have no name.
    for process in container.processes()? {
        let Ok(pid) = i32::try_from(process.pid) else {
            continue;
        };
        match send_signal(pid, number) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(RpcError::System {
                    what: "signal a process",
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Gives a process' terminal a new size.
pub async fn resize(service: &Service, request: ResizeRequest) -> Result<Empty, RpcError> {
    let (columns, rows) = streams::size(request.columns, request.rows)?;
    let process = service
        .registry
        .process(&request.container_id, &request.exec_id)
        .await?;
    process.resize(columns, rows)?;
    Ok(Empty::new())
}

/// Forgets an ended exec process.
pub async fn delete_exec(service: &Service, request: ProcessRequest) -> Result<Empty, RpcError> {
    if request.exec_id.is_empty() {
        let reason = "a container's init process goes with DestroyContainer";
        return Err(RpcError::Request {
            field: "exec_id",
            reason,
        });
    }
    let process = service
        .registry
        .process(&request.container_id, &request.exec_id)
        .await?;
    if !process.ended() {
        return Err(RpcError::Running {
            container: request.container_id,
            exec: request.exec_id,
        });
    }
    service
        .registry
        .forget_process(&request.container_id, &request.exec_id);
    Ok(Empty::new())
}

/// Changes limits of a container.
pub fn update(service: &Service, request: &UpdateContainerRequest) -> Result<Empty, RpcError> {
    let resources = serde_json::from_slice(&request.resources_json)
        .map_err(|error| RpcError::json("resources_json", &error))?;
    let update = |container: &Container| container.update(&resources);
    service
        .registry
        .with_container(&request.container_id, update)??;
    Ok(Empty::new())
}

/// Freezes every process of a container.
pub fn pause(service: &Service, request: &ContainerRequest) -> Result<Empty, RpcError> {
    service
        .registry
        .with_container(&request.container_id, Container::pause)??;
    Ok(Empty::new())
}

/// Thaws every process of a container.
pub fn resume(service: &Service, request: &ContainerRequest) -> Result<Empty, RpcError> {
    service
        .registry
        .with_container(&request.container_id, Container::resume)??;
    Ok(Empty::new())
}
