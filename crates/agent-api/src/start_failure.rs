//! Why `Start` could not run a program, in a form the host can act on.
//!
//! ttrpc carries one code and one text for an error. A shell's convention needs more: 127 when the
//! program does not exist, 126 when it exists and cannot be executed. The kind therefore travels as
//! a short tag at the beginning of the status message.

use std::fmt;

/// The kind of failure of an `Agent.Start` call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// The program (or its interpreter) does not exist in the container.
    NotFound,
    /// The program exists and is not something that can be executed: no permission, a directory,
    /// an unknown format.
    NotExecutable,
    /// Anything else, for instance a working directory that does not exist.
    Other,
}

const NOT_FOUND: &str = "[program-not-found] ";
const NOT_EXECUTABLE: &str = "[program-not-executable] ";

impl StartFailure {
    /// The kind for an error number of `execve(2)`.
    ///
    /// `ENOENT` and `ENOTDIR` mean that nothing is there; `EACCES`, `EPERM`, `EISDIR`, `ENOEXEC`,
    /// `ELIBBAD` and `EINVAL` that what is there cannot be executed.
    #[must_use]
    pub fn from_exec_errno(errno: i32) -> Self {
        // Linux has these numbers on every architecture a guest may have.
        const EPERM: i32 = 1;
        const ENOENT: i32 = 2;
        const ENOEXEC: i32 = 8;
        const EACCES: i32 = 13;
        const ENOTDIR: i32 = 20;
        const EISDIR: i32 = 21;
        const EINVAL: i32 = 22;
        const ELIBBAD: i32 = 80;
        match errno {
            ENOENT | ENOTDIR => Self::NotFound,
            EPERM | ENOEXEC | EACCES | EISDIR | EINVAL | ELIBBAD => Self::NotExecutable,
            _ => Self::Other,
        }
    }

    /// The exit code a shell would report for it: 127, 126, or 125 for a failure of the runtime.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
            Self::Other => 125,
        }
    }

    /// The status message that carries this kind and `text`.
    #[must_use]
    pub fn encode(self, text: impl fmt::Display) -> String {
        match self {
            Self::NotFound => format!("{NOT_FOUND}{text}"),
            Self::NotExecutable => format!("{NOT_EXECUTABLE}{text}"),
            Self::Other => text.to_string(),
        }
    }

    /// Splits a status message of `Start` into the kind and the text for people.
    #[must_use]
    pub fn parse(message: &str) -> (Self, &str) {
        if let Some(text) = message.strip_prefix(NOT_FOUND) {
            (Self::NotFound, text)
        } else if let Some(text) = message.strip_prefix(NOT_EXECUTABLE) {
            (Self::NotExecutable, text)
        } else {
            (Self::Other, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encode_every_kind_parses_back() {
        for kind in [
            StartFailure::NotFound,
            StartFailure::NotExecutable,
            StartFailure::Other,
        ] {
            let message = kind.encode("Cannot execute /bin/x");
            assert_eq!(
                StartFailure::parse(&message),
                (kind, "Cannot execute /bin/x")
            );
        }
    }

    #[test]
    fn parse_unknown_tag_is_other_with_whole_text() {
        assert_eq!(
            StartFailure::parse("[busy] x"),
            (StartFailure::Other, "[busy] x")
        );
        assert_eq!(StartFailure::parse(""), (StartFailure::Other, ""));
    }

    #[test]
    fn exec_errno_missing_file_is_127_and_directory_is_126() {
        assert_eq!(StartFailure::from_exec_errno(2).exit_code(), 127);
        assert_eq!(StartFailure::from_exec_errno(20).exit_code(), 127);
        assert_eq!(StartFailure::from_exec_errno(13).exit_code(), 126);
        assert_eq!(StartFailure::from_exec_errno(8).exit_code(), 126);
        assert_eq!(StartFailure::from_exec_errno(12).exit_code(), 125);
    }
}
