//! `Processes` and `Stats`.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_agent_api::messages::{ContainerRequest, Process, ProcessesResponse, StatsResponse};

use super::Service;
use super::error::RpcError;
use crate::container::Container;

/// The processes of a container as seen from the guest.
pub fn processes(
    service: &Service,
    request: &ContainerRequest,
) -> Result<ProcessesResponse, RpcError> {
    let id = &request.container_id;
    let found = service
        .registry
        .with_container(id, Container::processes)??;
    let exec_ids: BTreeMap<u32, String> = service
        .registry
        .processes(id)
        .into_iter()
        .filter(|(_, process)| !process.ended())
        .filter_map(|(exec, process)| Some((u32::try_from(process.pid).ok()?, exec)))
        .collect();
    let mut response = ProcessesResponse::new();
    response.processes = found
        .into_iter()
        .map(|found| {
            let mut process = Process::new();
            process.pid = found.pid;
            process.parent = found.parent;
            process.uid = found.uid;
            process.command = found.command;
            process.args = found.args;
            process.cpu_ms = milliseconds(found.cpu);
            process.started_ms = milliseconds(found.started);
            process.exec_id = exec_ids.get(&found.pid).cloned().unwrap_or_default();
            process
        })
        .collect();
    Ok(response)
}

/// What a container uses and may use.
pub fn stats(service: &Service, request: &ContainerRequest) -> Result<StatsResponse, RpcError> {
    let found = service
        .registry
        .with_container(&request.container_id, Container::stats)??;
    let mut response = StatsResponse::new();
    response.cpu_usage_us = found.cpu_usage_us;
    response.cpu_user_us = found.cpu_user_us;
    response.cpu_system_us = found.cpu_system_us;
    response.cpu_throttled_us = found.cpu_throttled_us;
    response.memory_current_bytes = found.memory_current_bytes;
    response.memory_limit_bytes = found.memory_limit_bytes.unwrap_or(0);
    response.memory_peak_bytes = found.memory_peak_bytes;
    response.oom_kills = found.oom_kills;
    response.pids_current = found.pids_current;
    response.pids_limit = found.pids_limit.unwrap_or(0);
    response.io_read_bytes = found.io_read_bytes;
    response.io_write_bytes = found.io_write_bytes;
    response.cpu_periods = found.cpu_periods;
    response.cpu_throttled_periods = found.cpu_throttled_periods;
    response.memory_limit_hits = found.memory_limit_hits;
    response.oom_events = found.oom_events;
    response.memory_stat = found.memory_stat.into_iter().collect();
    response.swap_current_bytes = found.swap_current_bytes;
    response.swap_limit_bytes = found.swap_limit_bytes.unwrap_or(0);
    Ok(response)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
