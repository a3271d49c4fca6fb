//! Devices that come to the machine and leave it while it runs: drivers are told by files that kernels of ours
//! have (`guest/patches`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_agent_api::messages::Device;

const DRIVERS: &str = "/sys/bus/platform/drivers";

/// The drivers that take devices.
const KNOWN: [&str; 2] = ["virtio-mmio", "virtio-uml"];

/// A device cannot come or go.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host names a driver that takes none.
    #[error("Cannot plug device {name}: the agent knows no driver {driver:?}")]
    Driver {
        /// The device.
        name: String,
        /// The driver.
        driver: String,
    },
    /// The kernel cannot.
    #[error(
        "Cannot {step} device {name}: the guest's kernel has no {}; use a kernel of `make kernel`",
        file.display()
    )]
    Unable {
        /// What was attempted.
        step: &'static str,
        /// The device.
        name: String,
        /// What it lacks.
        file: PathBuf,
    },
    /// The kernel refused.
    #[error("Cannot {step} device {name}")]
    Refused {
        /// What was attempted.
        step: &'static str,
        /// The device.
        name: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// It has come, and no driver has taken it.
    #[error("Cannot plug device {name}: no driver of the guest's kernel has taken it")]
    Idle {
        /// The device.
        name: String,
    },
}

/// Lets go of the devices `go`, then takes those of `come`. Returns when their drivers have them.
///
/// # Errors
/// See [`DeviceError`]; of `come` none is left then.
pub fn change(come: &[Device], go: &[Device]) -> Result<(), DeviceError> {
    change_below(Path::new(DRIVERS), come, go)
}

fn change_below(drivers: &Path, come: &[Device], go: &[Device]) -> Result<(), DeviceError> {
    for device in go {
        tell(drivers, device, "unplug", &device.name)?;
    }
    for (number, device) in come.iter().enumerate() {
        let taken = tell(drivers, device, "plug", &device.words).and_then(|()| {
            let driver = drivers.join(&device.driver);
            // A device the driver has not taken is there all the same, but not among its own.
            match fs::symlink_metadata(driver.join(&device.name)) {
                Ok(_) => Ok(()),
                Err(_) => Err(DeviceError::Idle {
                    name: device.name.clone(),
                }),
            }
        });
        if taken.is_err() {
            for device in come.iter().take(number.saturating_add(1)) {
                // The one that failed may not have come at all.
                let _ = tell(drivers, device, "unplug", &device.name);
            }
            return taken;
        }
    }
    Ok(())
}

fn tell(
    drivers: &Path,
    device: &Device,
    step: &'static str,
    words: &str,
) -> Result<(), DeviceError> {
    let name = device.name.clone();
    if !KNOWN.contains(&device.driver.as_str()) {
        let driver = device.driver.clone();
        return Err(DeviceError::Driver { name, driver });
    }
    let file = drivers.join(&device.driver).join(step);
    let told = fs::OpenOptions::new().write(true).open(&file);
    let told = told.and_then(|mut open| io::Write::write_all(&mut open, words.as_bytes()));
    told.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => DeviceError::Unable { step, name, file },
        _ => DeviceError::Refused { step, name, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> Device {
        Device {
            driver: "virtio-uml".to_owned(),
            words: format!("/plug:{name}"),
            name: name.to_owned(),
            ..Default::default()
        }
    }

    /// A directory as the driver has it, with the devices it has taken.
    fn drivers(taken: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let drivers = tempfile::tempdir().unwrap();
        let driver = drivers.path().join("virtio-uml");
        fs::create_dir(&driver).unwrap();
        for file in ["plug", "unplug"].iter().chain(taken) {
            fs::write(driver.join(file), "").unwrap();
        }
        (drivers, driver)
    }

    #[test]
    fn device_comes_and_goes_in_the_drivers_words() {
        let (drivers, driver) = drivers(&["virtio-uml.3"]);
        change_below(
            drivers.path(),
            &[device("virtio-uml.3")],
            &[device("virtio-uml.2")],
        )
        .unwrap();
        assert_eq!(
            fs::read(driver.join("plug")).unwrap(),
            b"/plug:virtio-uml.3"
        );
        assert_eq!(fs::read(driver.join("unplug")).unwrap(), b"virtio-uml.2");
    }

    #[test]
    fn device_nobody_takes_is_told_and_goes_again() {
        let (drivers, driver) = drivers(&["virtio-uml.3"]);
        let come = [device("virtio-uml.3"), device("virtio-uml.4")];
        let error = change_below(drivers.path(), &come, &[]).unwrap_err();
        assert!(matches!(&error, DeviceError::Idle { name } if name == "virtio-uml.4"));
        // Both files are written over from the start by each message, and are of the same length here.
        assert_eq!(fs::read(driver.join("unplug")).unwrap(), b"virtio-uml.4");
    }

    #[test]
    fn kernel_without_the_file_is_told_with_it() {
        let drivers = tempfile::tempdir().unwrap();
        let error = change_below(drivers.path(), &[device("virtio-uml.3")], &[]).unwrap_err();
        assert!(error.to_string().contains("virtio-uml/plug"), "{error}");
    }

    #[test]
    fn driver_that_is_none_is_refused() {
        let mut odd = device("x");
        odd.driver = "../../../etc".to_owned();
        let error = change_below(Path::new("/"), &[odd], &[]).unwrap_err();
        assert!(matches!(error, DeviceError::Driver { .. }), "{error}");
    }
}
