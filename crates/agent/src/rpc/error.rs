//! What a method answers when it cannot do what it was asked.

use bulkhead_agent_api::StartFailure;
use ttrpc::{Code, get_status};

use crate::container::{ContainerError, Failure, FailureKind};
use crate::devices::DeviceError;
use crate::disks::DiskError;
use crate::dns::DnsError;
use crate::end::Chain;
use crate::network::NetworkError;
use crate::process::ProcessError;
use crate::registry::RegistryError;
use crate::streams::StreamError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// A field of the request means nothing.
    #[error("Invalid {field}: {reason}")]
    Request {
        /// The field's name in the protocol.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A JSON document of the request could not be understood. The text of the document, which may
    /// hold secrets, is not repeated.
    #[error("Cannot read {field}: {category:?} error at line {line}, column {column}")]
    Json {
        /// The field's name in the protocol.
        field: &'static str,
        /// Syntax, data, …
        category: serde_json::error::Category,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// A name that is not there, or there already.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The process is not in the state for it.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The container could not be made or handled.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The network could not be configured.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A device cannot come or go.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// A disk of the container cannot be found.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Name servers cannot be stood in for.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The streams could not be made.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The program could not be started.
    #[error("{}", Chain(&ContainerError::from(.0.clone())))]
    Start(Failure),
    /// The process still runs.
    #[error("The process {exec:?} of container {container:?} still runs; kill it first")]
    Running {
        /// The container's id.
        container: String,
        /// The exec id.
        exec: String,
    },
    /// The kernel refused something.
    #[error("Cannot {what}")]
    System {
        /// A verb and its object.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

impl RpcError {
    /// A JSON error without the text that caused it.
    pub fn json(field: &'static str, error: &serde_json::Error) -> Self {
        Self::Json {
            field,
            category: error.classify(),
            line: error.line(),
            column: error.column(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Request { .. } | Self::Json { .. } => Code::INVALID_ARGUMENT,
            Self::Registry(RegistryError::NoContainer(_) | RegistryError::NoProcess(..)) => {
                Code::NOT_FOUND
            }
            Self::Registry(
                RegistryError::ContainerExists(_) | RegistryError::ProcessExists(..),
            ) => Code::ALREADY_EXISTS,
            Self::Process(ProcessError::Ended) => Code::NOT_FOUND,
            Self::Process(ProcessError::Started | ProcessError::NoTerminal)
            | Self::Running { .. } => Code::FAILED_PRECONDITION,
            Self::Container(ContainerError::Unsupported { .. })
            | Self::Devices(DeviceError::Unable { .. }) => Code::UNIMPLEMENTED,
            Self::Container(ContainerError::Invalid { .. })
            | Self::Devices(DeviceError::Driver { .. })
            | Self::Network(NetworkError::Value { .. })
            | Self::Stream(StreamError::Size { .. }) => Code::INVALID_ARGUMENT,
            Self::Stream(StreamError::Connect { .. }) => Code::UNAVAILABLE,
            Self::Start(_) => Code::FAILED_PRECONDITION,
            _ => Code::INTERNAL,
        }
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        let text = Chain(&error);
        let message = match &error {
            RpcError::Start(failure) => match failure.kind {
                FailureKind::NotFound => StartFailure::NotFound,
                FailureKind::NotExecutable => StartFailure::NotExecutable,
                FailureKind::SetUp => StartFailure::Other,
            }
            .encode(text),
            _ => text.to_string(),
        };
        ttrpc::Error::RpcStatus(get_status(error.code(), message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: RpcError) -> (Code, String) {
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else {
            panic!("a status was expected");
        };
        (status.code(), status.message().to_owned())
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure {
            kind,
            step: "execute /bin/x".to_owned(),
            errno: libc::ENOENT,
            field: None,
        }
    }

    #[test]
    fn start_failure_kind_survives_the_wire() {
        let (code, message) = status(RpcError::Start(failure(FailureKind::NotFound)));
        assert_eq!(code, Code::FAILED_PRECONDITION);
        let (kind, text) = StartFailure::parse(&message);
        assert_eq!(kind, StartFailure::NotFound);
        assert!(text.starts_with("Could not execute /bin/x"), "{text}");
        let (_, message) = status(RpcError::Start(failure(FailureKind::NotExecutable)));
        assert_eq!(StartFailure::parse(&message).0.exit_code(), 126);
    }

    #[test]
    fn json_error_does_not_repeat_the_document() {
        let error = serde_json::from_str::<Vec<u8>>("[\"PASSWORD=hunter2\"]").unwrap_err();
        let (code, message) = status(RpcError::json("spec_json", &error));
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(!message.contains("hunter2"), "{message}");
        assert!(message.contains("line 1"), "{message}");
    }

    #[test]
    fn unknown_container_is_not_found() {
        let error = RegistryError::NoContainer("a".to_owned());
        assert_eq!(status(error.into()).0, Code::NOT_FOUND);
    }
}
