//! What every container has without being asked: mounts, hidden paths, devices, limits.

use std::path::Path;

use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, Mount, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType,
};

use super::volume::mount;

/// `PATH` where neither the image nor the caller says otherwise.
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The version of the specification configurations are written for.
pub(super) const OCI_VERSION: &str = "1.2.0";

/// Type, source, destination, options.
const MOUNTS: &[(&str, &str, &str, &[&str])] = &[
    ("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
    (
        "tmpfs",
        "tmpfs",
        "/dev",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "devpts",
        "devpts",
        "/dev/pts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "tmpfs",
        "shm",
        "/dev/shm",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    (
        "mqueue",
        "mqueue",
        "/dev/mqueue",
        &["nosuid", "noexec", "nodev"],
    ),
    (
        "sysfs",
        "sysfs",
        "/sys",
        &["nosuid", "noexec", "nodev", "ro"],
    ),
    (
        "cgroup",
        "cgroup",
        "/sys/fs/cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

/// Files that tell about the machine more than a program needs.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Files that steer the kernel.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Devices a container may use: null, zero, full, random, urandom, tty, console, pts, ptmx.
const DEVICES: &[(i64, Option<i64>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

pub(super) fn mounts() -> Vec<Mount> {
    MOUNTS
        .iter()
        .map(|(typ, source, destination, options)| {
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            mount(typ, Path::new(source), Path::new(destination), options)
        })
        .collect()
}

pub(super) fn masked_paths() -> Vec<String> {
    MASKED.iter().map(|path| (*path).to_owned()).collect()
}

pub(super) fn read_only_paths() -> Vec<String> {
    READ_ONLY.iter().map(|path| (*path).to_owned()).collect()
}

pub(super) fn namespaces() -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    [Pid, Network, Ipc, Uts, Mount, Cgroup]
        .into_iter()
        .map(|typ| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(typ);
            namespace
        })
        .collect()
}

/// Nothing, but making nodes, and using those every container has.
pub(super) fn device_rules() -> Vec<LinuxDeviceCgroup> {
    use LinuxDeviceType::{B, C};
    let rule = |typ, major, minor, access: &str, allow| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(typ)
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.to_owned()));
        rule
    };
    let mut rules = vec![
        rule(None, None, None, "rwm", false),
        rule(Some(C), None, None, "m", true),
        rule(Some(B), None, None, "m", true),
    ];
    rules.extend(
        DEVICES
            .iter()
            .map(|(major, minor)| rule(Some(C), Some(*major), *minor, "rwm", true)),
    );
    rules
}

/// Open files: the kernel's own limits for PID 1 are too low for servers.
pub(super) fn open_files(soft: u64, hard: u64) -> Vec<PosixRlimit> {
    let typ = PosixRlimitType::RlimitNofile;
    // No field is mandatory to the builder, so it does not fail.
    PosixRlimitBuilder::default()
        .typ(typ)
        .soft(soft)
        .hard(hard)
        .build()
        .into_iter()
        .collect()
}
