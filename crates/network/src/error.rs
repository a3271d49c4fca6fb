//! What can go wrong with a container's network.

use std::io;
use std::path::PathBuf;

use bulkhead_netlink::NetlinkError;

/// Why a virtual machine cannot be joined to a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no such file, or it is something else.
    #[error(
        "Failed to enter the network namespace {path}: it must be one that exists, such as \
         /run/netns/NAME or /proc/PID/ns/net"
    )]
    Namespace {
        /// What was given.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is the one this process is in.
    #[error(
        "The network namespace {path} is the host's own, and the container's network is that of its \
         virtual machine: give it a namespace of its own (podman, docker: any --network but host)"
    )]
    Host {
        /// What was given.
        path: PathBuf,
    },
    /// The thread for the work could not be started.
    #[error("Failed to start a thread for the network namespace")]
    Thread(#[source] io::Error),
    /// The namespace could not be read.
    #[error("Failed to list the {what} of the network namespace")]
    List {
        /// Interfaces, addresses, …
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// Something about an interface cannot be had in the virtual machine.
    #[error("Network interface {interface}: {reason}: {alternative}")]
    Refused {
        /// Its name.
        interface: String,
        /// What is wrong with it.
        reason: String,
        /// What to do instead.
        alternative: &'static str,
    },
    /// The tap could not be made.
    #[error("Failed to {step} a tap for network interface {interface}")]
    Tap {
        /// What was attempted.
        step: &'static str,
        /// The interface it is for.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change.
    #[error("Failed to {step} network interface {interface}")]
    Change {
        /// What was attempted.
        step: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// Interfaces for which the machine has no card.
    #[error(
        "Network interfaces {names} came after the container was created, and its virtual machine \
         has no network card left for them: add them before `create`, or use a hypervisor and a kernel \
         that take cards while they run (`bulkhead doctor`)"
    )]
    Late {
        /// Their names, separated by commas.
        names: String,
    },
    /// An interface that the machine was given is no more.
    #[error(
        "Network interface {interface} was {what} after the container was created: leave it as it is \
         until the container has started"
    )]
    Altered {
        /// Its name at `create`.
        interface: String,
        /// What became of it.
        what: &'static str,
    },
}
