//! Errors of the process on its way into the container.

use std::{ffi::CStr, io};

use super::{ContainerError, Failure, FailureKind};

/// What a step in the child returns.
pub(super) type Step<T = ()> = Result<T, Failure>;

impl Failure {
    /// A step that failed without the kernel having refused anything.
    pub(super) fn plain(step: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::SetUp,
            step: step.into(),
            errno: 0,
            field: None,
        }
    }

    /// Names the field of the specification that asked for the step.
    pub(super) fn with_field(mut self, field: &str) -> Self {
        self.field.get_or_insert_with(|| field.to_owned());
        self
    }
}

/// Says during what the kernel refused.
pub(super) trait During<T> {
    /// For code in the child. `step` follows "Could not".
    fn during(self, step: impl FnOnce() -> String) -> Step<T>;
    /// For code in the agent.
    fn while_trying(self, step: impl FnOnce() -> String) -> Result<T, ContainerError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: impl FnOnce() -> String) -> Step<T> {
        self.map_err(|error| Failure {
            kind: FailureKind::SetUp,
            step: step(),
            errno: error.into().raw_os_error().unwrap_or_default(),
            field: None,
        })
    }

    fn while_trying(self, step: impl FnOnce() -> String) -> Result<T, ContainerError> {
        self.map_err(|error| ContainerError::system(step(), error.into()))
    }
}

/// A path or name for a message.
pub(super) fn shown(text: &CStr) -> std::borrow::Cow<'_, str> {
    text.to_string_lossy()
}
