//! Refusals about limits: a limit that nothing would enforce is refused, not dropped.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, Spec};

use super::host::found_if;
use super::{Because, Rule};

pub(super) const RULES: &[Rule] = &[
    Rule {
        field: "linux.resources.rdma",
        because: Because::OwnKernel,
        reason: "the guest has no RDMA device",
        alternative: "remove it",
        find: |spec| {
            let rdma = resources(spec).and_then(|resources| resources.rdma().as_ref());
            found_if(
                rdma.is_some_and(|map| !map.is_empty()),
                "linux.resources.rdma",
            )
        },
    },
    Rule {
        field: "linux.resources.network",
        because: Because::GuestKernel,
        reason: "class ids and priorities are of cgroup v1, and the guest has cgroup v2",
        alternative: "remove it and shape the traffic on the host",
        find: |spec| {
            let Some(network) = resources(spec).and_then(|r| r.network().as_ref()) else {
                return Vec::new();
            };
            let class = network.class_id().is_some_and(|id| id != 0);
            let mut found = found_if(class, "linux.resources.network.classID");
            let priorities = network
                .priorities()
                .as_ref()
                .is_some_and(|list| !list.is_empty());
            found.extend(found_if(priorities, "linux.resources.network.priorities"));
            found
        },
    },
    Rule {
        field: "linux.resources.hugepageLimits[].limit above 0",
        because: Because::NotBuilt,
        reason: "the guest has no huge pages set aside",
        alternative: "remove it, or set the limit to 0",
        find: |spec| {
            let limits = resources(spec).and_then(|r| r.hugepage_limits().as_deref());
            let limits = limits.unwrap_or_default();
            let at = limits.iter().position(|limit| limit.limit() != 0);
            at.map(|index| format!("linux.resources.hugepageLimits[{index}].limit"))
                .into_iter()
                .collect()
        },
    },
    Rule {
        field: "linux.resources.blockIO.weight, leafWeight, weightDevice",
        because: Because::NotBuilt,
        reason: "weights are not handed to the host's I/O scheduler in this version",
        alternative: "remove it, or use linux.resources.blockIO.throttleReadBpsDevice and the like",
        find: |spec| {
            let block_io = resources(spec).and_then(|r| r.block_io().as_ref());
            block_io.map(weights).unwrap_or_default()
        },
    },
    Rule {
        field: "linux.resources.blockIO.throttle… without linux.cgroupsPath",
        because: Because::OwnKernel,
        reason: "the devices are the host's, and only a control group of the host slows down what the virtual machine reads and writes",
        alternative: "set linux.cgroupsPath",
        find: |spec| {
            let block_io = resources(spec).and_then(|r| r.block_io().as_ref());
            match block_io {
                Some(block_io) if !has_group(spec) => throttles(block_io),
                _ => Vec::new(),
            }
        },
    },
    Rule {
        field: "linux.resources.memory.kernel, kernelTCP, swappiness, disableOOMKiller",
        because: Because::GuestKernel,
        reason: "it is of cgroup v1, and the guest has cgroup v2",
        alternative: "remove it and use memory.limit",
        find: |spec| {
            resources(spec)
                .and_then(|r| r.memory().as_ref())
                .map(memory_fields)
                .unwrap_or_default()
        },
    },
    Rule {
        field: "linux.resources.cpu.realtimeRuntime, realtimePeriod",
        because: Because::GuestKernel,
        reason: "it is of cgroup v1, and the guest has cgroup v2",
        alternative: "remove it and use cpu.quota",
        find: |spec| {
            resources(spec)
                .and_then(|r| r.cpu().as_ref())
                .map(cpu_fields)
                .unwrap_or_default()
        },
    },
    Rule {
        field: "linux.resources.cpu.cpus, mems without linux.cgroupsPath",
        because: Because::OwnKernel,
        reason: "the numbers are of the host's CPUs and memory nodes, and only a control group of the host binds the virtual machine to them",
        alternative: "set linux.cgroupsPath",
        find: |spec| {
            if has_group(spec) {
                return Vec::new();
            }
            let Some(cpu) = resources(spec).and_then(|r| r.cpu().as_ref()) else {
                return Vec::new();
            };
            let listed = |list: &Option<String>| list.as_ref().is_some_and(|list| !list.is_empty());
            let mut found = found_if(listed(cpu.cpus()), "linux.resources.cpu.cpus");
            found.extend(found_if(listed(cpu.mems()), "linux.resources.cpu.mems"));
            found
        },
    },
    Rule {
        field: "linux.resources.unified of the io, rdma, hugetlb and misc controllers",
        because: Because::NotBuilt,
        reason: "the controller would find nothing to control in the guest",
        alternative: "remove it",
        find: |spec| {
            let unified = resources(spec).and_then(|r| r.unified().as_ref());
            let mut keys: Vec<_> = unified
                .into_iter()
                .flat_map(|map| map.keys())
                .filter(|key| {
                    let controller = key.split('.').next().unwrap_or_default();
                    matches!(controller, "io" | "rdma" | "hugetlb" | "misc")
                })
                .map(|key| format!("linux.resources.unified[{}]", crate::text::quoted(key)))
                .collect();
            keys.sort();
            keys
        },
    },
];

fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

/// Whether the container has a control group on the host.
fn has_group(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
    path.is_some_and(|path| !path.as_os_str().is_empty())
}

fn weights(block_io: &LinuxBlockIo) -> Vec<String> {
    let weight = |value: Option<u16>| value.is_some_and(|weight| weight != 0);
    let weights = block_io
        .weight_device()
        .as_ref()
        .is_some_and(|list| !list.is_empty());
    [
        ("weight", weight(block_io.weight())),
        ("leafWeight", weight(block_io.leaf_weight())),
        ("weightDevice", weights),
    ]
    .into_iter()
    .filter(|(_, asked)| *asked)
    .map(|(name, _)| format!("linux.resources.blockIO.{name}"))
    .collect()
}

fn throttles(block_io: &LinuxBlockIo) -> Vec<String> {
    let throttle = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    [
        (
            "throttleReadBpsDevice",
            throttle(block_io.throttle_read_bps_device()),
        ),
        (
            "throttleWriteBpsDevice",
            throttle(block_io.throttle_write_bps_device()),
        ),
        (
            "throttleReadIOPSDevice",
            throttle(block_io.throttle_read_iops_device()),
        ),
        (
            "throttleWriteIOPSDevice",
            throttle(block_io.throttle_write_iops_device()),
        ),
    ]
    .into_iter()
    .filter(|(_, asked)| *asked)
    .map(|(name, _)| format!("linux.resources.blockIO.{name}"))
    .collect()
}

fn memory_fields(memory: &LinuxMemory) -> Vec<String> {
    #[allow(deprecated, reason = "refused when it is asked for")]
    let kernel = memory.kernel();
    [
        ("kernel", kernel.is_some_and(|bytes| bytes > 0)),
        (
            "kernelTCP",
            memory.kernel_tcp().is_some_and(|bytes| bytes > 0),
        ),
        ("swappiness", memory.swappiness().is_some()),
        (
            "disableOOMKiller",
            memory.disable_oom_killer() == Some(true),
        ),
    ]
    .into_iter()
    .filter(|(_, asked)| *asked)
    .map(|(name, _)| format!("linux.resources.memory.{name}"))
    .collect()
}

fn cpu_fields(cpu: &LinuxCpu) -> Vec<String> {
    [
        (
            "realtimeRuntime",
            cpu.realtime_runtime().is_some_and(|value| value > 0),
        ),
        (
            "realtimePeriod",
            cpu.realtime_period().is_some_and(|value| value > 0),
        ),
    ]
    .into_iter()
    .filter(|(_, asked)| *asked)
    .map(|(name, _)| format!("linux.resources.cpu.{name}"))
    .collect()
}
