//! What a process on its way into a container tells the agent, and its encoding.
//!
//! On the pipe: `R` for ready; `E` followed by JSON up to the end of the file
//! for a failure. Both ends are the same executable, so there are no versions.

use serde::{Deserialize, Serialize};

use super::ContainerError;

const READY: u8 = b'R';
const FAILED: u8 = b'E';

/// Why a process did not get to run its program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of failure it is.
    pub kind: FailureKind,
    /// The step, in words that follow "Could not".
    pub step: String,
    /// The kernel's error number, 0 if it was not the kernel that refused.
    pub errno: i32,
    /// The field of the specification that asked for it.
    pub field: Option<String>,
}

/// Sorts of failure, by what the caller has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The container could not be set up.
    SetUp,
    /// The program was not found (exit code 127).
    NotFound,
    /// The program cannot be run (exit code 126).
    NotExecutable,
}

impl Failure {
    /// The bytes for the status pipe.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FAILED];
        // A struct of strings and numbers always has a JSON form.
        bytes.extend(serde_json::to_vec(self).unwrap_or_default());
        bytes
    }
}

/// The byte that says the process is ready.
pub(super) const READY_BYTES: [u8; 1] = [READY];

/// Puts the bytes of a status pipe together into reports.
#[derive(Debug, Default)]
pub struct Reports {
    failure: Option<Vec<u8>>,
}

impl Reports {
    /// Takes what was read; says whether the process told with it that it is
    /// set up and waits at its gate.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let mut ready = false;
        for &byte in bytes {
            match (&mut self.failure, byte) {
                (Some(json), byte) => json.push(byte),
                (None, READY) => ready = true,
                (None, _) => self.failure = Some(Vec::new()),
            }
        }
        ready
    }

    /// What end of file means: the failure that was reported, or none. A
    /// process that was ready and sent no failure has executed its program;
    /// an init process that was never ready has died on the way.
    pub fn end(self) -> Option<Failure> {
        let json = self.failure?;
        Some(serde_json::from_slice(&json).unwrap_or(Failure {
            kind: FailureKind::SetUp,
            step: "say what went wrong".to_owned(),
            errno: 0,
            field: None,
        }))
    }
}

impl From<Failure> for ContainerError {
    fn from(failure: Failure) -> Self {
        ContainerError::Child(failure)
    }
}
