//! Checks `linux`: namespaces, devices, limits, paths and the seccomp filter.

use std::collections::HashSet;
use std::path::Path;

use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDevice, LinuxDeviceType, LinuxMemory, LinuxNamespace, LinuxNamespaceType,
    LinuxResources, LinuxSeccomp, LinuxSeccompAction,
};

use super::{Checked, Problem, fail, in_range, inside_path, no_nul};

/// Device numbers: 12 bits of major and 20 of minor in Linux.
const MAJOR_MAX: i64 = (1 << 12) - 1;
const MINOR_MAX: i64 = (1 << 20) - 1;
/// Largest errno a system call can return (`MAX_ERRNO`).
const ERRNO_MAX: u32 = 4095;

pub(super) fn check(linux: &Linux) -> Checked {
    namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
    devices(linux.devices().as_deref().unwrap_or_default())?;
    for (list, paths) in [
        ("linux.maskedPaths", linux.masked_paths()),
        ("linux.readonlyPaths", linux.readonly_paths()),
    ] {
        for (index, path) in paths.iter().flatten().enumerate() {
            inside_path(|| format!("{list}[{index}]"), Path::new(path))?;
        }
    }
    propagation(linux.rootfs_propagation().as_deref().unwrap_or_default())?;
    for (key, value) in linux.sysctl().iter().flatten() {
        sysctl(key, value)?;
    }
    if let Some(resources) = linux.resources() {
        limits(resources)?;
    }
    if let Some(filter) = linux.seccomp() {
        seccomp(filter)?;
    }
    Ok(())
}

fn namespaces(list: &[LinuxNamespace]) -> Checked {
    let mut seen = HashSet::new();
    for (index, namespace) in list.iter().enumerate() {
        if !seen.insert(namespace.typ()) {
            return fail(
                format!("linux.namespaces[{index}].type"),
                Problem::Duplicate(json_name(namespace.typ()).into()),
            );
        }
        if let Some(path) = namespace
            .path()
            .as_deref()
            .filter(|p| !p.as_os_str().is_empty())
        {
            inside_path(|| format!("linux.namespaces[{index}].path"), path)?;
        }
    }
    if seen.contains(&LinuxNamespaceType::Mount) {
        Ok(())
    } else {
        fail(
            "linux.namespaces",
            Problem::Missing("a container needs a mount namespace, add {\"type\": \"mount\"}"),
        )
    }
}

/// The name a namespace type has in config.json.
pub(crate) fn json_name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn devices(list: &[LinuxDevice]) -> Checked {
    let mut seen = HashSet::new();
    for (index, device) in list.iter().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        inside_path(|| field("path"), device.path())?;
        if !seen.insert(device.path()) {
            let path = device.path().to_string_lossy().into_owned();
            return fail(field("path"), Problem::Duplicate(path));
        }
        match device.typ() {
            LinuxDeviceType::A => {
                return fail(
                    field("type"),
                    Problem::Unknown {
                        value: "a".into(),
                        known: "b, c, u, p".into(),
                    },
                );
            }
            LinuxDeviceType::P => {}
            LinuxDeviceType::B | LinuxDeviceType::C | LinuxDeviceType::U => {
                let words = "between 0 and 4095";
                in_range(|| field("major"), device.major(), 0..=MAJOR_MAX, words)?;
                let words = "between 0 and 1048575";
                in_range(|| field("minor"), device.minor(), 0..=MINOR_MAX, words)?;
            }
        }
    }
    Ok(())
}

fn propagation(value: &str) -> Checked {
    const KNOWN: &str = "shared, slave, private, unbindable, each also with an r in front";
    let plain = value.strip_prefix('r').unwrap_or(value);
    match plain {
        "" if value.is_empty() => Ok(()),
        "shared" | "slave" | "private" | "unbindable" => Ok(()),
        _ => fail(
            "linux.rootfsPropagation",
            Problem::Unknown {
                value: value.into(),
                known: KNOWN.into(),
            },
        ),
    }
}

/// A key names a file below /proc/sys, with dots or slashes between its parts.
fn sysctl(key: &str, value: &str) -> Checked {
    let field = || format!("linux.sysctl[{}]", crate::text::quoted(key));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    let climbs = key.split(['/', '.']).any(str::is_empty);
    if key.is_empty() || climbs || !key.chars().all(plain) {
        return fail(
            field(),
            Problem::Malformed(
                "is not the name of a kernel parameter; write it as in net.core.somaxconn",
            ),
        );
    }
    no_nul(field(), value)
}

pub(super) fn limits(resources: &LinuxResources) -> Checked {
    if let Some(memory) = resources.memory() {
        memory_limits(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_limits(cpu)?;
    }
    if let Some(pids) = resources.pids() {
        let words = "-1 for no limit, or at least 0";
        in_range(
            || "linux.resources.pids.limit".into(),
            pids.limit(),
            -1..=i64::MAX,
            words,
        )?;
    }
    for key in resources.unified().iter().flat_map(|map| map.keys()) {
        if key.is_empty() || key.contains(['/', '\0']) || key.starts_with('.') {
            return fail(
                format!("linux.resources.unified[{}]", crate::text::quoted(key)),
                Problem::Malformed(
                    "is not the name of a cgroup v2 file; write it as in memory.high",
                ),
            );
        }
    }
    Ok(())
}

fn memory_limits(memory: &LinuxMemory) -> Checked {
    let words = "-1 for no limit, or a number of bytes";
    let field = |name: &str| format!("linux.resources.memory.{name}");
    for (name, value) in [
        ("limit", memory.limit()),
        ("reservation", memory.reservation()),
        ("swap", memory.swap()),
    ] {
        if let Some(value) = value {
            in_range(|| field(name), value, -1..=i64::MAX, words)?;
        }
    }
    // `swap` counts memory and swap together.
    if let (Some(limit), Some(swap)) = (memory.limit(), memory.swap()) {
        if limit > 0 && swap > 0 && swap < limit {
            return fail(
                field("swap"),
                Problem::Conflict(
                    "is below the memory limit, but counts memory and swap together; raise it",
                ),
            );
        }
    }
    Ok(())
}

fn cpu_limits(cpu: &LinuxCpu) -> Checked {
    let field = |name: &str| format!("linux.resources.cpu.{name}");
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        in_range(
            || field("shares"),
            shares,
            2..=262_144,
            "0, or between 2 and 262144",
        )?;
    }
    if let Some(period) = cpu.period().filter(|period| *period != 0) {
        let words = "0, or between 1000 and 1000000 microseconds";
        in_range(|| field("period"), period, 1000..=1_000_000, words)?;
    }
    if let Some(quota) = cpu.quota().filter(|quota| *quota > 0) {
        let words = "-1 or 0 for no limit, or at least 1000 microseconds";
        in_range(|| field("quota"), quota, 1000..=i64::MAX, words)?;
    }
    if let Some(idle) = cpu.idle() {
        in_range(|| field("idle"), idle, 0..=1, "0 or 1")?;
    }
    for (name, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        let Some(list) = list.as_deref() else {
            continue;
        };
        if !list
            .chars()
            .all(|c| c.is_ascii_digit() || "-, ".contains(c))
        {
            return fail(
                field(name),
                Problem::Malformed("is not a list of numbers; write it as in \"0-3,5\""),
            );
        }
    }
    Ok(())
}

fn seccomp(filter: &LinuxSeccomp) -> Checked {
    let errno_words = "between 0 and 4095";
    if let Some(errno) = filter.default_errno_ret() {
        in_range(
            || "linux.seccomp.defaultErrnoRet".into(),
            errno,
            0..=ERRNO_MAX,
            errno_words,
        )?;
        has_errno(filter.default_action(), || {
            "linux.seccomp.defaultErrnoRet".into()
        })?;
    }
    for (index, rule) in filter.syscalls().iter().flatten().enumerate() {
        let field = |name: &str| format!("linux.seccomp.syscalls[{index}].{name}");
        if rule.names().is_empty() {
            return fail(
                field("names"),
                Problem::Empty("name at least one system call"),
            );
        }
        if let Some(errno) = rule.errno_ret() {
            in_range(|| field("errnoRet"), errno, 0..=ERRNO_MAX, errno_words)?;
            has_errno(rule.action(), || field("errnoRet"))?;
        }
        for (at, argument) in rule.args().iter().flatten().enumerate() {
            let words = "between 0 and 5";
            in_range(
                || field(&format!("args[{at}].index")),
                argument.index(),
                0..=5,
                words,
            )?;
        }
    }
    Ok(())
}

/// Only some actions have an errno (config-linux.md, Seccomp).
fn has_errno(action: LinuxSeccompAction, field: impl FnOnce() -> String) -> Checked {
    use LinuxSeccompAction::{ScmpActErrno, ScmpActTrace};
    if matches!(action, ScmpActErrno | ScmpActTrace) {
        return Ok(());
    }
    fail(
        field(),
        Problem::Malformed(
            "belongs to an action without one; remove it, or use SCMP_ACT_ERRNO or SCMP_ACT_TRACE",
        ),
    )
}
