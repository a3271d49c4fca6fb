//! What can go wrong with a container.

use std::io;

use super::{Failure, FailureKind};

/// Why a container or a process in it could not be made or handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The specification asks for something that the guest does not do.
    #[error("Cannot honour {field}: {reason}")]
    Unsupported {
        /// Path of the field in `config.json`, such as `linux.intelRdt`.
        field: String,
        /// Why not, and what to do instead where there is something.
        reason: String,
    },
    /// A field of the specification has a value that means nothing.
    #[error("Invalid {field}: {reason}")]
    Invalid {
        /// Path of the field in `config.json`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A further process was asked for in a frozen container.
    #[error("Could not start a process in a paused container; resume it first")]
    Paused,
    /// The kernel refused something the agent did for the container.
    #[error("Could not {step}{}", .field.as_ref().map(|field| format!(" ({field})")).unwrap_or_default())]
    System {
        /// The step, in words that follow "Could not".
        step: String,
        /// The field of the specification that asked for it.
        field: Option<String>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The process inside the container failed on its way to its program.
    #[error("Could not {}{}{}", .0.step,
        .0.field.as_ref().map(|field| format!(" ({field})")).unwrap_or_default(),
        kernel_said(.0.errno))]
    Child(Failure),
}

/// The kernel's answer, in lower case: engines look for "permission denied" and "no such file or
/// directory" to choose their exit code.
fn kernel_said(errno: i32) -> String {
    if errno == 0 {
        return String::new();
    }
    let text = io::Error::from_raw_os_error(errno).to_string();
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    format!(": {}{}", first.unwrap_or_default(), letters.as_str())
}

impl ContainerError {
    /// A refusal that names the field.
    pub(super) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A nonsensical value, with the field's name.
    pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A step of the agent's that the kernel refused.
    pub(super) fn system(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            step: step.into(),
            field: None,
            source: source.into(),
        }
    }

    /// Whether the kernel said that something is in use.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }

    /// The exit code a shell gives for it: 127 for a program that was not
    /// found, 126 for one that cannot be run, `None` if it is not the program.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Child(Failure {
                kind: FailureKind::NotFound,
                ..
            }) => Some(127),
            Self::Child(Failure {
                kind: FailureKind::NotExecutable,
                ..
            }) => Some(126),
            _ => None,
        }
    }
}
