//! `CreateContainer`, a process up to, not including, its program, and `Exec`, a process with it.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bulkhead_agent_api::SHARE_DIR;
use bulkhead_agent_api::messages::{
    CreateContainerRequest, ExecRequest, ProcessResponse, Span, Stdio,
};
use oci_spec::runtime::{Process as OciProcess, Spec};
use tokio::sync::watch;

use super::Service;
use super::error::RpcError;
use crate::clock::{Timeline, monotonic_ns};
use crate::container::{Child, Container};
use crate::process::{End, Process, Way, send_signal};
use crate::reaper::Exited;
use crate::registry::Registry;
use crate::streams::{Handover, Streams};
use crate::watched;

/// Creates a container and its init process.
///
/// # Errors
/// Leaves nothing of the container behind.
pub async fn container(
    service: &Service,
    request: CreateContainerRequest,
) -> Result<ProcessResponse, RpcError> {
    let mut timeline = Timeline::start();
    check_id("container_id", &request.container_id)?;
    let id = request.container_id.as_str();
    let rootfs = in_share(&request.rootfs)?;
    let mut spec: Spec = serde_json::from_slice(&request.spec_json)
        .map_err(|error| RpcError::json("spec_json", &error))?;
    crate::disks::renumber(&mut spec, &request.disks)?;
    let reservation = service.registry.reserve(id, "")?;
    if !request.interfaces.is_empty() {
        crate::network::configure(&request.interfaces)?;
        timeline.lap("agent: network");
    }
    let (io, streams) = Streams::open(request.stdio.as_ref().unwrap_or(&Stdio::new()))?;
    let bundle = Path::new(&request.bundle);
    let (container, child) = Container::create(id, spec, &rootfs, bundle, io)?;
    let child_pid = child.pid.as_raw();
    let exited = service.reaper.register(child_pid);
    timeline.lap("agent: clone");
    match accompany(service, id, child, streams, exited.clone()).await {
        Ok(process) => {
            timeline.lap("agent: set up container");
            let mut response = response(&process, timeline.into_spans());
            response.boot_spans = service.boot.to_vec();
            response.kernel_release = super::info::kernel_release();
            reservation.fill(process, Some(container));
            Ok(response)
        }
        Err(error) => {
            kill_new(child_pid, exited).await;
            // The first error is the one to tell.
            let _ = container.destroy();
            Err(error)
        }
    }
}

/// Starts a further process in a container.
///
/// # Errors
/// Leaves nothing of the process behind.
pub async fn exec(service: &Service, request: ExecRequest) -> Result<ProcessResponse, RpcError> {
    let mut timeline = Timeline::start();
    check_id("exec_id", &request.exec_id)?;
    let id = request.container_id.as_str();
    let process: OciProcess = serde_json::from_slice(&request.process_json)
        .map_err(|error| RpcError::json("process_json", &error))?;
    // It may still be under way.
    service.registry.process(id, "").await?;
    let reservation = service.registry.reserve(id, &request.exec_id)?;
    let (io, streams) = Streams::open(request.stdio.as_ref().unwrap_or(&Stdio::new()))?;
    let child = service
        .registry
        .with_container(id, |container| container.exec(&process, io))??;
    let child_pid = child.pid.as_raw();
    let exited = service.reaper.register(child_pid);
    timeline.lap("agent: clone");
    let accompanied = accompany(service, id, child, streams, exited.clone()).await;
    // It may have been destroyed meanwhile.
    let _ = service.registry.with_container(id, Container::settle);
    match accompanied {
        Ok(process) => {
            timeline.lap("agent: set up process");
            let response = response(&process, timeline.into_spans());
            reservation.fill(process, None);
            Ok(response)
        }
        Err(error) => {
            kill_new(child_pid, exited).await;
            Err(error)
        }
    }
}

/// Accompanies a new child to its gate, or to its program if it has none, and connects its streams
/// meanwhile.
async fn accompany(
    service: &Service,
    container: &str,
    child: Child,
    streams: Streams,
    exited: watch::Receiver<Option<Exited>>,
) -> Result<Arc<Process>, RpcError> {
    let watching = |source| RpcError::System {
        what: "watch a new process",
        source,
    };
    let mut child = child;
    let pid = child.pid.as_raw();
    let terminal = match child.terminal.take() {
        Some(master) => Some(Arc::new(watched::both_ways(master).map_err(watching)?)),
        None => None,
    };
    let has_gate = child.gate.is_some();
    let way = Way::new(child).map_err(watching)?;
    streams.connected().await?;
    let way = if has_gate {
        Some(way.ready().await.map_err(RpcError::Start)?)
    } else {
        way.go().await.map_err(RpcError::Start)?;
        None
    };
    let (sender, end) = watch::channel(None);
    let process = Process::new(pid, way, terminal.as_ref(), exited.clone(), end);
    let handover = streams.relay(terminal)?;
    let registry = Arc::clone(&service.registry);
    tokio::spawn(supervise(
        registry,
        container.to_owned(),
        exited,
        handover,
        sender,
    ));
    Ok(Arc::new(process))
}

/// Ends a process whose creation failed, wherever on its way it is.
async fn kill_new(pid: i32, exited: watch::Receiver<Option<Exited>>) {
    if exited.borrow().is_none() {
        // It may be dead; until it is reaped its number is nobody else's.
        let _ = send_signal(pid, libc::SIGKILL);
    }
    await_exit(exited).await;
}

/// Waits for the end of a process and of its output, and publishes it.
async fn supervise(
    registry: Arc<Registry>,
    container: String,
    exited: watch::Receiver<Option<Exited>>,
    handover: Handover,
    sender: watch::Sender<Option<End>>,
) {
    let Some(exited) = await_exit(exited).await else {
        return;
    };
    // A container that is being destroyed no longer has figures.
    let oom_kills = registry.with_container(&container, Container::oom_kills);
    let oom_killed = matches!(oom_kills, Ok(Ok(1..)));
    handover.complete().await;
    let mut span = Span::new();
    span.name = "agent: hand over output".to_owned();
    span.start_ns = exited.monotonic_ns;
    span.end_ns = monotonic_ns();
    sender.send_replace(Some(End {
        exited,
        oom_killed,
        spans: vec![span],
    }));
    let _ = registry.with_container(&container, Container::settle);
}

/// Waits until the reaper has seen the end of a process.
pub async fn await_exit(mut exited: watch::Receiver<Option<Exited>>) -> Option<Exited> {
    match exited.wait_for(Option::is_some).await {
        Ok(exited) => *exited,
        Err(_) => None,
    }
}

fn response(process: &Process, spans: Vec<Span>) -> ProcessResponse {
    let mut response = ProcessResponse::new();
    response.pid = u32::try_from(process.pid).unwrap_or(0);
    response.spans = spans;
    response
}

/// A name must be usable as one component of a path.
fn check_id(field: &'static str, id: &str) -> Result<(), RpcError> {
    let reason = if id.is_empty() {
        "it is empty"
    } else if id.len() > 255 {
        "it is longer than 255 bytes"
    } else if id == "." || id == ".." || id.contains(['/', '\0']) {
        "it is not a plain name"
    } else {
        return Ok(());
    };
    Err(RpcError::Request { field, reason })
}

/// A path below the share, for one relative to it.
fn in_share(relative: &str) -> Result<PathBuf, RpcError> {
    let path = Path::new(relative);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain || relative.is_empty() || relative.contains('\0') {
        let reason = "a path below the share is needed, without `..`";
        return Err(RpcError::Request {
            field: "rootfs",
            reason,
        });
    }
    Ok(Path::new(SHARE_DIR).join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_share_plain_path_is_below_the_share() {
        assert_eq!(
            in_share("c1/rootfs").unwrap(),
            Path::new("/run/bulkhead/share/c1/rootfs")
        );
    }

    #[test]
    fn in_share_path_that_leaves_is_refused() {
        for path in ["", "/", "/etc", "..", "a/../..", "a/..", "a\0b"] {
            assert!(in_share(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn check_id_name_that_is_no_component_is_refused() {
        for id in ["", ".", "..", "a/b", "a\0", &"x".repeat(256)] {
            assert!(check_id("container_id", id).is_err(), "{id:?}");
        }
        assert!(check_id("container_id", "web-1_a.b").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn in_share_any_accepted_path_stays_inside(path in "[a./\\x00]{0,12}") {
            if let Ok(inside) = in_share(&path) {
                proptest::prop_assert!(inside.starts_with(SHARE_DIR));
                proptest::prop_assert!(inside != Path::new(SHARE_DIR));
                proptest::prop_assert!(!inside.components().any(|c| c == Component::ParentDir));
            }
        }
    }
}
