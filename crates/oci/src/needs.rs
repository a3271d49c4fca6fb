//! What a container needs of the guest's kernel, so that a kernel that lacks it is refused
//! before it is booted.

use std::fmt;

use oci_spec::runtime::{LinuxNamespaceType as Ns, LinuxResources, Spec};

/// A feature the guest's kernel must have, and the field that asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The field, as a JSON path.
    pub field: String,
    /// The kernel's configuration option, without `CONFIG_`.
    pub feature: &'static str,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} needs a guest kernel with CONFIG_{}; choose one with --kernel, `bulkhead kernel list` shows them",
            self.field, self.feature
        )
    }
}

impl std::error::Error for Need {}

/// Cgroup controllers with the option each needs.
const CONTROLLERS: &[(&str, &str)] = &[
    ("memory", "MEMCG"),
    ("cpu", "FAIR_GROUP_SCHED"),
    ("cpuset", "CPUSETS"),
    ("pids", "CGROUP_PIDS"),
];

/// File systems with the option each needs.
const FILE_SYSTEMS: &[(&str, &str)] = &[
    ("proc", "PROC_FS"),
    ("sysfs", "SYSFS"),
    ("tmpfs", "TMPFS"),
    ("devpts", "UNIX98_PTYS"),
    ("mqueue", "POSIX_MQUEUE"),
    ("cgroup", "CGROUPS"),
    ("cgroup2", "CGROUPS"),
];

/// The needs of a configuration that a kernel does not meet; `has` says whether it was
/// built with an option (without `CONFIG_`).
pub fn lacking(spec: &Spec, has: impl Fn(&str) -> bool) -> Vec<Need> {
    let mut needs = all(spec);
    needs.retain(|need| !has(need.feature));
    needs
}

/// Everything a configuration needs of the kernel beyond what every kernel has.
pub fn all(spec: &Spec) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |feature: &'static str, field: String| needs.push(Need { field, feature });
    if spec
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        == Some(true)
    {
        need("UNIX98_PTYS", "process.terminal".into());
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let typ = mount.typ().as_deref().unwrap_or_default();
        if let Some((_, feature)) = FILE_SYSTEMS.iter().find(|(name, _)| *name == typ) {
            need(feature, format!("mounts[{index}].type"));
        }
    }
    let Some(linux) = spec.linux() else {
        return needs;
    };
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let feature = match namespace.typ() {
            Ns::Pid => "PID_NS",
            Ns::Ipc => "IPC_NS",
            Ns::Uts => "UTS_NS",
            Ns::User => "USER_NS",
            Ns::Time => "TIME_NS",
            Ns::Cgroup => "CGROUPS",
            // Mount namespaces are in every kernel, and the network is the virtual machine's.
            Ns::Mount | Ns::Network => continue,
        };
        need(feature, format!("linux.namespaces[{index}].type"));
    }
    if linux.seccomp().is_some() {
        need("SECCOMP_FILTER", "linux.seccomp".into());
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let feature = match (device.major(), device.minor()) {
            (10, 200) => "TUN",
            (10, 229) => "FUSE_FS",
            _ => continue,
        };
        need(feature, format!("linux.devices[{index}]"));
    }
    if let Some(resources) = linux.resources() {
        for (feature, field) in of_resources(resources) {
            need(feature, format!("linux.resources.{field}"));
        }
    }
    needs
}

fn of_resources(resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let mut needs = Vec::new();
    let mut asks = |asked: bool, feature: &'static str, field: &str| {
        if asked {
            needs.push((feature, field.to_owned()));
        }
    };
    asks(
        resources
            .devices()
            .as_ref()
            .is_some_and(|rules| !rules.is_empty()),
        "CGROUP_BPF",
        "devices",
    );
    if let Some(memory) = resources.memory() {
        let limited = |bytes: Option<i64>| bytes.is_some_and(|bytes| bytes > 0);
        asks(limited(memory.limit()), "MEMCG", "memory.limit");
        asks(limited(memory.reservation()), "MEMCG", "memory.reservation");
        asks(limited(memory.swap()), "MEMCG", "memory.swap");
    }
    if let Some(cpu) = resources.cpu() {
        asks(
            cpu.shares().is_some_and(|shares| shares > 0),
            "FAIR_GROUP_SCHED",
            "cpu.shares",
        );
        asks(
            cpu.quota().is_some_and(|quota| quota > 0),
            "CFS_BANDWIDTH",
            "cpu.quota",
        );
    }
    let processes = resources.pids().is_some_and(|pids| pids.limit() > 0);
    asks(processes, "CGROUP_PIDS", "pids.limit");
    let mut keys: Vec<&String> = resources
        .unified()
        .iter()
        .flat_map(|map| map.keys())
        .collect();
    keys.sort();
    for key in keys {
        let controller = key.split('.').next().unwrap_or_default();
        if let Some((_, feature)) = CONTROLLERS.iter().find(|(name, _)| *name == controller) {
            asks(
                true,
                feature,
                &format!("unified[{}]", crate::text::quoted(key)),
            );
        }
    }
    needs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn features(spec: serde_json::Value) -> Vec<(String, &'static str)> {
        let spec: Spec = serde_json::from_value(spec).unwrap();
        all(&spec)
            .into_iter()
            .map(|need| (need.field, need.feature))
            .collect()
    }

    #[test]
    fn all_fields_name_their_feature() {
        let needs = features(json!({
            "process": {"terminal": true, "user": {}, "cwd": "/"},
            "mounts": [
                {"destination": "/a", "type": "bind", "source": "/a"},
                {"destination": "/dev/mqueue", "type": "mqueue"},
            ],
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "pid"}],
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
                "resources": {
                    "memory": {"limit": 5, "swap": -1}, "cpu": {"quota": 5000, "cpus": ""},
                    "pids": {"limit": 0}, "unified": {"pids.max": "5"},
                },
            },
        }));
        let expected = [
            ("process.terminal", "UNIX98_PTYS"),
            ("mounts[1].type", "POSIX_MQUEUE"),
            ("linux.namespaces[2].type", "PID_NS"),
            ("linux.seccomp", "SECCOMP_FILTER"),
            ("linux.devices[0]", "FUSE_FS"),
            ("linux.resources.memory.limit", "MEMCG"),
            ("linux.resources.cpu.quota", "CFS_BANDWIDTH"),
            ("linux.resources.unified[\"pids.max\"]", "CGROUP_PIDS"),
        ];
        assert_eq!(
            needs,
            expected.map(|(field, feature)| (field.to_owned(), feature))
        );
    }

    #[test]
    fn lacking_only_what_the_kernel_has_not() {
        let spec = crate::run::default_spec();
        assert_eq!(lacking(&spec, |_| true), []);
        let lacks = lacking(&spec, |feature| feature != "POSIX_MQUEUE");
        assert_eq!(lacks.len(), 1);
        let message = lacks[0].to_string();
        assert!(
            message.starts_with("mounts[4].type needs") && message.contains("CONFIG_POSIX_MQUEUE"),
            "{message}"
        );
    }
}
