//! From the kernel's hand-over to the call home.
//!
//! The order is by waiting time: the connection to the host is begun first, and what the guest needs
//! besides is made while the host answers.

mod cgroup;
mod loopback;
mod mounts;

use std::io;
use std::os::fd::OwnedFd;

use bulkhead_agent_api::RPC_PORT;

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
    let home = vsock::start_connecting(RPC_PORT).map_err(BootError::Home)?;
    container::prepare_agent().map_err(BootError::Container)?;
    mounts::mount_all()?;
    timeline.lap("agent: mount");
    cgroup::hand_over_controllers()?;
    loopback::bring_up().map_err(BootError::Loopback)?;
    timeline.lap("agent: controllers, loopback");
    Ok(Booted { home, timeline })
}
