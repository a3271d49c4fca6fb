//! `linux.resources` as files of a control group: pure arithmetic.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources,
    LinuxThrottleDevice,
};

use super::Setting;
use crate::container::ContainerError;

/// A process may use a whole period unless a quota is set.
const DEFAULT_CPU_PERIOD_US: u64 = 100_000;

type Settings = Result<Vec<Setting>, ContainerError>;

/// What to write for the limits of the specification, in order. Device rules
/// are not files: see [`super::devices`].
pub fn plan(resources: &LinuxResources) -> Settings {
    if resources.rdma().as_ref().is_some_and(|map| !map.is_empty()) {
        return Err(ContainerError::unsupported(
            "linux.resources.rdma",
            "the guest has no RDMA devices",
        ));
    }
    if let Some(network) = resources.network() {
        let prioritised = network
            .priorities()
            .as_ref()
            .is_some_and(|list| !list.is_empty());
        if network.class_id().is_some_and(|id| id != 0) || prioritised {
            return Err(ContainerError::unsupported(
                "linux.resources.network",
                "traffic classes exist in cgroup v1 only; shape the traffic on the host",
            ));
        }
    }
    let mut settings = Vec::new();
    if let Some(spec) = resources.memory() {
        settings.extend(memory(spec)?);
    }
    if let Some(spec) = resources.cpu() {
        settings.extend(cpu(spec)?);
    }
    if let Some(spec) = resources.pids() {
        settings.extend(pids(*spec));
    }
    if let Some(spec) = resources.block_io() {
        settings.extend(block_io(spec)?);
    }
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        settings.push(huge_pages(index, limit)?);
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        settings.push(unified_file(file, value)?);
    }
    Ok(settings)
}

fn setting(file: &str, value: impl ToString, field: &str) -> Setting {
    Setting {
        file: file.to_owned(),
        value: value.to_string(),
        field: field.to_owned(),
    }
}

/// -1 stands for no limit.
fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

fn memory(spec: &LinuxMemory) -> Settings {
    let field = |name: &str| format!("linux.resources.memory.{name}");
    let refuse = |name: &str, reason: &str| Err(ContainerError::unsupported(field(name), reason));
    let kernel = spec.kernel();
    if kernel.is_some_and(|limit| limit > 0) {
        return refuse(
            "kernel",
            "Linux has no limit of its own for it any more; use limit",
        );
    }
    if spec.kernel_tcp().is_some_and(|limit| limit > 0) {
        return refuse(
            "kernelTCP",
            "cgroup v2 has no limit of its own for it; use limit",
        );
    }
    if spec.swappiness().is_some() {
        return refuse("swappiness", "cgroup v2 has none; use swap");
    }
    if spec.disable_oom_killer() == Some(true) {
        return refuse(
            "disableOOMKiller",
            "cgroup v2 cannot switch it off; raise limit",
        );
    }
    // 0 is how engines say that nothing was chosen.
    let chosen = |value: Option<i64>| value.filter(|&value| value != 0);
    let limit = chosen(spec.limit());
    let mut settings = Vec::new();
    if let Some(limit) = limit {
        settings.push(setting("memory.max", or_max(limit), &field("limit")));
    }
    if let Some(total) = chosen(spec.swap()) {
        // The specification counts memory and swap together, cgroup v2 swap alone.
        let swap = match limit {
            _ if total < 0 => "max".to_owned(),
            Some(limit) if limit > 0 && total >= limit => (total - limit).to_string(),
            Some(limit) if limit < 0 => {
                return Err(ContainerError::invalid(
                    field("swap"),
                    "it needs a limit of memory",
                ));
            }
            Some(_) => {
                return Err(ContainerError::invalid(
                    field("swap"),
                    "it is memory and swap together, so it cannot be less than limit",
                ));
            }
            None => {
                return Err(ContainerError::invalid(
                    field("swap"),
                    "it needs a limit of memory",
                ));
            }
        };
        settings.push(setting("memory.swap.max", swap, &field("swap")));
    }
    if let Some(low) = chosen(spec.reservation()) {
        settings.push(setting("memory.low", or_max(low), &field("reservation")));
    }
    Ok(settings)
}

fn cpu(spec: &LinuxCpu) -> Settings {
    let field = |name: &str| format!("linux.resources.cpu.{name}");
    for (name, value) in [
        (
            "realtimeRuntime",
            spec.realtime_runtime().is_some_and(|value| value != 0),
        ),
        (
            "realtimePeriod",
            spec.realtime_period().is_some_and(|value| value != 0),
        ),
    ] {
        if value {
            return Err(ContainerError::unsupported(
                field(name),
                "cgroup v2 does not share real-time scheduling out",
            ));
        }
    }
    let mut settings = Vec::new();
    if let Some(shares) = spec.shares().filter(|&shares| shares != 0) {
        settings.push(setting(
            "cpu.weight",
            weight_of_shares(shares),
            &field("shares"),
        ));
    }
    let period = spec.period().filter(|&period| period != 0);
    match spec.quota().filter(|&quota| quota != 0) {
        None if period.is_none() => {}
        quota => {
            let quota = quota.map_or("max".to_owned(), or_max);
            let period = period.unwrap_or(DEFAULT_CPU_PERIOD_US);
            settings.push(setting(
                "cpu.max",
                format!("{quota} {period}"),
                &field("quota"),
            ));
        }
    }
    if let Some(burst) = spec.burst() {
        settings.push(setting("cpu.max.burst", burst, &field("burst")));
    }
    if let Some(idle) = spec.idle() {
        settings.push(setting("cpu.idle", idle, &field("idle")));
    }
    for (name, file, value) in [
        ("cpus", "cpuset.cpus", spec.cpus()),
        ("mems", "cpuset.mems", spec.mems()),
    ] {
        if let Some(list) = value.as_ref().filter(|list| !list.is_empty()) {
            settings.push(setting(file, list, &field(name)));
        }
    }
    Ok(settings)
}

/// Shares from 2 to 262144 to weights from 1 to 10000, as all runtimes do it.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn pids(spec: LinuxPids) -> Option<Setting> {
    // 0 is how engines say that nothing was chosen.
    let limit = Some(spec.limit()).filter(|&limit| limit != 0)?;
    Some(setting(
        "pids.max",
        or_max(limit),
        "linux.resources.pids.limit",
    ))
}

fn block_io(spec: &LinuxBlockIo) -> Settings {
    let field = |name: &str| format!("linux.resources.blockIO.{name}");
    if spec.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(ContainerError::unsupported(
            field("leafWeight"),
            "cgroup v2 has none",
        ));
    }
    let mut settings = Vec::new();
    if let Some(weight) = spec.weight().filter(|&weight| weight != 0) {
        let value = format!("default {}", weight_of_block_io(weight, &field("weight"))?);
        settings.push(setting("io.weight", value, &field("weight")));
    }
    for (index, device) in spec.weight_device().iter().flatten().enumerate() {
        let field = field(&format!("weightDevice[{index}]"));
        if device.leaf_weight().is_some_and(|weight| weight != 0) {
            return Err(ContainerError::unsupported(
                field,
                "cgroup v2 has no leaf weights",
            ));
        }
        if let Some(weight) = device.weight() {
            let weight = weight_of_block_io(weight, &field)?;
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            settings.push(setting("io.weight", value, &field));
        }
    }
    for (name, key, devices) in [
        (
            "throttleReadBpsDevice",
            "rbps",
            spec.throttle_read_bps_device(),
        ),
        (
            "throttleWriteBpsDevice",
            "wbps",
            spec.throttle_write_bps_device(),
        ),
        (
            "throttleReadIOPSDevice",
            "riops",
            spec.throttle_read_iops_device(),
        ),
        (
            "throttleWriteIOPSDevice",
            "wiops",
            spec.throttle_write_iops_device(),
        ),
    ] {
        for (index, device) in devices.iter().flatten().enumerate() {
            settings.push(throttle(device, key, &field(&format!("{name}[{index}]"))));
        }
    }
    Ok(settings)
}

/// Weights from 10 to 1000 to weights from 1 to 10000.
fn weight_of_block_io(weight: u16, field: &str) -> Result<u32, ContainerError> {
    if !(10..=1000).contains(&weight) {
        return Err(ContainerError::invalid(
            field,
            "a weight lies between 10 and 1000",
        ));
    }
    Ok(1 + (u32::from(weight) - 10) * 9_999 / 990)
}

fn throttle(device: &LinuxThrottleDevice, key: &str, field: &str) -> Setting {
    let rate = match device.rate() {
        0 => "max".to_owned(),
        rate => rate.to_string(),
    };
    setting(
        "io.max",
        format!("{}:{} {key}={rate}", device.major(), device.minor()),
        field,
    )
}

fn huge_pages(index: usize, limit: &LinuxHugepageLimit) -> Result<Setting, ContainerError> {
    let field = format!("linux.resources.hugepageLimits[{index}]");
    let size = limit.page_size();
    let digits = size
        .trim_end_matches("KB")
        .trim_end_matches("MB")
        .trim_end_matches("GB");
    if digits.is_empty()
        || digits.len() == size.len()
        || !digits.bytes().all(|b| b.is_ascii_digit())
    {
        return Err(ContainerError::invalid(field, "a page size looks like 2MB"));
    }
    Ok(setting(
        &format!("hugetlb.{size}.max"),
        or_max(limit.limit()),
        &field,
    ))
}

fn unified_file(file: &str, value: &str) -> Result<Setting, ContainerError> {
    let field = format!("linux.resources.unified[{file:?}]");
    let name_ok = file.contains('.') && !file.starts_with('.') && !file.contains(['/', '\0']);
    if !name_ok || file.starts_with("cgroup.") {
        return Err(ContainerError::invalid(
            field,
            "it is no file of a controller's",
        ));
    }
    Ok(setting(file, value, &field))
}
