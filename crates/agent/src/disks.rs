//! The host's block devices a container asks for, which are disks of this machine: their numbers are
//! others here.

use std::fs;
use std::io;
use std::path::Path;

use bulkhead_agent_api::messages::Disk;
use oci_spec::runtime::{LinuxDeviceType, Spec};

const BLOCK: &str = "/sys/block";

/// A disk cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The kernel's list cannot be read.
    #[error("Cannot list the machine's disks in {BLOCK}")]
    List(#[source] io::Error),
    /// None is called that.
    #[error(
        "Cannot find disk {serial} (block device {major}:{minor} of the host): the guest's kernel has \
         no virtio block driver, or it refused the device"
    )]
    Missing {
        /// Its name.
        serial: String,
        /// Its number on the host.
        major: u32,
        /// Its number on the host.
        minor: u32,
    },
}

/// Puts the numbers of this machine in the place of the host's: for the nodes, and for the rules that
/// allow their use.
///
/// # Errors
/// See [`DiskError`].
pub fn renumber(spec: &mut Spec, disks: &[Disk]) -> Result<(), DiskError> {
    if disks.is_empty() {
        return Ok(());
    }
    renumber_as(spec, disks, number)
}

fn renumber_as(
    spec: &mut Spec,
    disks: &[Disk],
    number: impl Fn(&str) -> Result<Option<(i64, i64)>, DiskError>,
) -> Result<(), DiskError> {
    let mut table = Vec::with_capacity(disks.len());
    for disk in disks {
        let here = number(&disk.serial)?.ok_or_else(|| DiskError::Missing {
            serial: disk.serial.clone(),
            major: disk.major,
            minor: disk.minor,
        })?;
        table.push(((i64::from(disk.major), i64::from(disk.minor)), here));
    }
    let here = |host| {
        let entry = table.iter().find(|(known, _)| *known == host);
        entry.map(|(_, here)| *here)
    };
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    for device in linux.devices_mut().iter_mut().flatten() {
        if device.typ() == LinuxDeviceType::B
            && let Some((major, minor)) = here((device.major(), device.minor()))
        {
            device.set_major(major);
            device.set_minor(minor);
        }
    }
    let rules = linux.resources_mut().as_mut();
    let rules = rules.and_then(|resources| resources.devices_mut().as_mut());
    for rule in rules.into_iter().flatten() {
        if let (Some(LinuxDeviceType::B), Some(major), Some(minor)) =
            (rule.typ(), rule.major(), rule.minor())
            && let Some((major, minor)) = here((major, minor))
        {
            rule.set_major(Some(major));
            rule.set_minor(Some(minor));
        }
    }
    Ok(())
}

/// Major and minor number of the disk that calls itself `serial`.
fn number(serial: &str) -> Result<Option<(i64, i64)>, DiskError> {
    for entry in fs::read_dir(BLOCK).map_err(DiskError::List)? {
        let dir = entry.map_err(DiskError::List)?.path();
        if read(&dir, "serial").as_deref() == Some(serial) {
            let number = read(&dir, "dev");
            let parts = number.as_deref().and_then(|number| number.split_once(':'));
            return Ok(
                parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            );
        }
    }
    Ok(None)
}

/// Not every block device has a serial number.
fn read(dir: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    Some(text.trim_end_matches(['\0', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn disk() -> Disk {
        Disk {
            major: 7,
            minor: 0,
            serial: "bulkhead-0".to_owned(),
            ..Default::default()
        }
    }

    fn spec() -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "linux": {
                "devices": [
                    { "path": "/dev/x", "type": "b", "major": 7, "minor": 0 },
                    { "path": "/dev/vcs", "type": "c", "major": 7, "minor": 0 }
                ],
                "resources": { "devices": [
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "b", "major": 7, "minor": 0, "access": "r" },
                    { "allow": true, "type": "b", "major": 7, "access": "r" }
                ] }
            }
        }))
        .unwrap()
    }

    #[test]
    fn nodes_and_rules_of_a_disk_get_its_number_here() {
        let mut spec = spec();
        renumber_as(&mut spec, &[disk()], |serial| {
            Ok((serial == "bulkhead-0").then_some((254, 16)))
        })
        .unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        let devices = &json["linux"]["devices"];
        assert_eq!(devices[0]["major"], 254);
        assert_eq!(devices[0]["minor"], 16);
        assert_eq!(devices[1]["major"], 7, "another type");
        let rules = &json["linux"]["resources"]["devices"];
        assert_eq!(rules[1]["major"], 254);
        assert_eq!(rules[1]["minor"], 16);
        assert_eq!(rules[2]["major"], 7, "not of one device");
    }

    #[test]
    fn disk_that_is_not_there_is_named() {
        let error = renumber_as(&mut spec(), &[disk()], |_| Ok(None)).unwrap_err();
        assert!(error.to_string().contains("bulkhead-0"), "{error}");
        assert!(error.to_string().contains("7:0"), "{error}");
    }
}
