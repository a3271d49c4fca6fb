//! What can go wrong with a verb, and how it travels over ttrpc.

use std::error::Error;

use bulkhead_network::NetworkError;
use ttrpc::proto::{Code, Status};

use crate::cgroup::CgroupError;
use crate::dns::DnsError;
use crate::failure::Failure;
use crate::hooks::HookError;
use crate::plan::PlanError;
use crate::state::StateError;
use crate::stdio::StdioError;
use crate::vm::VmError;

/// Why the sandbox could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Refused before anything was started.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The container's network namespace cannot be had in the machine.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The name servers of that namespace cannot be had in the machine.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The machine could not be started.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// See [`StateError`].
    #[error(transparent)]
    State(#[from] StateError),
    /// See [`StdioError`].
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The writable layer could not be made.
    #[error("Failed to make the container's writable layer in {path}")]
    Layer {
        /// Its directory.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A control group of the host.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A hook that failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What a hook is to enter is gone.
    #[error("Failed to open the namespaces and control groups for a hook")]
    Namespaces(#[source] std::io::Error),
    /// CPUs, memory nodes and block devices are the host's.
    #[error(
        "linux.resources.cpu.cpus, mems and linux.resources.blockIO cannot be set: the container has no \
         control group on the host; \
         make it with linux.cgroupsPath"
    )]
    NoGroup,
    /// The machine keeps the memory it was started with.
    #[error(
        "linux.resources.memory.limit: {asked_mib} MiB do not fit into the virtual machine, which has \
         {machine_mib} MiB: give at most {most_mib} MiB, or make the container anew with the higher limit"
    )]
    TooMuchMemory {
        /// The limit asked for.
        asked_mib: u64,
        /// Memory of the machine.
        machine_mib: u64,
        /// The highest possible limit.
        most_mib: u64,
    },
    /// They do not become JSON.
    #[error("Failed to describe the limits to the guest")]
    Describe(#[source] serde_json::Error),
    /// A client's description of limits cannot be understood.
    #[error("The limits are not `linux.resources` of an OCI configuration")]
    Limits(#[source] serde_json::Error),
    /// Ended before it began.
    #[error("The start of the container was called off")]
    CalledOff,
    /// The machine ended while the verb was under way.
    #[error("{}: {}", .0.cause, .0.fix)]
    Ended(Failure),
    /// The guest did not call home in time.
    #[error(
        "The guest did not call home within {0} s: see `bulkhead why`; on a slow host raise \
         start_timeout_s in /etc/bulkhead/config.toml"
    )]
    Silent(u64),
    /// The guest does not react.
    #[error(
        "The guest's agent did not {step} within {seconds} s: `bulkhead delete --force` ends the \
         container with its machine"
    )]
    Unanswered {
        /// What was asked for.
        step: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// The agent refused or failed; its message says what on what.
    #[error("{}", .0.message)]
    Agent(Status),
    /// The connection to the agent broke.
    #[error("Lost the connection to the guest's agent while trying to {step}")]
    Connection {
        /// What was attempted.
        step: &'static str,
        /// The reason.
        #[source]
        source: Box<ttrpc::Error>,
    },
    /// Another container's name.
    #[error("This sandbox holds container {holds}, not {asked}")]
    WrongId {
        /// Its own.
        holds: String,
        /// The one asked for.
        asked: String,
    },
    /// The container cannot move into the machine.
    #[error(
        "Container {0} cannot join the virtual machine of the container it shares a network with: that \
         one is ending, or has a container of that name"
    )]
    NoRoom(String),
    /// The files of a further container could not be shared.
    #[error("Failed to share the container's files with the running virtual machine")]
    Share(#[source] bulkhead_jail::JailError),
    /// No such exec process.
    #[error("Container {id} has no process {exec_id:?}")]
    NoProcess {
        /// The container.
        id: String,
        /// The process asked for.
        exec_id: String,
    },
    /// An exec process of that name is there already.
    #[error("Container {id} already has a process {exec_id:?}")]
    ProcessExists {
        /// The container.
        id: String,
        /// The process.
        exec_id: String,
    },
    /// The verb does not fit the state.
    #[error("Cannot {verb} container {id}: it is {state}{}", hint(.state))]
    WrongState {
        /// The verb.
        verb: &'static str,
        /// The container.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// Not offered.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// The verb or option.
        what: &'static str,
        /// The reason, and what to do instead.
        why: &'static str,
    },
}

impl SandboxError {
    fn code(&self) -> Code {
        match self {
            Self::Agent(status) => status.code(),
            Self::WrongId { .. } | Self::NoProcess { .. } => Code::NOT_FOUND,
            Self::NoRoom(_) | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::WrongState { .. } => Code::FAILED_PRECONDITION,
            Self::Unsupported { .. } => Code::UNIMPLEMENTED,
            Self::CalledOff => Code::CANCELLED,
            Self::Plan(_)
            | Self::Network(_)
            | Self::Stdio(_)
            | Self::NoGroup
            | Self::TooMuchMemory { .. }
            | Self::Limits(_) => Code::INVALID_ARGUMENT,
            Self::Silent(_) | Self::Unanswered { .. } => Code::DEADLINE_EXCEEDED,
            Self::Vm(_)
            | Self::Dns(_)
            | Self::Share(_)
            | Self::Cgroup(_)
            | Self::Hook(_)
            | Self::Namespaces(_)
            | Self::Describe(_)
            | Self::State(_)
            | Self::Layer { .. }
            | Self::Ended(_)
            | Self::Connection { .. } => Code::INTERNAL,
        }
    }

    /// The error with its whole chain as one line, for a client that only sees text.
    #[must_use]
    pub fn to_rpc(&self) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(self.code(), chain(self)))
    }
}

/// Engines look for these words.
fn hint(state: &str) -> &'static str {
    match state {
        "stopped" => ": container not running",
        _ => "",
    }
}

/// An error and its sources, joined by `: `; a source its parent already quotes is left out. A full disk
/// comes with what helps against it.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    let mut is_full = false;
    while let Some(inner) = source {
        let kind = inner.downcast_ref().map(std::io::Error::kind);
        is_full |= kind == Some(std::io::ErrorKind::StorageFull);
        let message = inner.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = inner.source();
    }
    if is_full {
        text.push_str(": free blocks or inodes there, `df` and `df -i` show which");
    }
    text
}
