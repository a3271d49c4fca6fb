//! Block devices of the host the container asks for: the guest gets a disk for each.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::own_kernel::all_devices_allowed;

/// A block device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Index in `linux.devices`.
    pub index: usize,
    /// Where the container is to have it.
    pub path: PathBuf,
    /// Its number on the host.
    pub major: u32,
    /// Its number on the host.
    pub minor: u32,
    /// Whether the container may only read from it (`linux.resources.devices`).
    pub read_only: bool,
}

/// The block devices of a configuration, each number once. A container that may use every device
/// gets the guest's, and none of the host's.
#[must_use]
pub fn disks(spec: &Spec) -> Vec<Disk> {
    let Some(linux) = spec.linux().as_ref().filter(|_| !all_devices_allowed(spec)) else {
        return Vec::new();
    };
    let rules = linux
        .resources()
        .as_ref()
        .and_then(|resources| resources.devices().as_deref())
        .unwrap_or_default();
    let mut disks: Vec<Disk> = Vec::new();
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let (Ok(major), Ok(minor)) = (u32::try_from(device.major()), u32::try_from(device.minor()))
        else {
            continue;
        };
        let known = disks
            .iter()
            .any(|disk| (disk.major, disk.minor) == (major, minor));
        if device.typ() == LinuxDeviceType::B && !known {
            disks.push(Disk {
                index,
                path: device.path().clone(),
                major,
                minor,
                read_only: !may_write(rules, device),
            });
        }
    }
    disks
}

/// The last rule that says something about writing decides; without any, all is allowed.
fn may_write(rules: &[LinuxDeviceCgroup], device: &LinuxDevice) -> bool {
    let same =
        |wanted: Option<i64>, number| wanted.is_none_or(|wanted| wanted < 0 || wanted == number);
    let about = |rule: &&LinuxDeviceCgroup| {
        matches!(
            rule.typ(),
            None | Some(LinuxDeviceType::A | LinuxDeviceType::B)
        ) && same(rule.major(), device.major())
            && same(rule.minor(), device.minor())
            && rule
                .access()
                .as_ref()
                .is_none_or(|access| access.contains('w'))
    };
    rules
        .iter()
        .rev()
        .find(about)
        .is_none_or(LinuxDeviceCgroup::allow)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(devices: Value, rules: Value) -> Vec<(String, bool)> {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "linux": { "devices": devices, "resources": { "devices": rules } }
        }))
        .unwrap();
        disks(&spec)
            .into_iter()
            .map(|disk| (disk.path.display().to_string(), disk.read_only))
            .collect()
    }

    #[test]
    fn each_block_device_is_one_disk() {
        let devices = json!([
            { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
            { "path": "/dev/a", "type": "b", "major": 7, "minor": 0 },
            { "path": "/dev/again", "type": "b", "major": 7, "minor": 0 },
            { "path": "/dev/b", "type": "b", "major": 7, "minor": 1 }
        ]);
        let both = [("/dev/a".to_owned(), false), ("/dev/b".to_owned(), false)];
        assert_eq!(of(devices.clone(), json!([])), both);
        let all = json!([{ "allow": true, "access": "rwm" }]);
        assert_eq!(of(devices, all), []);
    }

    #[test]
    fn disk_is_writable_if_the_rules_say_so() {
        let device = json!([{ "path": "/dev/a", "type": "b", "major": 7, "minor": 0 }]);
        let deny = json!({ "allow": false, "access": "rwm" });
        let rule = |access: &str| json!({ "allow": true, "type": "b", "major": 7, "minor": 0, "access": access });
        let other = json!({ "allow": true, "type": "b", "major": 7, "minor": 1, "access": "rwm" });
        let any_minor = json!({ "allow": true, "type": "b", "major": 7, "access": "rw" });
        for (rules, read_only) in [
            (json!([deny, rule("rwm")]), false),
            (json!([deny, rule("rm")]), true),
            (json!([deny, rule("rwm"), other]), false),
            (json!([deny, other]), true),
            (json!([deny, any_minor]), false),
            (json!([rule("rwm"), deny]), true),
        ] {
            let found = of(device.clone(), rules.clone());
            assert_eq!(found, [("/dev/a".to_owned(), read_only)], "{rules}");
        }
    }
}
