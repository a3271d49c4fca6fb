//! Limits of a container that are changed while it runs, and what it uses.

use std::collections::HashMap;

use bulkhead_agent_api::messages::StatsResponse;
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// Type of the usage [`crate::task::TaskService`] tells, as containerd knows it.
pub const METRICS_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// What limits of `now` become with those of `change`: what that lacks, or has as 0 or empty, stays.
#[must_use]
pub fn merge(now: &LinuxResources, change: &LinuxResources) -> LinuxResources {
    let mut merged = now.clone();
    if let Some(change) = change.memory() {
        let now = now.memory().unwrap_or_default();
        merged.set_memory(Some(merge_memory(now, change)));
    }
    if let Some(change) = change.cpu() {
        let now = now.cpu().clone().unwrap_or_default();
        merged.set_cpu(Some(merge_cpu(now, change)));
    }
    if let Some(pids) = change.pids().filter(|pids| pids.limit() != 0) {
        merged.set_pids(Some(pids));
    }
    if let Some(change) = change.block_io() {
        let now = now.block_io().clone().unwrap_or_default();
        merged.set_block_io(Some(merge_block_io(now, change)));
    }
    if let Some(change) = change.unified() {
        let mut unified = now.unified().clone().unwrap_or_default();
        unified.extend(change.clone());
        merged.set_unified(Some(unified));
    }
    merged
}

fn merge_memory(mut now: LinuxMemory, change: &LinuxMemory) -> LinuxMemory {
    let chosen = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(limit) = chosen(change.limit()) {
        now.set_limit(Some(limit));
        // As runc: without a limit of memory there is none of memory and swap together.
        if limit < 0 && chosen(change.swap()).is_none() {
            now.set_swap(Some(limit));
        }
    }
    if let Some(swap) = chosen(change.swap()) {
        now.set_swap(Some(swap));
    }
    if let Some(reservation) = chosen(change.reservation()) {
        now.set_reservation(Some(reservation));
    }
    now
}

fn merge_cpu(mut now: LinuxCpu, change: &LinuxCpu) -> LinuxCpu {
    if let Some(shares) = change.shares().filter(|shares| *shares != 0) {
        now.set_shares(Some(shares));
    }
    if let Some(quota) = change.quota().filter(|quota| *quota != 0) {
        now.set_quota(Some(quota));
    }
    if let Some(period) = change.period().filter(|period| *period != 0) {
        now.set_period(Some(period));
    }
    if let Some(burst) = change.burst() {
        now.set_burst(Some(burst));
    }
    if let Some(idle) = change.idle() {
        now.set_idle(Some(idle));
    }
    let list = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    if let Some(cpus) = list(change.cpus()) {
        now.set_cpus(Some(cpus));
    }
    if let Some(mems) = list(change.mems()) {
        now.set_mems(Some(mems));
    }
    now
}

/// A list that is given stands for all devices of that kind of limit.
fn merge_block_io(mut now: LinuxBlockIo, change: &LinuxBlockIo) -> LinuxBlockIo {
    if let Some(list) = change.throttle_read_bps_device() {
        now.set_throttle_read_bps_device(Some(list.clone()));
    }
    if let Some(list) = change.throttle_write_bps_device() {
        now.set_throttle_write_bps_device(Some(list.clone()));
    }
    if let Some(list) = change.throttle_read_iops_device() {
        now.set_throttle_read_iops_device(Some(list.clone()));
    }
    if let Some(list) = change.throttle_write_iops_device() {
        now.set_throttle_write_iops_device(Some(list.clone()));
    }
    now
}

/// Whether something of a block device's traffic is limited.
fn throttles_devices(resources: &LinuxResources) -> bool {
    let listed = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    resources.block_io().as_ref().is_some_and(|block_io| {
        listed(block_io.throttle_read_bps_device())
            || listed(block_io.throttle_write_bps_device())
            || listed(block_io.throttle_read_iops_device())
            || listed(block_io.throttle_write_iops_device())
    })
}

/// Whether a limit names CPUs, memory nodes or block devices of the host.
#[must_use]
pub fn names_the_hosts(resources: &LinuxResources) -> bool {
    if throttles_devices(resources) {
        return true;
    }
    let named = |list: &Option<String>| list.as_ref().is_some_and(|list| !list.is_empty());
    let cpu = resources.cpu().as_ref();
    cpu.is_some_and(|cpu| named(cpu.cpus()) || named(cpu.mems()))
}

/// The agent's statistics in containerd's form.
#[must_use]
pub fn metrics(stats: &StatsResponse) -> Any {
    // 0 is no limit here, and the largest number there.
    let limit = |limit: u64| if limit == 0 { u64::MAX } else { limit };
    let metrics = Metrics {
        pids: MessageField::some(PidsStat {
            current: stats.pids_current,
            // Here containerd has 0 for it, too.
            limit: stats.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: stats.cpu_usage_us,
            user_usec: stats.cpu_user_us,
            system_usec: stats.cpu_system_us,
            nr_periods: stats.cpu_periods,
            nr_throttled: stats.cpu_throttled_periods,
            throttled_usec: stats.cpu_throttled_us,
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            usage: stats.memory_current_bytes,
            usage_limit: limit(stats.memory_limit_bytes),
            max_usage: stats.memory_peak_bytes,
            swap_usage: stats.swap_current_bytes,
            swap_limit: limit(stats.swap_limit_bytes),
            ..memory(&stats.memory_stat)
        }),
        memory_events: MessageField::some(MemoryEvents {
            max: stats.memory_limit_hits,
            oom: stats.oom_events,
            oom_kill: stats.oom_kills,
            ..Default::default()
        }),
        io: MessageField::some(IOStat {
            usage: vec![IOEntry {
                rbytes: stats.io_read_bytes,
                wbytes: stats.io_write_bytes,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    Any {
        type_url: METRICS_TYPE.to_owned(),
        // It cannot fail: everything in it is set and far below the size a message may have.
        value: metrics.write_to_bytes().unwrap_or_default(),
        ..Default::default()
    }
}

fn memory(stat: &HashMap<String, u64>) -> MemoryStat {
    let of = |name: &str| stat.get(name).copied().unwrap_or(0);
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_refault: of("workingset_refault_anon")
            .saturating_add(of("workingset_refault_file")),
        workingset_activate: of("workingset_activate_anon")
            .saturating_add(of("workingset_activate_file")),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn merged(now: Value, change: Value) -> Value {
        let parse = |value| serde_json::from_value(value).unwrap();
        serde_json::to_value(merge(&parse(now), &parse(change))).unwrap()
    }

    #[test]
    fn merge_what_is_not_chosen_stays() {
        let now = json!({
            "memory": { "limit": 100, "swap": 200 },
            "cpu": { "shares": 5, "quota": 1000, "period": 2000, "cpus": "0" },
            "pids": { "limit": 7 },
        });

        assert_eq!(merged(now.clone(), json!({})), now);
        let zero = json!({
            "memory": { "limit": 0, "reservation": 0, "swap": 0 },
            "cpu": { "shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": "" },
            "pids": { "limit": 0 },
        });
        assert_eq!(merged(now.clone(), zero), now);
        assert_eq!(
            merged(
                now,
                json!({ "memory": { "limit": 50 }, "cpu": { "quota": -1, "mems": "0" },
                    "pids": { "limit": -1 }, "unified": { "memory.high": "40" } })
            ),
            json!({
                "memory": { "limit": 50, "swap": 200 },
                "cpu": { "shares": 5, "quota": -1, "period": 2000, "cpus": "0", "mems": "0" },
                "pids": { "limit": -1 },
                "unified": { "memory.high": "40" },
            })
        );
    }

    #[test]
    fn merge_memory_without_limit_frees_swap_unless_chosen() {
        let now = || json!({ "memory": { "limit": 100, "swap": 200 } });
        assert_eq!(
            merged(now(), json!({ "memory": { "limit": -1 } })),
            json!({ "memory": { "limit": -1, "swap": -1 } })
        );
    }

    #[test]
    fn metrics_have_what_the_guest_counts() {
        let stats = StatsResponse {
            cpu_usage_us: 5,
            memory_current_bytes: 4096,
            memory_stat: [("inactive_file".to_owned(), 7)].into(),
            pids_limit: 3,
            ..Default::default()
        };

        let any = metrics(&stats);

        assert_eq!(any.type_url, METRICS_TYPE);
        let parsed = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(parsed.cpu.usage_usec, 5);
        assert_eq!(
            (parsed.memory.usage, parsed.memory.inactive_file),
            (4096, 7)
        );
        assert_eq!(parsed.memory.usage_limit, u64::MAX);
        assert_eq!(parsed.pids.limit, 3);
    }
}
