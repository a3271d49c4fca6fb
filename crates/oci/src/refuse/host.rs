//! Refusals around the host: namespaces, mounts, devices, other platforms.

use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType as Ns, Spec,
};

use super::{Because, Rule};
use crate::plan::is_bind;
use crate::plan::joined::could_be_a_containers;
use crate::plan::own_kernel::{all_devices_allowed, is_common};

/// File systems a container can mount in its guest without a source on the host.
const GUEST_FILE_SYSTEMS: &[&str] = &[
    "proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

pub(super) const RULES: &[Rule] = &[
    Rule {
        field: "linux.namespaces (no network entry)",
        because: Because::OwnKernel,
        reason: "without it the container would use the host's network, and its network is the virtual machine's",
        alternative: "add {\"type\": \"network\"}",
        find: |spec| absent(spec, Ns::Network),
    },
    Rule {
        field: "linux.namespaces (no pid entry)",
        because: Because::OwnKernel,
        reason: "without it the container would see the host's processes, which are in another kernel",
        alternative: "add {\"type\": \"pid\"}",
        find: |spec| absent(spec, Ns::Pid),
    },
    Rule {
        field: "linux.namespaces (no ipc entry)",
        because: Because::OwnKernel,
        reason: "without it the container would share the host's System V IPC and message queues, which are in another kernel",
        alternative: "add {\"type\": \"ipc\"}",
        find: |spec| absent(spec, Ns::Ipc),
    },
    Rule {
        field: "linux.namespaces (no uts entry)",
        because: Because::OwnKernel,
        reason: "without it the container would share the host's host name, which is in another kernel",
        alternative: "add {\"type\": \"uts\"} and set hostname",
        find: |spec| absent(spec, Ns::Uts),
    },
    Rule {
        field: "linux.namespaces[].path of a pid, ipc, uts, mount or cgroup namespace",
        because: Because::OwnKernel,
        reason: "the namespace at this path belongs to the host's kernel, and the container has its own",
        alternative: "remove the path",
        find: |spec| with_path(spec, &[Ns::Pid, Ns::Ipc, Ns::Uts, Ns::Mount, Ns::Cgroup]),
    },
    Rule {
        field: "linux.namespaces[].type user",
        because: Because::NotBuilt,
        reason: "user namespaces inside the guest are not built in this version",
        alternative: "remove the entry and the mappings, root in the container is not root on the host",
        find: |spec| present(spec, Ns::User),
    },
    Rule {
        field: "linux.uidMappings, linux.gidMappings",
        because: Because::NotBuilt,
        reason: "user namespaces inside the guest are not built in this version",
        alternative: "remove the mappings, root in the container is not root on the host",
        find: |spec| {
            let Some(linux) = spec.linux() else {
                return Vec::new();
            };
            let mut found = Vec::new();
            if filled(linux.uid_mappings()) {
                found.push("linux.uidMappings".into());
            }
            if filled(linux.gid_mappings()) {
                found.push("linux.gidMappings".into());
            }
            found
        },
    },
    Rule {
        field: "linux.namespaces[].type time, linux.timeOffsets",
        because: Because::GuestKernel,
        reason: "not every guest kernel has time namespaces",
        alternative: "remove it, the virtual machine has a boot clock of its own",
        find: |spec| {
            let mut found = present(spec, Ns::Time);
            let offsets = spec
                .linux()
                .as_ref()
                .and_then(|linux| linux.time_offsets().as_ref());
            if offsets.is_some_and(|map| !map.is_empty()) {
                found.push("linux.timeOffsets".into());
            }
            found
        },
    },
    Rule {
        field: "linux.rootfsPropagation shared, rshared",
        because: Because::OwnKernel,
        reason: "mounts made in the guest cannot appear on the host",
        alternative: "use private or slave",
        find: |spec| {
            let value = spec
                .linux()
                .as_ref()
                .and_then(|linux| linux.rootfs_propagation().as_deref());
            found_if(
                matches!(value, Some("shared" | "rshared")),
                "linux.rootfsPropagation",
            )
        },
    },
    Rule {
        field: "mounts[].options shared, rshared of a bind mount",
        because: Because::OwnKernel,
        reason: "mounts made in the guest cannot appear on the host",
        alternative: "use private or rprivate",
        find: |spec| bind_option(spec, &["shared", "rshared"]),
    },
    Rule {
        field: "mounts[].options slave, rslave of a bind mount",
        because: Because::NotBuilt,
        reason: "mounts made on the host after the start do not appear in the guest",
        alternative: "use private or rprivate, and mount on the host first",
        find: |spec| bind_option(spec, &["slave", "rslave"]),
    },
    Rule {
        field: "mounts[].uidMappings, gidMappings, options idmap, ridmap",
        because: Because::NotBuilt,
        reason: "id-mapped mounts are not built in this version",
        alternative: "remove the mapping and give the files the owner the container needs",
        find: id_mapped_mounts,
    },
    Rule {
        field: "mounts[].type other than bind, proc, sysfs, tmpfs, ramfs, devpts, mqueue, cgroup, cgroup2",
        because: Because::OwnKernel,
        reason: "its source would be a device or a directory of the host, which the guest's kernel cannot mount",
        alternative: "mount it on the host and bind the directory",
        find: |spec| {
            each_mount(spec, |index, mount| {
                let typ = mount.typ().as_deref().unwrap_or_default();
                let known = is_bind(mount) || GUEST_FILE_SYSTEMS.contains(&typ);
                (!known).then(|| format!("mounts[{index}].type {}", crate::text::quoted(typ)))
            })
        },
    },
    Rule {
        field: "linux.devices[] of type c or u, but for null, zero, full, random, urandom, kmsg, tty, console, ptmx, tun and fuse",
        because: Because::OwnKernel,
        reason: "the device belongs to the host's kernel, and the guest has no driver behind this number",
        alternative: "remove it",
        find: |spec| {
            each_device(spec, |device| {
                let character = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
                character && !is_common(device)
            })
        },
    },
    Rule {
        field: "linux.netDevices",
        because: Because::NotBuilt,
        reason: "moving a network interface of the host into the guest is not built in this version",
        alternative: "remove it",
        find: |spec| {
            let devices = spec
                .linux()
                .as_ref()
                .and_then(|linux| linux.net_devices().as_ref());
            found_if(
                devices.is_some_and(|map| !map.is_empty()),
                "linux.netDevices",
            )
        },
    },
    Rule {
        field: "linux.intelRdt",
        because: Because::OwnKernel,
        reason: "cache and memory bandwidth are shared out by the host's kernel, and that is not built in this version",
        alternative: "remove it",
        find: |spec| linux_has(spec, "linux.intelRdt", |linux| linux.intel_rdt().is_some()),
    },
    Rule {
        field: "vm",
        because: Because::NotBuilt,
        reason: "the hypervisor and the kernel are not taken from this section",
        alternative: "remove it and use --hypervisor and --kernel",
        find: |spec| found_if(spec.vm().is_some(), "vm"),
    },
    Rule {
        field: "solaris, windows, zos",
        because: Because::OwnKernel,
        reason: "the guest's kernel is Linux",
        alternative: "remove it",
        find: |spec| {
            let mut found = found_if(spec.solaris().is_some(), "solaris");
            found.extend(found_if(spec.windows().is_some(), "windows"));
            found.extend(found_if(spec.zos().is_some(), "zos"));
            found
        },
    },
];

/// The field's name if the condition holds.
pub(super) fn found_if(condition: bool, field: &str) -> Vec<String> {
    if condition {
        vec![field.to_owned()]
    } else {
        Vec::new()
    }
}

/// The field's name if the `linux` section fulfils the condition.
pub(super) fn linux_has(spec: &Spec, field: &str, asks: fn(&Linux) -> bool) -> Vec<String> {
    found_if(spec.linux().as_ref().is_some_and(asks), field)
}

fn filled<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn namespaces(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default()
}

fn absent(spec: &Spec, typ: Ns) -> Vec<String> {
    found_if(
        !namespaces(spec).iter().any(|ns| ns.typ() == typ),
        "linux.namespaces",
    )
}

fn present(spec: &Spec, typ: Ns) -> Vec<String> {
    let at = namespaces(spec).iter().position(|ns| ns.typ() == typ);
    at.map(|index| format!("linux.namespaces[{index}].type"))
        .into_iter()
        .collect()
}

fn with_path(spec: &Spec, types: &[Ns]) -> Vec<String> {
    let has_path = |ns: &LinuxNamespace| {
        types.contains(&ns.typ())
            && ns.path().as_deref().is_some_and(|path| {
                // Whether it is that of a container of ours is seen when it is made.
                !path.as_os_str().is_empty() && !could_be_a_containers(ns.typ(), path)
            })
    };
    namespaces(spec)
        .iter()
        .enumerate()
        .filter(|(_, ns)| has_path(ns))
        .map(|(index, _)| format!("linux.namespaces[{index}].path"))
        .collect()
}

fn each_mount(
    spec: &Spec,
    find: impl Fn(usize, &oci_spec::runtime::Mount) -> Option<String>,
) -> Vec<String> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    mounts
        .iter()
        .enumerate()
        .filter_map(|(index, mount)| find(index, mount))
        .collect()
}

fn bind_option(spec: &Spec, names: &[&str]) -> Vec<String> {
    each_mount(spec, |index, mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        let at = options
            .iter()
            .position(|option| names.contains(&option.as_str()))?;
        is_bind(mount).then(|| format!("mounts[{index}].options[{at}]"))
    })
}

fn id_mapped_mounts(spec: &Spec) -> Vec<String> {
    each_mount(spec, |index, mount| {
        if filled(mount.uid_mappings()) {
            return Some(format!("mounts[{index}].uidMappings"));
        }
        if filled(mount.gid_mappings()) {
            return Some(format!("mounts[{index}].gidMappings"));
        }
        let options = mount.options().as_deref().unwrap_or_default();
        let at = options
            .iter()
            .position(|option| option == "idmap" || option == "ridmap")?;
        Some(format!("mounts[{index}].options[{at}]"))
    })
}

fn each_device(spec: &Spec, refused: impl Fn(&LinuxDevice) -> bool) -> Vec<String> {
    if all_devices_allowed(spec) {
        return Vec::new();
    }
    let devices = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_deref());
    devices
        .unwrap_or_default()
        .iter()
        .enumerate()
        .filter(|(_, device)| refused(device))
        .map(|(index, device)| {
            format!(
                "linux.devices[{index}] ({})",
                crate::text::quoted_path(device.path())
            )
        })
        .collect()
}
