//! What all drivers do to get a jailed process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bulkhead_jail::exec::ExecConfig;
use bulkhead_jail::{Child, Command, Entry, JailError, Namespaces};
use bulkhead_kernels::Kernel;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};

use crate::{Driver, HypervisorError, Machine, huge};

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
    if machine.huge_pages {
        return huge::check(driver, asked_mib);
    }
    Ok(asked_mib)
}

/// How a kernel that takes devices while it runs is told apart: by a patch it was built with.
const PLUG_PATCH: &str = "plug-and-unplug";

/// Whether a kernel takes devices while it runs.
pub(crate) fn takes_devices(kernel: &Kernel) -> bool {
    let mut patches = kernel.manifest.patches.iter();
    patches.any(|name| name.contains(PLUG_PATCH))
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
    fds.extend(self::console(console, &bulkhead)?);
    let command = Command {
        program: bulkhead,
        args,
        fds,
        namespaces: Namespaces::default(),
    };
    Ok(bulkhead_jail::spawn(command)?)
}

/// The console as standard output and error of `program`.
pub(crate) fn console(
    console: OwnedFd,
    program: &Path,
) -> Result<[(OwnedFd, RawFd); 2], HypervisorError> {
    let errors = console
        .try_clone()
        .map_err(|source| HypervisorError::Host {
            step: "duplicate the console for",
            path: program.to_owned(),
            source,
        })?;
    Ok([(console, 1), (errors, 2)])
}

/// A connection to the back end at `path`, to be inherited by a jailed process.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd, HypervisorError> {
    connect_by_name(path)
        .map(OwnedFd::from)
        .map_err(|source| HypervisorError::Host {
            step: "connect to the device process at",
            path: path.to_owned(),
            source,
        })
}

/// Connects through the socket's directory: engines have long paths for the state of containers, and a
/// socket's address takes 107 bytes.
fn connect_by_name(path: &Path) -> io::Result<UnixStream> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return UnixStream::connect(path);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    UnixStream::connect(short)
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
    socket_of(source, target, (machine.uid, machine.gid))
}

/// The same for the machine of a user and group.
pub(crate) fn socket_of(
    source: &Path,
    target: &str,
    (uid, gid): (u32, u32),
) -> Result<Entry, HypervisorError> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(CWD, source, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(
        |errno| HypervisorError::Host {
            step: "give the hypervisor access to the socket",
            path: source.to_owned(),
            source: errno.into(),
        },
    )?;
    Ok(file(source, target, false))
}
