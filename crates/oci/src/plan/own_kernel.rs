//! What an engine means for the host's kernel and a container with its own kernel takes differently.

use std::path::Path;

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceType, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, Spec,
};

/// Character devices that mean the same in every kernel (major, minor).
pub(crate) const COMMON_DEVICES: &[(i64, i64)] = &[
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (1, 11),   // kmsg: the guest's own
    (5, 0),    // tty
    (5, 1),    // console
    (5, 2),    // ptmx
    (10, 200), // net/tun
    (10, 229), // fuse
];

/// Magic number of tmpfs (statfs `f_type`).
const TMPFS: i128 = 0x0102_1994;

/// Whether the container may use every device there is: what engines write for `--privileged`,
/// together with a list of all devices of the host. In a virtual machine "every device" are the
/// guest's, so that list is not one of devices to pass on.
pub(crate) fn all_devices_allowed(spec: &Spec) -> bool {
    let rules = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.devices().as_ref());
    rules.into_iter().flatten().last().is_some_and(|rule| {
        let any_type = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
        let any_number = |number: Option<i64>| number.is_none_or(|number| number < 0);
        let access = rule.access().as_deref().unwrap_or_default();
        rule.allow()
            && any_type
            && any_number(rule.major())
            && any_number(rule.minor())
            && ["r", "w", "m"].iter().all(|kind| access.contains(kind))
    })
}

/// Whether the device means the same in every kernel.
pub(crate) fn is_common(device: &LinuxDevice) -> bool {
    matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U)
        && COMMON_DEVICES.contains(&(device.major(), device.minor()))
}

/// Leaves the devices the guest has of a list that names all of the host's.
pub(super) fn devices(spec: &mut Spec) {
    if !all_devices_allowed(spec) {
        return;
    }
    if let Some(devices) = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.devices_mut().as_mut())
    {
        devices.retain(is_common);
    }
}

/// Where an engine asks for no cgroup namespace the container would see the guest's own control
/// groups; the engine wants it to see its own, as on a host with version 1 of them.
pub(super) fn cgroup_namespace(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let kind = LinuxNamespaceType::Cgroup;
    if namespaces.iter().any(|namespace| namespace.typ() == kind) {
        return;
    }
    if let Ok(namespace) = LinuxNamespaceBuilder::default().typ(kind).build() {
        namespaces.push(namespace);
        linux.set_namespaces(Some(namespaces));
    }
}

/// Engines bind a tmpfs of the host at `/dev/shm`. Memory shared between processes of one kernel
/// belongs in that kernel: the guest gets a tmpfs of that size instead. False for any other mount.
pub(super) fn shared_memory(mount: &mut Mount) -> bool {
    if mount.destination() != Path::new("/dev/shm") {
        return false;
    }
    let Some(stat) = mount
        .source()
        .as_ref()
        .and_then(|source| rustix::fs::statfs(source).ok())
    else {
        return false;
    };
    let empty = mount
        .source()
        .as_ref()
        .and_then(|source| std::fs::read_dir(source).ok())
        .is_some_and(|mut entries| entries.next().is_none());
    if i128::from(stat.f_type) != TMPFS || !empty {
        return false;
    }
    let block = u64::try_from(stat.f_bsize).unwrap_or(4096);
    let size = stat.f_blocks.saturating_mul(block);
    let options = mount.options().iter().flatten();
    let mut options: Vec<String> = options
        .filter(|option| !matches!(option.as_str(), "bind" | "rbind"))
        .cloned()
        .collect();
    options.push("mode=1777".to_owned());
    if size > 0 {
        options.push(format!("size={size}"));
    }
    mount.set_typ(Some("tmpfs".to_owned()));
    mount.set_source(Some("shm".into()));
    mount.set_options(Some(options));
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(devices: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "linux": {
                "devices": [
                    { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
                    { "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 }
                ],
                "resources": { "devices": devices }
            }
        }))
        .unwrap()
    }

    #[test]
    fn devices_of_a_privileged_container_are_the_guests() {
        let mut privileged = spec(json!([{ "allow": true, "access": "rwm" }]));
        devices(&mut privileged);
        let left = privileged
            .linux()
            .as_ref()
            .unwrap()
            .devices()
            .as_ref()
            .unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].path(), Path::new("/dev/null"));
    }

    #[test]
    fn devices_asked_for_one_by_one_stay() {
        for rules in [
            json!([]),
            json!([{ "allow": false, "access": "rwm" }]),
            json!([{ "allow": true, "access": "r" }]),
            json!([{ "allow": true, "access": "rwm" }, { "allow": false, "access": "rwm" }]),
            json!([{ "allow": true, "type": "b", "major": 8, "minor": 0, "access": "rwm" }]),
        ] {
            let mut plain = spec(rules.clone());
            devices(&mut plain);
            let left = plain.linux().as_ref().unwrap().devices().as_ref().unwrap();
            assert_eq!(left.len(), 2, "{rules}");
        }
    }

    #[test]
    fn cgroup_namespace_is_added_once() {
        let mut spec = spec(json!([]));
        cgroup_namespace(&mut spec);
        cgroup_namespace(&mut spec);
        let namespaces = spec
            .linux()
            .as_ref()
            .unwrap()
            .namespaces()
            .as_ref()
            .unwrap();
        let count = |kind| {
            namespaces
                .iter()
                .filter(|entry| entry.typ() == kind)
                .count()
        };
        assert_eq!(count(LinuxNamespaceType::Cgroup), 1);
    }
}
