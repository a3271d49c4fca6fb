//! What all drivers do to get a jailed process.

use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use bulkhead_jail::exec::ExecConfig;
use bulkhead_jail::{Child, Command, Entry, JailError, Namespaces};
use rustix::fs::{AtFlags, CWD, Gid, Uid};

use crate::{Driver, HypervisorError, Machine};

/// Less than this no kernel of ours boots with.
const LEAST_MEMORY_MIB: u64 = 32;

/// The name of the hat that enters a jail and executes a program.
const HAT: &str = "jailed";

/// Refuses what the driver cannot do; returns the memory in MiB.
pub(crate) fn check(driver: &dyn Driver, machine: &Machine) -> Result<u64, HypervisorError> {
    let flavour = machine.kernel.manifest.flavour;
    if flavour != driver.flavour() {
        return Err(HypervisorError::Flavour {
            kernel: machine.kernel.manifest.name.clone(),
            flavour,
            driver: driver.kind(),
            wanted: driver.flavour(),
        });
    }
    if machine.vcpus == 0 || machine.vcpus > driver.max_vcpus() {
        return Err(HypervisorError::Vcpus {
            driver: driver.kind(),
            asked: machine.vcpus,
            most: driver.max_vcpus(),
        });
    }
    let bad = |word: &&String| {
        word.chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '"' || c == '\'')
    };
    if let Some(word) = machine.cmdline.iter().find(bad) {
        return Err(HypervisorError::CommandLine { word: word.clone() });
    }
    let asked_mib = machine.memory_bytes >> 20;
    if asked_mib < LEAST_MEMORY_MIB {
        return Err(HypervisorError::Memory {
            asked_mib,
            least_mib: LEAST_MEMORY_MIB,
        });
    }
    Ok(asked_mib)
}

/// Starts a program in its jail, with the console as standard output and error and `fds` besides.
pub(crate) fn start(
    config: &ExecConfig,
    bulkhead: PathBuf,
    console: OwnedFd,
    mut fds: Vec<(OwnedFd, RawFd)>,
) -> Result<Child, HypervisorError> {
    let json = serde_json::to_string(config).map_err(HypervisorError::Describe)?;
    let string = |text: &str| {
        CString::new(text).map_err(|_| JailError::Nul {
            what: "the jail's configuration",
        })
    };
    let args = vec![string(HAT)?, string(&json)?];
    let errors = console
        .try_clone()
        .map_err(|source| HypervisorError::Host {
            step: "duplicate the console for",
            path: bulkhead.clone(),
            source,
        })?;
    fds.extend([(console, 1), (errors, 2)]);
    let command = Command {
        program: bulkhead,
        args,
        fds,
        namespaces: Namespaces::default(),
    };
    Ok(bulkhead_jail::spawn(command)?)
}

/// A read-only file in the jail, executable or not.
pub(crate) fn file(source: &Path, target: &str, exec: bool) -> Entry {
    Entry::Bind {
        source: source.to_owned(),
        target: target.into(),
        read_only: true,
        nosuid: true,
        nodev: true,
        noexec: !exec,
        recursive: false,
    }
}

/// A socket in the jail, which the machine's user, and nobody else, may connect to.
pub(crate) fn socket(
    source: &Path,
    target: &str,
    machine: &Machine,
) -> Result<Entry, HypervisorError> {
    let (uid, gid) = (Uid::from_raw(machine.uid), Gid::from_raw(machine.gid));
    rustix::fs::chownat(CWD, source, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(
        |errno| HypervisorError::Host {
            step: "give the hypervisor access to the socket",
            path: source.to_owned(),
            source: errno.into(),
        },
    )?;
    Ok(file(source, target, false))
}
