//! From the kernel's hand-over to the call home.
//!
//! The order is by waiting time: the connection to the host is begun first, and what the guest needs
//! besides is made while the host answers.

mod cgroup;
pub mod loopback;
mod mounts;

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use bulkhead_agent_api::RPC_PORT;
use rustix::fs::{Mode, OFlags};

use crate::clock::Timeline;
use crate::container;
use crate::vsock;

/// What the boot leaves behind for the service.
#[derive(Debug)]
pub struct Booted {
    /// The socket to the host, possibly not yet connected.
    pub home: OwnedFd,
    /// The steps taken.
    pub timeline: Timeline,
}

/// Why the guest could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Descriptors 0 to 2 could not be taken.
    #[error("Cannot take the standard descriptors, which the kernel left closed")]
    Descriptors(#[source] io::Error),
    /// The kernel has no vsock device or the host does not answer.
    #[error(
        "Cannot connect to the host's vsock port {RPC_PORT}; the guest needs a virtio-vsock device"
    )]
    Home(#[source] io::Error),
    /// A file system of the guest's own could not be mounted.
    #[error("Cannot mount {kind} at {target}{hint}")]
    Mount {
        /// The file system's type.
        kind: &'static str,
        /// Where to.
        target: &'static str,
        /// What the reader can do about it, or nothing.
        hint: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The resource controllers could not be handed to containers.
    #[error("Cannot enable the resource controllers of {file}")]
    Controllers {
        /// The cgroup file.
        file: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The loopback interface could not be brought up.
    #[error("Cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
    /// What containers need of this process could not be set up.
    #[error("Cannot prepare the guest for containers")]
    Container(#[source] container::ContainerError),
    /// The asynchronous core could not be started.
    #[error("Cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// Ended processes can no longer be waited for.
    #[error("Cannot reap ended processes")]
    Reaper(#[source] io::Error),
    /// The service could not be started.
    #[error("Cannot serve the host")]
    Serve(#[source] ttrpc::Error),
}

/// Makes the guest ready for containers.
///
/// # Errors
/// Whatever is missing ends the guest: a container must not run in half a guest.
pub fn boot() -> Result<Booted, BootError> {
    let mut timeline = Timeline::start();
    occupy_standard_descriptors().map_err(BootError::Descriptors)?;
    let home =
        vsock::start_connecting(RPC_PORT, vsock::HOME_PATIENCE_S).map_err(BootError::Home)?;
    container::prepare_agent().map_err(BootError::Container)?;
    mounts::mount_all()?;
    timeline.lap("agent: mount");
    cgroup::hand_over_controllers()?;
    loopback::bring_up().map_err(BootError::Loopback)?;
    timeline.lap("agent: controllers, loopback");
    Ok(Booted { home, timeline })
}

/// Makes sure that descriptors 0 to 2 are taken. Without a console the kernel leaves them closed,
/// and whatever is opened first would be taken for the streams of a process on its way.
fn occupy_standard_descriptors() -> io::Result<()> {
    // The kernel opens all three or none.
    // SAFETY: asks for the flags of a number, which need not be open.
    if unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_GETFD) } >= 0 {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut placeholder = rustix::fs::open("/", flags, Mode::empty())?;
    while placeholder.as_raw_fd() < libc::STDERR_FILENO {
        let next = rustix::fs::open("/", flags, Mode::empty())?;
        // Open for as long as the guest lives.
        let _ = placeholder.into_raw_fd();
        placeholder = next;
    }
    let _ = placeholder.into_raw_fd();
    Ok(())
}
