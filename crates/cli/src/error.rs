//! What a command answers when it cannot do what it was asked, and the exit code of that.

use std::io;

use bulkhead_agent_api::StartFailure;
use bulkhead_sandbox::claim::ClaimError;
use bulkhead_sandbox::client::ClientError;
use bulkhead_sandbox::config::ConfigError;
use bulkhead_sandbox::id::IdError;
use bulkhead_sandbox::state::StateError;

/// Everything a command can fail with.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Not a container name.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The name could not be reserved.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The sandbox process could not be started or reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The journal could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The configuration could not be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The options of `run` do not make a container.
    #[error(transparent)]
    Run(#[from] bulkhead_oci::RunError),
    /// The text of an option cannot be understood.
    #[error(transparent)]
    Option(#[from] bulkhead_oci::run::OptionError),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] bulkhead_oci::image::ImageError),
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] bulkhead_oci::BundleError),
    /// Installed kernels.
    #[error(transparent)]
    Kernel(#[from] bulkhead_kernels::KernelsError),
    /// The sandbox process answered with an error.
    #[error("{message}")]
    Sandbox {
        /// Its text.
        message: String,
        /// Whether a program could not be executed, and why.
        kind: StartFailure,
    },
    /// A verb that is not there.
    #[error(transparent)]
    Refused(bulkhead_oci::Refusal),
    /// The sandbox process went away.
    #[error("Lost the sandbox process of container {id}: {reason}")]
    Lost {
        /// The container.
        id: String,
        /// What is known.
        reason: String,
    },
    /// Its sandbox process does not let go of a container, and is not ours to end.
    #[error(
        "Failed to end container {id}: its sandbox process {pid} does not answer, and these live in its \
         machine, too: {others}; remove them first, and the machine goes with the last of them"
    )]
    Shared {
        /// The container.
        id: String,
        /// Of the sandbox process.
        pid: u32,
        /// The other containers.
        others: String,
    },
    /// The stand-in could not be started.
    #[error("Failed to start the container's stand-in on the host")]
    StandIn(#[source] bulkhead_jail::JailError),
    /// It could not set itself up; the text says what failed on what.
    #[error("The container's stand-in on the host could not be set up: {0}")]
    StandInSetup(String),
    /// A step on the host failed.
    #[error("Failed to {step}")]
    Io {
        /// What was attempted.
        step: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Not root.
    #[error(
        "Bulkhead needs root: namespaces, mounts and other users are set up for the jails; use sudo"
    )]
    NotRoot,
    /// Arguments that do not fit together.
    #[error("{0}")]
    Usage(String),
    /// What is asked for cannot be done in this state.
    #[error("Cannot {verb} container {id}: it is {state}{hint}")]
    WrongState {
        /// The verb.
        verb: &'static str,
        /// The container.
        id: String,
        /// Its state.
        state: &'static str,
        /// What to do, beginning with `: `, or empty.
        hint: &'static str,
    },
}

impl CommandError {
    /// Wraps an I/O error with what was attempted.
    pub fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Io { step, source }
    }

    /// Turns an answer of the Task service into an error of container `id`.
    pub fn rpc(id: &str) -> impl FnOnce(ttrpc::Error) -> Self + use<> {
        let id = id.to_owned();
        move |error| match error {
            ttrpc::Error::RpcStatus(status) => {
                let (kind, message) = StartFailure::parse(&status.message);
                Self::Sandbox {
                    message: message.to_owned(),
                    kind,
                }
            }
            other => Self::Lost {
                id,
                reason: other.to_string(),
            },
        }
    }

    /// 127 and 126 as a shell has them, otherwise `default`.
    pub fn exit_code(&self, default: u8) -> u8 {
        match self {
            Self::Sandbox {
                kind: StartFailure::NotFound,
                ..
            } => 127,
            Self::Sandbox {
                kind: StartFailure::NotExecutable,
                ..
            } => 126,
            _ => default,
        }
    }
}
